"""Every rule that ends the inner loop holds where the status says so."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from torch_wprox import Status, StepReport, prox

SOLVERS = ("gd", "bfgs", "lbfgs")
GAMMA = 2.0


def anchor(dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.linspace(-2, 2, 12, dtype=dtype).view(6, 2)


def smooth(V: Tensor) -> Tensor:
    scale = torch.linspace(1, 30, V.numel(), dtype=V.dtype).view_as(V)
    return (scale * V.square() / 2 + V.cos()).sum()


def pull(V: Tensor, W: Tensor, report: StepReport) -> float:
    """|V - W_sigma|/(m gamma)."""
    sigma = torch.arange(len(W)) if report.assignment is None else report.assignment
    return float((V - W[sigma]).norm()) / (len(W) * GAMMA)


@pytest.mark.parametrize("solver", SOLVERS)
def test_converged_means_that_the_gradient_rule_holds(solver: str) -> None:
    W = anchor()
    first = W.clone().requires_grad_()
    (grad,) = torch.autograd.grad(smooth(first), first)
    _, report = prox(smooth, W, GAMMA, solver=solver, max_eval=500, tolerance_grad=1e-5)
    assert report.status is Status.CONVERGED
    assert report.residual <= 1e-5 * float(grad.norm())


@pytest.mark.parametrize("rho", [0.1, 0.9])
@pytest.mark.parametrize("solver", SOLVERS)
def test_inexact_means_that_the_relative_rule_holds_and_nothing_finer(
    solver: str, rho: float
) -> None:
    W = anchor()
    V, report = prox(
        smooth, W, GAMMA, solver=solver, max_eval=500, tolerance_grad=1e-5, inexact=rho
    )
    assert report.status is Status.INEXACT
    assert report.residual <= rho * pull(V, W, report) * (1 + 1e-9)
    _, exact = prox(smooth, W, GAMMA, solver=solver, max_eval=500, tolerance_grad=1e-5)
    assert report.evaluations < exact.evaluations


@pytest.mark.parametrize("solver", SOLVERS)
def test_max_eval_means_that_all_evaluations_were_made(solver: str) -> None:
    _, report = prox(smooth, anchor(), GAMMA, solver=solver, max_eval=6, tolerance_grad=0.0)
    assert report.status is Status.MAX_EVAL
    assert report.evaluations == 6


@pytest.mark.parametrize("solver", SOLVERS)
def test_a_trial_that_is_not_finite_is_rejected_and_the_step_goes_on(solver: str) -> None:
    W = torch.tensor([[0.5], [3.0]], dtype=torch.float64)
    tried = []

    def fn(V: Tensor) -> Tensor:  # nan where any V <= 0; its gradient pushes there
        tried.append(float(V.detach().min()))
        return (10 * V - V.log()).sum()

    V, report = prox(fn, W, GAMMA, solver=solver, max_eval=500, tolerance_grad=1e-9)
    assert min(tried) < 0
    assert report.status is Status.CONVERGED
    assert math.isfinite(report.objective)
    assert bool((V > 0).all())


@pytest.mark.parametrize("solver", SOLVERS)
def test_the_rounding_of_a_bfloat16_forward_ends_the_loop(solver: str) -> None:
    def fn(V: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            z = V @ V.T
        return (z.float() - torch.eye(6)).square().mean()

    _, report = prox(
        fn, anchor(torch.float32), GAMMA, solver=solver, max_eval=3000, tolerance_grad=0.0
    )
    assert report.status is Status.STALLED
    assert report.evaluations < 1500
    assert report.objective < report.loss_before
