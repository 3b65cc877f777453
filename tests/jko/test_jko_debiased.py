"""The debiased step: the Sinkhorn divergence in place of W_eps."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from test_jko_methods import Loss, plane, solve, squared
from torch import Tensor

from torch_wprox.jko.debiased import Debiased, self_potential, solve_debiased
from torch_wprox.jko.plan import plan_of, transport_cost
from torch_wprox.jko.problem import JKOProblem, OutputMap, Solution

F64 = torch.float64


def debiased(
    problem: JKOProblem,
    outputs: OutputMap,
    method: str = "newton",
    max_rounds: int = 100,
    h: Loss = squared,
) -> Debiased:
    def plain(problem: JKOProblem, start: Tensor | None) -> Solution:
        return solve(method, problem, outputs, h, start, tolerance=1e-10)

    return solve_debiased(problem, plain, None, max_rounds=max_rounds)


def random_q(n: int, seed: int = 0) -> Tensor:
    q = torch.rand(2, n, n, generator=torch.Generator().manual_seed(seed), dtype=F64)
    q[0] *= 2
    return q / q.sum()


@pytest.mark.parametrize("epsilon", [0.3, 1.0, 5.0])
def test_self_potential_gives_q_by_a_symmetric_plan(epsilon: float) -> None:
    q = random_q(9)
    q[0, :3] = 0
    problem, _ = plane(9, epsilon=epsilon, tau=1.0, q=q)
    log_d = self_potential(problem.kernel, q)
    marginal = torch.exp(log_d + problem.kernel.lse(log_d, problem.kernel.windows([0.0, 0.0])))
    assert float((marginal - q).abs().sum()) < 1e-14


@pytest.mark.parametrize("epsilon", [0.3, 1.0, 5.0])
def test_debiased_step_without_a_loss_returns_q(epsilon: float) -> None:
    problem, outputs = plane(9, epsilon=epsilon, tau=1.0, q=random_q(9))
    found = debiased(problem, outputs, h=lambda u: 0.0 * u.sum())
    torch.testing.assert_close(found.solution.plan.p, problem.q, rtol=0, atol=1e-15)
    assert found.history[0] == pytest.approx(0.0, abs=1e-12)


@pytest.mark.parametrize("max_rounds", [1, 4, 20])
def test_debiased_flow_never_raises_the_loss(max_rounds: int) -> None:
    q = None
    losses = [math.inf]
    for _ in range(3):
        problem, outputs = plane(9, epsilon=2.0, tau=0.5, mass=5.0, q=q)
        losses.append(squared(outputs.of(problem.q).view(-1, 1)).item())
        found = debiased(problem, outputs, max_rounds=max_rounds)
        assert found.rounds <= max_rounds
        losses.append(found.solution.loss)
        q = found.solution.plan.p
    assert all(after <= before + 1e-12 for before, after in pairwise(losses))
    # The plain step diffuses instead: on this problem it does raise the loss.
    problem, outputs = plane(9, epsilon=2.0, tau=0.5, mass=5.0, q=q)
    assert solve("newton", problem, outputs, squared).loss > losses[-1]


def test_debiased_objective_falls_and_is_the_sinkhorn_divergence() -> None:
    problem, outputs = plane(7, epsilon=4.0, tau=2.0, mass=2.0, q=random_q(7))
    found = debiased(problem, outputs)
    assert list(found.history) == sorted(found.history, reverse=True)
    assert len(found.history) > 3
    p, q = found.solution.plan.p, problem.q
    divergence = wasserstein_eps(problem, p, q) - 0.5 * (
        wasserstein_eps(problem, p, p) + wasserstein_eps(problem, q, q)
    )
    exact = divergence + problem.tau * squared(outputs.of(p).view(-1, 1)).item()
    # J is above the divergence by how far d is from the self potential of p.
    assert exact <= found.solution.objective + 1e-12
    assert found.solution.objective == pytest.approx(exact, abs=1e-5)


def wasserstein_eps(problem: JKOProblem, p: Tensor, q: Tensor) -> float:
    """W_eps between two given measures, by Sinkhorn's iteration."""
    log_a = torch.zeros_like(p)
    for _ in range(300):
        plan = plan_of(problem.kernel, q, log_a)
        log_a = plan.log_a + torch.log(p / plan.p)
    return problem.epsilon * transport_cost(plan_of(problem.kernel, q, log_a))


@pytest.mark.parametrize("method", ["lbfgs", "krylov", "dykstra"])
def test_every_method_solves_the_debiased_step(method: str) -> None:
    problem, outputs = plane(5, epsilon=8.0, tau=1.0, q=random_q(5))
    reference = debiased(problem, outputs, max_rounds=4)
    found = debiased(problem, outputs, method, max_rounds=4)
    assert found.solution.objective == pytest.approx(reference.solution.objective, abs=1e-9)


def test_debiased_step_leaves_cells_without_mass_empty() -> None:
    q = torch.zeros(2, 9, 9, dtype=F64)
    q[0, 3:6, 3:6] = 1 / 9
    problem, outputs = plane(9, epsilon=1.0, tau=3.0, q=q)
    found = debiased(problem, outputs)
    p = found.solution.plan.p
    assert bool(p.isfinite().all())
    assert float(p.sum()) == pytest.approx(1.0, abs=1e-13)
    assert not p[q == 0].any()  # the divergence has no term that would bring mass there
