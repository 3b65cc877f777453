from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import matplotlib as mpl
import numpy as np
import pytest
import torch
from matplotlib import pyplot as plt
from matplotlib.colors import to_hex

from torch_wprox import Certificate, MeanFieldLayer, Status, StepReport, plotting
from torch_wprox.recording import TrajectoryRecorder


@pytest.fixture(autouse=True)
def _no_window() -> Iterator[None]:
    before = mpl.get_backend()
    plt.switch_backend("agg")
    yield
    plt.close("all")
    plt.switch_backend(before)


def report(**changes: object) -> StepReport:
    made = StepReport(
        status=Status.CONVERGED,
        evaluations=7,
        loss_before=1.0,
        loss_after=0.5,
        objective=0.6,
        distance_sq=0.2,
        wasserstein_sq=0.2,
        frobenius_sq=0.3,
        permuted_fraction=0.5,
        residual=0.0,
    )
    return dataclasses.replace(made, **changes)  # type: ignore[arg-type]


def line_of(ax: plt.Axes, label: str) -> tuple[list[float], list[float]]:
    [line] = [line for line in ax.get_lines() if line.get_label() == label]
    return list(line.get_xdata()), list(line.get_ydata())


def test_descent_draws_losses_at_iterates_and_distances_between_them() -> None:
    second = report(loss_before=0.5, loss_after=0.25, wasserstein_sq=0.1, permuted_fraction=0.0)
    ax = plotting.plot_descent({"W": [report(), second]})
    assert line_of(ax, "W: loss $F(W_t)$") == ([0, 1, 2], [1.0, 0.5, 0.25])
    assert line_of(ax, "W: $W_2^2(W_t, W_{t-1})$") == ([1, 2], [0.2, 0.1])
    twin = ax.figure.axes[-1]
    assert twin is not ax
    assert line_of(twin, "W: permuted fraction") == ([1, 2], [0.5, 0.0])
    legend = ax.get_legend()
    assert legend is not None
    assert len(legend.get_texts()) == 4


def test_a_distance_that_was_not_computed_leaves_a_gap() -> None:
    ax = plotting.plot_descent({"W": [report(wasserstein_sq=None, permuted_fraction=None)]})
    assert np.isnan(line_of(ax, "W: $W_2^2(W_t, W_{t-1})$")[1]).all()


def test_rounding_does_not_set_the_scale() -> None:
    ax = plotting.plot_descent({"W": [report(), report(wasserstein_sq=1e-34)]})
    assert ax.get_ylim()[0] >= 1e-12


def test_without_permutations_there_is_one_axis() -> None:
    ax = plotting.plot_descent({"W": [report()]}, permuted=False)
    assert ax.figure.axes == [ax]


def test_no_report_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one step"):
        plotting.plot_descent({"W": []})


def test_trajectories_have_the_colour_of_their_sign_and_a_circle_at_the_start() -> None:
    positions = torch.randn(4, 3, 2, generator=torch.Generator().manual_seed(0))
    signs = torch.tensor([1.0, -1.0, 1.0])
    ax = plotting.plot_trajectories(positions, signs)
    ways = [line for line in ax.get_lines() if len(line.get_xdata()) == 4]
    colors = [to_hex(line.get_color()).upper() for line in ways]
    assert colors == [plotting.POSITIVE, plotting.POSITIVE, plotting.NEGATIVE]
    starts = line_of(ax, "positive: initial position")
    assert np.array_equal(np.array(starts).T, positions[0, [0, 2]].numpy())


def test_activation_lines_are_where_a_neuron_switches_and_set_no_limits() -> None:
    positions = 1e-2 * torch.randn(4, 3, 2, generator=torch.Generator().manual_seed(0))
    bare = plotting.plot_trajectories(positions)
    limits = bare.get_xlim(), bare.get_ylim()
    x = torch.tensor([-3.0, 0.0, 5.0])
    ax = plotting.plot_trajectories(positions, inputs=x)
    assert (ax.get_xlim(), ax.get_ylim()) == limits
    drawn = [line for line in ax.get_lines() if hasattr(line, "get_slope")]
    slopes = [line.get_slope() for line in drawn]
    for slope, point in zip(slopes, x.tolist(), strict=True):
        w, b = 1.0, slope  # a point of the line b = slope * w
        assert point * w + b == 0


def test_two_descents_in_one_axes_share_the_legend() -> None:
    positions = torch.zeros(4, 3, 2)
    ax = plotting.plot_trajectories(positions, torch.ones(3), line="-", name="one")
    again = plotting.plot_trajectories(positions, torch.ones(3), ax, line="--", name="two")
    assert again is ax
    labels = ax.get_legend_handles_labels()[1]
    assert sorted(labels) == sorted(set(labels))
    assert {"one", "two"} <= set(labels)


@pytest.mark.parametrize(
    ("positions", "signs", "message"),
    [
        (torch.zeros(3, 2), None, r"positions must be \(T, m, D\)"),
        (torch.zeros(3, 4, 1), None, "D >= 2"),
        (torch.zeros(3, 4, 2), torch.ones(3), r"signs must be \(4,\), got shape \(3,\)"),
    ],
)
def test_wrong_shapes_are_named(
    positions: torch.Tensor, signs: torch.Tensor | None, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        plotting.plot_trajectories(positions, signs)


def test_function_and_curves_draw_what_they_are_given() -> None:
    x, y = torch.tensor([[0.0], [1.0]]), torch.tensor([[2.0], [3.0]])
    ax = plotting.plot_function(x, y, {"f": (torch.linspace(0, 1, 3), torch.arange(3.0))})
    assert line_of(ax, "f") == ([0, 0.5, 1], [0, 1, 2])
    assert line_of(ax, "data $(x_j, y_j)$") == ([0, 1], [2, 3])
    ax = plotting.plot_curves({"Adam": ([1, 2], [0.1, 0.2])}, log=False)
    assert line_of(ax, "Adam") == ([1, 2], [0.1, 0.2])
    assert ax.get_yscale() == "linear"


def test_every_axis_is_labelled_and_the_legend_lies_outside_of_the_data() -> None:
    with plotting.style():
        drawn = [
            plotting.plot_descent({"W": [report(), report()], "F": [report(), report()]}),
            plotting.plot_trajectories(torch.randn(4, 3, 2), torch.ones(3)),
            plotting.plot_curves({"a": ([1, 2], [1, 2])}),
            plotting.plot_function(torch.ones(2), torch.ones(2), {}),
        ]
    for ax in drawn:
        assert ax.get_xlabel()
        assert ax.get_ylabel()
        ax.figure.canvas.draw()
        legend = ax.get_legend()
        assert legend is not None
        assert legend.get_window_extent().y0 >= ax.get_window_extent().y1


def test_style_is_put_back() -> None:
    before = dict(mpl.rcParams)
    with plotting.style():
        assert mpl.rcParams["axes.spines.top"] is False
    assert dict(mpl.rcParams) == before


def test_a_given_axes_is_drawn_into_and_returned() -> None:
    _, ax = plt.subplots()
    assert plotting.plot_curves({"a": ([1], [1])}, ax) is ax
    assert plotting.plot_descent({"a": [report()]}, ax) is ax
    assert plotting.plot_function(torch.ones(1), torch.ones(1), {}, ax) is ax


def test_bands_show_the_median_and_the_quartiles() -> None:
    runs = torch.arange(5.0)[:, None] + torch.tensor([0.0, 10.0])
    ax = plotting.plot_bands({"ours": ([1.0, 2.0], runs)}, xlabel="x", ylabel="y", log="x")
    assert ax.lines[0].get_ydata().tolist() == [2.0, 12.0]
    corners = ax.collections[0].get_paths()[0].vertices
    assert [*corners.min(0), *corners.max(0)] == [1.0, 1.0, 2.0, 13.0]
    assert ax.get_xscale() == "log"
    plt.close(ax.figure)


@pytest.mark.parametrize("certified", [True, False])
def test_a_bound_is_called_proved_only_if_every_one_is(certified: bool) -> None:
    found = [Certificate(2.0, 1.0, True, 9), Certificate(1.5, 1.0, certified, 9)]
    ax = plotting.plot_certificates({"ours": ([1, 2], found)})
    labels = ax.get_legend_handles_labels()[1]
    kind = "proved" if certified else "estimated"
    assert labels == ["ours", f"to the {kind} bound"]
    heights = ax.collections[0].get_paths()[0].vertices[:, 1]
    assert (heights.min(), heights.max()) == (1.0, 2.0)


def test_a_report_without_a_bound_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"'ours' has no lower bound: use certify"):
        plotting.plot_certificates({"ours": ([1], [report()])})


def test_a_recorder_is_drawn_as_its_positions_with_its_signs() -> None:
    layer = MeanFieldLayer(1, width=4, parameterization="signed")
    recorder = TrajectoryRecorder(layer)
    recorder.record()
    with torch.no_grad():
        layer.particles += 1
    recorder.record()
    with plotting.style():
        ax = plotting.plot_trajectories(recorder)
        same = plotting.plot_trajectories(recorder.positions(), layer.signs)
    drawn, expected = ([line.get_xydata() for line in a.lines] for a in (ax, same))
    assert len(drawn) == len(expected) > 0
    for one, other in zip(drawn, expected, strict=True):
        assert (one == other).all()


def test_losses_alone_are_drawn_beside_reports() -> None:
    with plotting.style():
        ax = plotting.plot_descent({"prox": [report()], "Adam": [1.0, 0.9, 0.8]})
    labels = [line.get_label() for line in ax.lines]
    assert "Adam: loss $F(W_t)$" in labels
    (adam,) = [line for line in ax.lines if line.get_label().startswith("Adam")]
    assert adam.get_ydata().tolist() == [1.0, 0.9, 0.8]


@pytest.mark.parametrize(
    ("draw", "message"),
    [
        (lambda: plotting.plot_descent([1.0, 2.0]), "runs must be a dict"),
        (lambda: plotting.plot_descent({"a": ["x"]}), "must be the reports of its steps"),
        (lambda: plotting.plot_descent({"a": 3}), None),
        (lambda: plotting.plot_trajectories([1, 2]), "positions must be a tensor"),
        (lambda: plotting.plot_function(torch.nn.Linear(1, 1), 1, 2), "x must be the inputs"),
        (lambda: plotting.plot_function(torch.ones(3), torch.ones(3), 5), "curves must be a model"),
    ],
)
def test_a_wrong_type_is_refused_in_words(draw: Any, message: str | None) -> None:
    if message is None:
        draw()  # one number is one loss
        return
    with pytest.raises(TypeError, match=message):
        draw()


def test_a_model_is_drawn_around_its_data() -> None:
    x = torch.linspace(-1, 1, 5)[:, None]
    model = torch.nn.Linear(1, 1)
    ax = plotting.plot_function(x, x.sin(), {"fit": model})
    grid, values = ax.lines[0].get_data()
    assert grid[0] == pytest.approx(-1.2)
    assert values[0] == pytest.approx(model(torch.tensor([[-1.2]])).item(), rel=1e-5)
