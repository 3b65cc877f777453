"""Curvature survives a step only where F is still the same function."""

from __future__ import annotations

import io
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor

from conftest import closure_for, closure_of, sinus_data, sinus_layer
from lightning_examples import problems
from torch_wprox import FrobeniusProx, MeanFieldLayer, WassersteinProx
from torch_wprox.optim import warm_start
from torch_wprox.solvers import BFGS, quasi_newton
from torch_wprox.solvers.curvature_pairs import CurvaturePairs


def recalled(
    optimizer: Any, batches: list[tuple[Tensor, Tensor]], layer: MeanFieldLayer
) -> list[bool]:
    """Whether each step was given the memory of the one before."""
    given = []
    recall = warm_start.recall

    def spy(*args: Any) -> Any:
        given.append(recall(*args))
        return given[-1]

    with mock.patch("torch_wprox.optim.warm_start.recall", spy):
        for x, y in batches:
            optimizer.step(closure_of(layer, optimizer, x, y))
    return [memory is not None for memory in given]


@pytest.mark.parametrize("optimizer", [WassersteinProx, FrobeniusProx])
@pytest.mark.parametrize("solver", ["bfgs", "lbfgs", "gd", "auto"])
@pytest.mark.parametrize("max_eval", [7, 60])
def test_full_batches_carry_over_whether_or_not_the_last_point_was_the_best(
    optimizer: type, solver: str, max_eval: int
) -> None:
    layer = sinus_layer(m=10)
    opt = optimizer(layer.parameters(), 1.0, solver=solver, max_eval=max_eval)
    assert recalled(opt, [sinus_data()] * 4, layer) == [False, True, True, True]


def test_another_batch_carries_nothing_over() -> None:
    layer = sinus_layer(m=10)
    x, y = sinus_data()
    opt = WassersteinProx(layer.parameters(), 1.0, max_eval=20)
    batches = [(x, y), (x[1:], y[1:]), (x[1:], y[1:]), (x, y)]
    assert recalled(opt, batches, layer) == [False, False, True, False]


def test_parameters_moved_by_hand_carry_nothing_over() -> None:
    layer = sinus_layer(m=10)
    opt = WassersteinProx(layer.parameters(), 1.0, max_eval=20)
    assert recalled(opt, [sinus_data()], layer) == [False]
    with torch.no_grad():
        layer.particles.mul_(1.01)
    assert recalled(opt, [sinus_data()], layer) == [False]


def test_recalled_pairs_are_those_of_the_new_prox_objective() -> None:
    # y_P = y_F + s/(m gamma): F's curvature with the distance term of the new gamma.
    steps = torch.randn(3, 4, dtype=torch.float64)
    memory = {"steps": steps, "differences": 2 * steps}
    objective = mock.Mock()
    objective.distance_hessian.return_value = torch.full((4,), 0.5, dtype=torch.float64)
    recalled_pairs = CurvaturePairs(20).recall(memory, objective)
    assert recalled_pairs is not None
    for s, y in zip(*recalled_pairs, strict=True):
        assert torch.allclose(y, 2.5 * s)


def carried_by(gamma: float, remember: int | None) -> tuple[WassersteinProx, MeanFieldLayer]:
    layer = sinus_layer(m=10)
    opt = WassersteinProx(layer.parameters(), gamma, solver=BFGS(remember=remember), max_eval=30)
    opt.step(closure_of(layer, opt, *sinus_data()))
    return opt, layer


@pytest.mark.parametrize(("remember", "numbers"), [(None, 20 * 20 + 20), (7, 2 * 7 * 20), (0, 0)])
def test_a_state_dict_is_as_large_as_remember_says(remember: int | None, numbers: int) -> None:
    opt, _ = carried_by(1.0, remember)
    carried = opt.state_dict()["prox"]["carried"]
    memory = carried["memory"] or {}
    assert sum(v.numel() for v in memory.values() if isinstance(v, Tensor)) == numbers


@pytest.mark.parametrize(("gamma", "smaller"), [(1.0, False), (0.01, True), (100.0, False)])
def test_the_whole_matrix_is_carried_and_follows_a_smaller_gamma(
    gamma: float, smaller: bool
) -> None:
    opt, layer = carried_by(1.0, None)
    H = opt.state_dict()["prox"]["carried"]["memory"]["inverse_hessian"].clone()
    opt.param_groups[0]["lr"] = gamma
    began = []
    descend = quasi_newton.descend

    def spy(objective: Any, stopping: Any, inverse: Any, *rest: Any) -> Any:
        began.append(torch.stack([inverse.times(e) for e in torch.eye(20, dtype=torch.float64)]))
        return descend(objective, stopping, inverse, *rest)

    with mock.patch("torch_wprox.solvers.bfgs.descend", spy):
        opt.step(closure_of(layer, opt, *sinus_data()))
    more = 1 / (10 * gamma) - 1 / 10 if smaller else 0.0
    exact = torch.linalg.inv(torch.linalg.inv(H) + more * torch.eye(20, dtype=torch.float64))
    assert torch.allclose(began[0], exact, rtol=1e-6, atol=1e-6 * exact.abs().max().item())


def test_an_exception_leaves_the_matrix_of_the_last_step_as_it_was() -> None:
    opt, layer = carried_by(1.0, None)
    H = opt.state_dict()["prox"]["carried"]["memory"]["inverse_hessian"]
    before, runs = H.clone(), 0

    def closure() -> Tensor:
        nonlocal runs
        runs += 1
        if runs == 12:
            raise InterruptedError
        return closure_of(layer, opt, *sinus_data())()

    with pytest.raises(InterruptedError):
        opt.step(closure)
    assert torch.equal(opt.state_dict()["prox"]["carried"]["memory"]["inverse_hessian"], before)


def test_carrying_over_saves_evaluations_on_a_full_batch() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(40, 4, dtype=torch.float64, generator=generator)
    y = torch.sin(x.sum(1, keepdim=True))

    def final() -> float:
        layer = MeanFieldLayer(
            4, 30, dtype=torch.float64, generator=torch.Generator().manual_seed(1)
        )
        opt = FrobeniusProx(layer.parameters(), 100.0, solver="lbfgs", max_eval=20)
        for _ in range(25):
            opt.step(closure_of(layer, opt, x, y))
        return float(opt.report.loss_after)

    with mock.patch("torch_wprox.optim.warm_start.recall", return_value=None):
        forgetful = final()
    assert final() < 0.5 * forgetful


# A length survives where curvature does not.


def minibatch_step(opt, layer, x, y):
    closure = closure_for(opt, lambda: (layer(x) - y).square().mean())
    opt.step(closure)
    return opt.report


@pytest.mark.parametrize("solver", ["gd", "bfgs", "lbfgs"])
def test_minibatch_steps_with_few_evaluations_keep_descending_at_any_gamma(solver):
    g = torch.Generator().manual_seed(0)
    x, y = (torch.randn(64, k, generator=g, dtype=torch.float64) for k in (3, 1))
    layer = MeanFieldLayer(3, 40, generator=g, dtype=torch.float64)
    opt = WassersteinProx(layer.parameters(), gamma=1e6, solver=solver, max_eval=6)
    reports = [minibatch_step(opt, layer, x[i : i + 8], y[i : i + 8]) for i in range(0, 64, 8)]
    later = reports[3:]  # the first ones look for the length
    assert all(report.loss_after < report.loss_before for report in later)


def test_the_learnt_length_is_that_of_barzilai_and_borwein():
    # F = (c/2)|v|^2 has the length 1/c wherever the step ends.
    p = torch.nn.Parameter(torch.tensor([1.0, -2.0], dtype=torch.float64))
    opt = FrobeniusProx([p], gamma=0.3, max_eval=5)

    closure = closure_for(opt, lambda: 2.0 * p.square().sum())
    opt.step(closure)
    assert opt.state_dict()["prox"]["length"] == pytest.approx(0.25, rel=1e-12)


def test_a_step_whose_trials_were_all_too_long_leaves_a_shorter_length():
    p = torch.nn.Parameter(torch.tensor([1e-3], dtype=torch.float64))
    opt = FrobeniusProx([p], gamma=1e9, max_eval=3, solver="gd")

    closure = closure_for(opt, lambda: 1e6 * p.square().sum())
    lengths = []
    for _ in range(3):
        opt.step(closure)
        assert p.item() == 1e-3
        lengths.append(opt.state_dict()["prox"]["length"])
    assert lengths[0] > lengths[1] > lengths[2] > 0


@pytest.mark.parametrize("solver", ["gd", "bfgs", "lbfgs"])
def test_trials_that_rounding_cannot_tell_from_the_anchor_shorten_nothing(solver):
    # A flat loss with a gradient that does not shrink, as that of coarse weights near their floor.
    p = torch.nn.Parameter(torch.tensor([1.0, -2.0], dtype=torch.float64))
    opt = FrobeniusProx([p], gamma=1.0, max_eval=60, solver=solver)

    def take_step(is_flat):
        anchor = p.detach().clone()

        def closure():
            opt.zero_grad()
            slope = 1.0 if torch.equal(p, anchor) else 2.0
            loss = 1.0 + slope * (p - p.detach()).sum() if is_flat else p.square().sum()
            loss.backward()
            return loss

        opt.step(closure)
        return opt.report

    for _ in range(3):
        take_step(is_flat=True)
        assert opt.state_dict()["prox"]["length"] is None
    assert torch.equal(p, torch.tensor([1.0, -2.0], dtype=torch.float64))
    assert take_step(is_flat=False).loss_after == pytest.approx(5.0 / 9.0)


@pytest.mark.parametrize("distance", ["emd", "sinkhorn", "sliced"])
@pytest.mark.parametrize("solver", ["gd", "adam", "bfgs", "lbfgs"])
def test_minibatch_runs_resume_bit_by_bit(solver, distance):
    g = torch.Generator().manual_seed(0)
    x, y = (torch.randn(32, k, generator=g, dtype=torch.float64) for k in (3, 1))

    def fresh():
        seeded = torch.Generator().manual_seed(1)
        layer = MeanFieldLayer(3, 8, generator=seeded, dtype=torch.float64)
        prox = {"gamma": 10.0, "solver": solver, "distance": distance, "max_eval": 5}
        return layer, WassersteinProx(layer.parameters(), **prox)

    def run(layer, opt, first, last):
        for i in range(8 * first, 8 * last, 8):
            minibatch_step(opt, layer, x[i : i + 8], y[i : i + 8])

    layer, opt = fresh()
    run(layer, opt, 0, 2)
    file = io.BytesIO()
    torch.save([layer.state_dict(), opt.state_dict()], file)
    run(layer, opt, 2, 4)

    file.seek(0)
    weights, state = torch.load(file, weights_only=True)
    assert state["prox"]["length"] is not None
    resumed, again = fresh()
    resumed.load_state_dict(weights)
    again.load_state_dict(state)
    run(resumed, again, 2, 4)
    for p, q in zip(layer.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(p, q)
    assert str(again.state_dict()) == str(opt.state_dict())


def test_float32_steps_go_on_after_a_step_that_ended_in_rounding() -> None:
    # The last decrease of a converged step is rounding: the next step must not begin with it.
    (x, y), _ = problems.diabetes()
    layer = MeanFieldLayer(10, 100, output_bias=True)
    optimizer = FrobeniusProx(layer.parameters(), gamma=1.0, max_eval=100)
    for _ in range(2):
        optimizer.step(closure_of(layer, optimizer, x, y))
        assert optimizer.report.loss_after < 0.95 * optimizer.report.loss_before


def test_short_steps_of_few_evaluations_follow_the_flow() -> None:
    # Each step begins with a larger slope than the last one ended with.
    x, y = problems.sine_period()
    layer = problems.balanced_layer(50, 1.0, 0)
    optimizer = FrobeniusProx(layer.parameters(), 0.005, max_eval=15, tolerance_grad=1e-3)
    for _ in range(30):
        optimizer.step(closure_of(layer, optimizer, x, y))
    assert optimizer.report.loss_after < 1e-3  # 0.0023 where steps begin too short
