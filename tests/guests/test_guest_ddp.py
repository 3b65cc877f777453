"""Steps shared by the ranks of a process group: the full batch in one process, without deadlock."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.multiprocessing as mp
from torch import Tensor

from cases import ddp_cases
from conftest import sinus_layer
from torch_wprox import WassersteinProx

pytestmark = pytest.mark.slow
Results = list[dict[str, Any]]
COMBINATIONS = ddp_cases.COMBINATIONS


@pytest.fixture(
    scope="module",
    params=[2, pytest.param(4, marks=pytest.mark.nightly)],
    ids=lambda world: f"{world} processes",
)
def ranks(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Results:
    """What every rank found in all the cases: one spawn per world size, it costs seconds."""
    folder: Path = tmp_path_factory.mktemp("ranks")
    mp.spawn(ddp_cases.main, args=(request.param, str(folder)), nprocs=request.param)
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(request.param)]


def assert_all_equal(values: list[Any]) -> None:
    for value in values[1:]:
        if isinstance(value, Tensor):
            assert torch.equal(value, values[0])
        else:
            assert value == values[0]


def assert_one_run(found: Results) -> None:
    """All ranks took the same decisions and stand at the same point, to the bit."""
    assert_all_equal([f["end"] for f in found])
    for rows in zip(*(f["rows"] for f in found), strict=True):
        for key in ("evaluations", "status", "objective", "loss_before", "residual"):
            assert_all_equal([row[key] for row in rows])
        assert_all_equal([row["assignment"] for row in rows])


@pytest.mark.parametrize(("distance", "solver"), COMBINATIONS)
def test_equal_shards_are_the_full_batch_in_one_process(
    ranks: Results, distance: str, solver: str
) -> None:
    found = [r[f"{distance}-{solver}"] for r in ranks]
    assert_one_run(found)
    alone = ddp_cases.combination(0, 1, distance, solver)
    # The rules end the loops: a budget that runs out would hide ranks that disagree.
    assert {row["status"] for row in alone["rows"]} <= {"converged", "inexact"}
    for shared, single in zip(found[0]["rows"], alone["rows"], strict=True):
        assert shared["status"] == single["status"]
        assert shared["evaluations"] == single["evaluations"]
        assert shared["objective"] == pytest.approx(single["objective"], rel=1e-9)
    # Sums of the same float64 numbers in another order.
    assert torch.allclose(found[0]["end"], alone["end"], rtol=0, atol=1e-9)


@pytest.mark.parametrize(("distance", "solver"), COMBINATIONS)
def test_step_returns_the_first_loss_of_its_own_rank(
    ranks: Results, distance: str, solver: str
) -> None:
    found = [r[f"{distance}-{solver}"]["rows"] for r in ranks]
    for rows in zip(*found, strict=True):
        for row in rows:
            assert torch.equal(row["first"], row["local"])
        mean = torch.stack([row["local"] for row in rows]).mean().item()
        assert rows[0]["loss_before"] == pytest.approx(mean, rel=1e-12)
        assert len({row["first"].item() for row in rows}) > 1


def test_particles_are_exchanged_alike_on_all_ranks(ranks: Results) -> None:
    rows = ranks[0]["emd-gd"]["rows"]
    assert any(row["permuted_fraction"] > 0 for row in rows)


def test_nan_on_one_rank_is_rejected_by_all(ranks: Results) -> None:
    found = [r["nan_on_one_rank"] for r in ranks]
    assert_all_equal([f["rows"] for f in found])
    assert_all_equal([f["end"] for f in found])
    first, trial, anchor = found[0]["rows"]
    assert first[2]
    assert trial[2]
    assert anchor == ("nonfinite", 1, False)
    assert found[0]["end"].isfinite().all()


def test_the_assignment_in_force_is_that_of_the_first_rank(ranks: Results) -> None:
    found = [r["another_assignment_on_one_rank"] for r in ranks]
    assert_one_run(found)
    alone = ddp_cases.combination(0, 1, "emd", "gd")["rows"][:2]
    for shared, single in zip(found[0]["rows"], alone, strict=True):
        assert shared["objective"] == pytest.approx(single["objective"], rel=1e-9)


def test_what_a_rank_keeps_of_its_transport_is_not_overwritten(ranks: Results) -> None:
    assert all(r["another_assignment_on_one_rank"]["kept"] for r in ranks)


def test_numbers_that_decide_are_those_of_the_first_rank(ranks: Results) -> None:
    found = [r["another_arithmetic_on_one_rank"] for r in ranks]
    assert_all_equal([f["end"] for f in found])
    assert_all_equal([[row["evaluations"] for row in f["rows"]] for f in found])
    assert torch.equal(found[0]["end"], ranks[0]["emd-gd"]["end"])


@pytest.mark.parametrize("distance", ["sinkhorn", "sliced"])
def test_ranks_that_round_a_distance_differently_do_not_drift_apart(
    ranks: Results, distance: str
) -> None:
    found = [r["approximate_distances_on_other_hardware"][distance] for r in ranks]
    assert_all_equal([f["end"] for f in found])
    for key in ("evaluations", "residual"):
        assert_all_equal([[row[key] for row in f["rows"]] for f in found])


def test_process_group_none_trains_every_rank_alone(ranks: Results) -> None:
    for rank, r in enumerate(ranks):
        x, y = ddp_cases.data(rank, len(ranks))
        layer = ddp_cases.Waves(seed=rank)
        opt = ddp_cases.optimizer_of(layer, "emd", "gd")
        ddp_cases.train(layer, opt, x, y, steps=1 + rank)
        assert torch.equal(r["alone_in_the_group"]["end"], ddp_cases.flat(layer))


def test_a_subgroup_steps_together_and_hears_its_own_first_rank(ranks: Results) -> None:
    found = [r["subgroup"] for r in ranks if r["subgroup"]["end"] is not None]
    assert len(found) == 2
    assert_one_run(found)
    layer = sinus_layer(m=10, scale=1.0)
    ddp_cases.train(layer, ddp_cases.optimizer_of(layer, "emd", "gd"), *ddp_cases.data(), steps=2)
    assert torch.allclose(found[0]["end"], ddp_cases.flat(layer), rtol=0, atol=1e-9)


def test_a_model_that_is_not_wrapped_is_refused_on_all_ranks(ranks: Results) -> None:
    for r in ranks:
        assert "wrap the model in DistributedDataParallel" in r["forgotten_wrapper"]
        assert "restored: True" in r["forgotten_wrapper"]


def test_shards_are_refused_on_all_ranks_with_the_remedy_and_nothing_moves(ranks: Results) -> None:
    for r in ranks:
        found = r["sharded"]
        assert found["rows"] == 8 // len(ranks)  # it is a shard indeed
        assert len(found["messages"]) == 3
        for message in found["messages"]:
            assert "DTensor" in message
            assert "DistributedDataParallel" in message
        assert not found["moved"]


@pytest.mark.parametrize("form", ddp_cases.GLOBAL_FORMS)
def test_a_global_step_is_one_step_on_all_ranks_and_that_of_one_process(
    ranks: Results, form: str
) -> None:
    found = [r["global_steps"][form] for r in ranks]
    assert_one_run(found)
    assert_all_equal([f["bounds"] for f in found])
    alone = ddp_cases.global_step(0, 1, form)
    for shared, single in zip(found[0]["rows"], alone["rows"], strict=True):
        assert shared["loss_before"] == pytest.approx(single["loss_before"], rel=1e-9)
        # The same samples in another order, and searches that every rank makes for a part.
        within = {"plane": 1e-9, "rays": 1e-6, "joint": 1e-4}[form]
        assert shared["objective"] == pytest.approx(single["objective"], rel=within)
    (bound, certified, estimate, gap), single = found[0]["bounds"], alone["bounds"]
    assert certified == single[1]
    if form == "plane":
        assert bound == pytest.approx(single[0], rel=1e-9)
    else:
        assert (bound if estimate is None else estimate) == pytest.approx(
            single[0] if single[2] is None else single[2], rel=1e-2
        )
    assert bound <= found[0]["rows"][-1]["objective"]
    assert gap >= 0


def test_shards_of_a_global_step_may_differ_in_size(ranks: Results) -> None:
    found = [r["uneven_global_step"] for r in ranks]
    assert_one_run(found)
    layer, (x, y) = sinus_layer(m=6), ddp_cases.data()
    opt = WassersteinProx(layer.parameters(), 1.0, solver="global", max_eval=300)
    cuts = [slice(0, 3), *(slice(3 + r, 4 + r) for r in range(len(ranks) - 1))]

    def closure() -> Tensor:
        opt.zero_grad()
        residual = (layer(x) - y).square()
        loss = torch.stack([residual[cut].mean() for cut in cuts]).mean()
        loss.backward()
        return loss

    opt.step(closure)
    assert found[0]["rows"][0]["objective"] == pytest.approx(opt.report.objective, rel=1e-3)
    assert found[0]["bounds"][0] == pytest.approx(opt.report.lower_bound, rel=1e-4)


def test_a_batch_that_changes_on_one_rank_is_refused_by_all(ranks: Results) -> None:
    messages = [r["another_input_on_one_rank"] for r in ranks]
    assert "the layer's input changed" in messages[-1]
    for message in messages[:-1]:
        assert "another rank refused the closure" in message
    for message in messages:
        assert message.endswith("restored: True")


def test_float_losses_are_averaged(ranks: Results) -> None:
    found = [r["float_losses"] for r in ranks]
    assert_all_equal([f["end"] for f in found])
    assert all(isinstance(f["first"], float) for f in found)
    mean = sum(f["first"] for f in found) / len(found)
    assert found[0]["loss_before"] == pytest.approx(mean, rel=1e-12)


def test_dropout_differs_between_ranks_and_is_replayed_in_each(ranks: Results) -> None:
    found = [r["dropout"] for r in ranks]
    assert_one_run(found)
    for row in found[0]["rows"]:
        assert row["objective"] <= row["loss_before"]
    assert len({f["next"] for f in found}) == len(found)


def test_batch_norm_sees_one_batch_per_evaluation(ranks: Results) -> None:
    found = [r["batch_norm"] for r in ranks]
    assert_one_run(found)
    closures = 2  # and one call of the closure before each step
    evaluations = sum(row["evaluations"] for row in found[0]["rows"])
    assert found[0]["tracked"] == evaluations + closures


def test_resuming_is_bit_exact(ranks: Results) -> None:
    for r in ranks:
        assert torch.equal(r["resumed"]["one_go"], r["resumed"]["resumed"])


def test_a_copy_of_an_optimizer_with_a_group_goes_on(ranks: Results) -> None:
    for r in ranks:
        assert torch.equal(r["copied"]["original"], r["copied"]["copy"])


def test_lightning_ddp_is_the_full_batch_in_one_process(ranks: Results) -> None:
    found = [r["lightning"] for r in ranks]
    assert_all_equal([f["end"] for f in found])
    assert found[0]["world"] == len(ranks)
    assert found[0]["steps"] == 3
    layer = ddp_cases.Waves()
    ddp_cases.train(layer, ddp_cases.optimizer_of(layer, "emd", "gd"), *ddp_cases.data(), steps=3)
    assert torch.allclose(found[0]["end"], ddp_cases.flat(layer), rtol=0, atol=1e-9)


def test_one_process_needs_no_group() -> None:
    layer = ddp_cases.Waves()
    opt = WassersteinProx(layer.parameters(), process_group="auto")
    assert ddp_cases.train(layer, opt, *ddp_cases.data(), steps=1)[0]["evaluations"] > 1
