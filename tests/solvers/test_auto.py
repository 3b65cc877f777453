"""Which inverse Hessian the default solver takes, and that it finds the minimum with it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from conftest import closure_for
from torch_wprox import FrobeniusProx
from torch_wprox.solvers import BFGS, Auto

# A step of length 1 counts as short, the curvatures being at most 1000; one of 1000 as long.
SHORT, LONG = 1.0, 1e3


@dataclass
class Run:
    """An optimizer on a separable quadratic in N numbers, and its closure's minimum."""

    opt: FrobeniusProx
    p: Tensor
    curvature: Tensor
    minimum: Tensor

    def step(self) -> Tensor:
        """Take a step; return its minimum, in closed form."""
        W, kappa = self.p.detach().clone(), 1.0 / float(self.opt.param_groups[0]["lr"])
        closure = closure_for(
            self.opt, lambda: 0.5 * (self.curvature * (self.p - self.minimum).square()).sum()
        )
        self.opt.step(closure)
        return (self.curvature * self.minimum + kappa * W) / (self.curvature + kappa)

    @property
    def memory(self) -> dict[str, Any]:
        """What the solver carries over."""
        memory = self.opt.state_dict()["prox"]["carried"]["memory"]
        return {} if memory is None else memory


def run(gamma: float, solver: Auto | BFGS, max_eval: int = 600, N: int = 1200) -> Run:
    p = torch.nn.Parameter(torch.full((N,), 0.6, dtype=torch.float64))
    opt = FrobeniusProx([p], gamma, solver=solver, max_eval=max_eval, tolerance_grad=1e-10)
    curvature = torch.logspace(-2, 3, N, dtype=torch.float64)
    return Run(opt, p, curvature, torch.linspace(-1.0, 1.0, N, dtype=torch.float64))


def test_a_short_step_takes_no_matrix_and_finds_the_minimum() -> None:
    made = run(SHORT, Auto())
    exact = made.step()
    assert torch.allclose(made.p, exact, atol=1e-6)
    assert made.memory["steps"].shape == (50, 1200)


def test_a_short_step_is_that_of_bfgs_until_this_takes_a_matrix() -> None:
    ours, dense = run(SHORT, Auto(), 60), run(SHORT, BFGS(), 60)
    for made in (ours, dense):
        made.step()
    assert torch.equal(ours.p, dense.p)
    assert ours.memory["inverse_hessian"].shape == (1200,)


def test_terms_of_short_steps_never_become_a_matrix() -> None:
    made = run(SHORT, Auto(), 60)
    for _ in range(4):
        made.step()
        assert made.memory.get("inverse_hessian", torch.empty(0)).ndim == 1
    assert "steps" in made.memory


def test_a_long_step_takes_a_matrix_and_so_do_those_after_it() -> None:
    made = run(LONG, Auto(), 150)
    made.step()
    assert made.memory["inverse_hessian"].shape == (1200, 1200)
    for _ in range(4):  # the gradient has fallen: of themselves these would be short
        made.step()
        assert made.memory["inverse_hessian"].shape == (1200, 1200)


@pytest.mark.parametrize(("N", "keys"), [(1000, "inverse_hessian"), (3001, "steps")])
def test_small_problems_take_a_matrix_and_large_ones_never(N: int, keys: str) -> None:
    made = run(SHORT if N == 1000 else LONG, Auto(), 120, N)
    made.step()
    assert keys in made.memory


def test_a_step_that_becomes_long_takes_a_matrix() -> None:
    made = run(SHORT, Auto(), 200)
    made.step()
    assert "steps" in made.memory
    made.opt.param_groups[0]["lr"] = 1e9
    made.step()
    assert "inverse_hessian" in made.memory


@pytest.mark.parametrize(("remember", "kept"), [(0, 0), (7, 7)])
def test_short_steps_remember_no_more_pairs_than_asked_for(remember: int, kept: int) -> None:
    made = run(SHORT, Auto(remember=remember), 200)
    made.step()
    assert len(made.memory.get("steps", ())) == kept


def test_a_gamma_that_falls_begins_anew_without_a_matrix() -> None:
    made = run(SHORT, Auto(), 60)
    made.step()
    made.opt.param_groups[0]["lr"] = SHORT / 2
    exact = made.step()
    assert made.memory["inverse_hessian"].shape == (1200,)
    assert (made.p - exact).norm() < 0.1 * exact.norm()


def test_a_checkpoint_of_short_steps_goes_on_as_the_run_would() -> None:
    first, second = run(SHORT, Auto(), 150), run(SHORT, Auto(), 150)
    first.step()
    with torch.no_grad():
        second.p.copy_(first.p)
    second.opt.load_state_dict(first.opt.state_dict())
    for made in (first, second):
        made.step()
    assert torch.equal(first.p, second.p)
