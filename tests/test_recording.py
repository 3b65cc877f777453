import csv

import pytest
import torch
from torch import nn

from conftest import closure_for
from torch_wprox import FrobeniusProx, MeanFieldLayer, WassersteinProx
from torch_wprox.recording import TrajectoryRecorder
from torch_wprox.report import numbers_of


def trained(recorder, model, optimizer, steps):
    x = torch.linspace(-1, 1, 5)[:, None]

    closure = closure_for(optimizer, lambda: (model(x) - x.sin()).square().mean())
    recorder.record()
    for _ in range(steps):
        optimizer.step(closure)
        recorder.record(optimizer.report)


@pytest.fixture
def layer():
    generator = torch.Generator().manual_seed(0)
    return MeanFieldLayer(1, 6, parameterization="signed", generator=generator)


def test_first_snapshot_is_the_start_and_last_is_the_end(layer):
    start = layer.positions()
    recorder = TrajectoryRecorder(layer, inputs=torch.zeros(3, 1))
    trained(recorder, layer, WassersteinProx(layer.parameters(), 1.0, max_eval=10), steps=3)
    assert recorder.positions().shape == (4, 6, 2)
    assert torch.equal(recorder.positions()[0], start)
    assert torch.equal(recorder.positions()[-1], layer.positions())
    assert not torch.equal(start, layer.positions())
    assert torch.equal(recorder.outputs()[-1], layer(torch.zeros(3, 1)))
    assert torch.equal(recorder.masses()[0], layer.masses())
    assert recorder.times().tolist() == [0, 1, 2, 3]


def test_recorded_distances_are_those_between_recorded_positions(layer):
    recorder = TrajectoryRecorder(layer)
    trained(recorder, layer, FrobeniusProx(layer.parameters(), 1.0, max_eval=10), steps=2)
    moved = recorder.positions().diff(dim=0).square().sum(2).mean(1)
    reported = torch.tensor([r.frobenius_sq for r in recorder.reports()])
    torch.testing.assert_close(moved, reported, rtol=1e-4, atol=1e-10)  # differences in float32


def test_csv_holds_every_number_of_every_report_to_the_last_digit(layer, tmp_path):
    recorder = TrajectoryRecorder(layer)
    trained(recorder, layer, WassersteinProx(layer.parameters(), 1.0, max_eval=10), steps=2)
    recorder.to_csv(tmp_path / "steps.csv")
    with open(tmp_path / "steps.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["step"]) for row in rows] == [1, 2]
    for row, report in zip(rows, recorder.reports(), strict=True):
        assert float(row["objective"]) == report.objective
        assert row["status"] == report.status
        assert row["gap"] == ""
        assert int(row["transport_solved"]) == report.transport.solved


def test_tensors_load_with_weights_only(layer, tmp_path):
    recorder = TrajectoryRecorder(layer, inputs=torch.ones(2, 1))
    recorder.record()
    torch.save(recorder.tensors(), tmp_path / "run.pt")
    loaded = torch.load(tmp_path / "run.pt", weights_only=True)
    assert set(loaded) == {"times", "positions.cloud", "masses.cloud", "inputs", "outputs"}


def test_every_keeps_the_first_and_one_in_n(layer):
    recorder = TrajectoryRecorder(layer, every=3)
    for _ in range(8):
        recorder.record()
    assert recorder.times().tolist() == [0, 3, 6]


def test_clouds_of_a_sequential_are_found_by_name():
    model = nn.Sequential(nn.Linear(2, 8), nn.ReLU(), nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 1))
    recorder = TrajectoryRecorder(model)
    recorder.record()
    assert recorder.names == ("0",)
    assert recorder.positions("0").shape == (1, 8, 2 + 1 + 4)


def test_outputs_are_recorded_in_eval_mode_and_modes_are_put_back(layer):
    model = nn.Sequential(layer, nn.Dropout(0.5))
    model[0].eval()
    recorder = TrajectoryRecorder(model, inputs=torch.ones(2, 1))
    recorder.record()
    assert torch.equal(recorder.outputs()[0], layer(torch.ones(2, 1)))
    assert model.training
    assert model[1].training
    assert not model[0].training


def test_recording_does_not_alias_the_parameters(layer):
    recorder = TrajectoryRecorder(layer)
    recorder.record()
    before = recorder.positions().clone()
    with torch.no_grad():
        layer.particles.zero_()
    assert torch.equal(recorder.positions(), before)


def test_wrong_uses_say_the_remedy(layer):
    with pytest.raises(ValueError, match="no cloud of particles"):
        TrajectoryRecorder(nn.Linear(2, 2))
    with pytest.raises(ValueError, match="every must be >= 1, got 0"):
        TrajectoryRecorder(layer, every=0)
    recorder = TrajectoryRecorder(layer)
    with pytest.raises(RuntimeError, match="nothing was recorded"):
        recorder.positions()
    with pytest.raises(KeyError, match="must be one of"):
        recorder.positions("other")
    with pytest.raises(RuntimeError, match="give the recorder inputs="):
        recorder.outputs()


def test_numbers_of_a_report_are_plain_values(layer):
    recorder = TrajectoryRecorder(layer)
    trained(recorder, layer, WassersteinProx(layer.parameters(), 1.0, max_eval=5), steps=1)
    for value in numbers_of(recorder.reports()[0]).values():
        assert value is None or type(value) in (bool, int, float, str)
