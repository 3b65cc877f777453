"""The four methods on explicit losses: exact values, convex programs, and each other."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import cvxpy as cp
import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from conftest import sinus_data
from torch_wprox import Status
from torch_wprox.jko.dykstra import solve_dykstra
from torch_wprox.jko.kernel import GridKernel
from torch_wprox.jko.krylov import gmres, solve_krylov
from torch_wprox.jko.lbfgs import solve_lbfgs
from torch_wprox.jko.loss import ExplicitLoss, LossAt
from torch_wprox.jko.newton import solve_newton
from torch_wprox.jko.plan import Plan, plan_of, transport_cost
from torch_wprox.jko.problem import JKOProblem, OutputMap, Solution

F64 = torch.float64
METHODS = ["newton", "lbfgs", "krylov", "dykstra"]
# Thousands of iterations for what the others do in ten.
EACH_METHOD = [*METHODS[:-1], pytest.param("dykstra", marks=pytest.mark.slow)]
Loss = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class MeasureLoss:
    """f(p) = h(Phi p) with the gradient of autograd."""

    h: Loss
    outputs: OutputMap
    precision: float = 1e-7

    def __call__(self, p: Tensor) -> LossAt:
        p = p.detach().requires_grad_()
        value = self.h(self.outputs.of(p).view(self.outputs.samples, self.outputs.count))
        return LossAt(value.item(), torch.autograd.grad(value, p)[0])


def solve(
    method: str,
    problem: JKOProblem,
    outputs: OutputMap,
    h: Loss,
    start: Tensor | None = None,
    tolerance: float = 1e-12,
    max_iterations: int = 20_000,
) -> Solution:
    options = {"tolerance": tolerance, "max_iterations": max_iterations}
    if method == "krylov":
        return solve_krylov(problem, MeasureLoss(h, outputs), start, **options)
    solver = {"newton": solve_newton, "lbfgs": solve_lbfgs, "dykstra": solve_dykstra}[method]
    return solver(
        problem, outputs, ExplicitLoss(h, outputs.samples, outputs.count), start, **options
    )


def line(tau: float, features: list[float]) -> tuple[JKOProblem, OutputMap]:
    """c = |i - j|^2 on {0, 1, 2}, q = (.5, .3, .2), epsilon = .5."""
    q = torch.tensor([[0.5, 0.3, 0.2]], dtype=F64)
    kernel = GridKernel([1.0], [3], 0.5)
    outputs = OutputMap(torch.tensor([features], dtype=F64), (1.0,), (0,), 1)
    return JKOProblem(kernel, q, 0.5, tau), outputs


def plane(
    n: int,
    epsilon: float,
    tau: float,
    *,
    side: float = 4.0,
    mass: float = 1.0,
    outputs: int = 1,
    q: Tensor | None = None,
) -> tuple[JKOProblem, OutputMap]:
    """The sinus data on an n x n grid on [-side, side]^2, blocks (+, -) for every output."""
    x, _ = sinus_data()
    axis = torch.linspace(-side, side, n, dtype=F64)
    w, b = torch.meshgrid(axis, axis, indexing="ij")
    features = mass * torch.relu(x.view(-1, 1, 1) * w + b)
    signs = (1.0, -1.0) * outputs
    q = torch.full((2 * outputs, n, n), 1 / (2 * outputs * n * n), dtype=F64) if q is None else q
    dx = 2 * side / (n - 1)
    problem = JKOProblem(GridKernel([dx, dx], [n, n], epsilon), q, epsilon, tau)
    index = tuple(c for c in range(outputs) for _ in range(2))
    return problem, OutputMap(features, signs, index, outputs)


def squared(u: Tensor) -> Tensor:
    return (u - sinus_data()[1]).square().mean()


def logistic(u: Tensor) -> Tensor:
    labels = (sinus_data()[1] > 0).to(F64)
    return F.binary_cross_entropy_with_logits(3 * u, labels)


def cross_entropy(u: Tensor) -> Tensor:
    return F.cross_entropy(3 * u, torch.tensor([0, 1, 2, 1, 0]))


def nonseparable(u: Tensor) -> Tensor:
    """Convex, not a sum over samples: its Hessian is full."""
    return torch.logsumexp(torch.cat([u, -u]), dim=0).sum() + 0.1 * u.sum().square()


# -- exact values ----------------------------------------------------------------------------------


@pytest.mark.parametrize("method", EACH_METHOD)
def test_step_without_a_loss_is_the_entropic_smoothing_of_q(method: str) -> None:
    problem, outputs = line(1.0, [0.0, 1.0, 2.0])
    found = solve(method, problem, outputs, lambda u: 0.0 * u.sum())
    exact = torch.tensor([[0.4722796220, 0.3195132103, 0.2082071676]], dtype=F64)
    torch.testing.assert_close(found.plan.p, exact, rtol=0, atol=1e-10)


@pytest.mark.parametrize("method", EACH_METHOD)
def test_step_of_a_linear_loss_has_its_exact_value(method: str) -> None:
    problem, outputs = line(0.7, [0.0, 1.0, -1.0])
    found = solve(method, problem, outputs, lambda u: u.sum())
    exact = torch.tensor([[0.5268542049, 0.0972427138, 0.3759030813]], dtype=F64)
    torch.testing.assert_close(found.plan.p, exact, rtol=0, atol=1e-10)


@pytest.mark.parametrize("method", EACH_METHOD)
def test_step_of_a_squared_loss_has_its_exact_value(method: str) -> None:
    problem, outputs = line(1.0, [0.0, 1.0, 2.0])
    found = solve(method, problem, outputs, lambda u: (u - 1.5).square().sum())
    exact = torch.tensor([[0.2783117845, 0.3903386659, 0.3313495496]], dtype=F64)
    torch.testing.assert_close(found.plan.p, exact, rtol=0, atol=1e-10)
    assert found.loss == pytest.approx(0.1997752395, abs=1e-10)
    assert found.objective == pytest.approx(-0.7422939027, abs=1e-10)
    if method in ("newton", "lbfgs"):
        assert float(found.start) == pytest.approx(-0.8939244699, abs=1e-10)


@pytest.mark.parametrize("method", EACH_METHOD)
def test_flow_of_the_sinus_data_has_its_exact_values(method: str) -> None:
    q, losses = None, []
    for _ in range(3):
        problem, outputs = plane(11, epsilon=1.0, tau=2.0, q=q)
        found = solve(method, problem, outputs, squared)
        q = found.plan.p
        losses.append(found.loss)
        torch.testing.assert_close(
            q.sum((1, 2)), torch.full((2,), 0.5, dtype=F64), rtol=0, atol=1e-13
        )
    assert losses == pytest.approx([0.5714030551, 0.5218792882, 0.5047712099], abs=1e-10)


# -- the methods against each other ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("loss", "outputs"), [(squared, 1), (logistic, 1), (cross_entropy, 3), (nonseparable, 1)]
)
@pytest.mark.slow
def test_all_methods_agree_to_1e_8(loss: Loss, outputs: int) -> None:
    problem, phi = plane(9, epsilon=1.0, tau=3.0, mass=2.0, outputs=outputs)
    reference, *others = (solve(method, problem, phi, loss) for method in METHODS)
    for found in others:
        assert found.objective == pytest.approx(reference.objective, abs=1e-10)
        difference = (found.plan.p - reference.plan.p).abs().max()
        assert float(difference) < 1e-8 * float(reference.plan.p.max())


@pytest.mark.parametrize("method", ["newton", "lbfgs", "krylov"])
def test_step_is_found_where_the_potential_spans_more_than_1000(method: str) -> None:
    problem, outputs = plane(17, epsilon=0.5, tau=100.0, mass=40.0)
    # A loss steep enough that a falls by far more than exp can express.
    steep = solve(method, problem, outputs, lambda u: 10.0 * u.sum())
    span = steep.plan.log_a.flatten(1)
    assert float((span.amax(1) - span.amin(1)).min()) > 1000
    assert steep.status is Status.CONVERGED
    assert float((steep.plan.p.sum((1, 2)) - 0.5).abs().max()) < 1e-11


@pytest.mark.parametrize("method", EACH_METHOD)
def test_mass_of_every_block_is_kept_at_every_iterate(
    method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Plan] = []

    def recording(problem: JKOProblem, phi: Tensor) -> Plan:
        seen.append(plan_of(problem.kernel, problem.q, phi / -problem.epsilon, problem.log_d))
        return seen[-1]

    monkeypatch.setattr(JKOProblem, "plan", recording)
    q = torch.rand(2, 9, 9, generator=torch.Generator().manual_seed(0), dtype=F64)
    q[0] *= 3
    q /= q.sum()
    problem, outputs = plane(9, epsilon=1.0, tau=10.0, q=q, mass=5.0)
    solve(method, problem, outputs, squared)
    assert len(seen) >= 3
    for plan in seen:
        assert float((plan.p.sum((1, 2)) - q.sum((1, 2))).abs().max()) < 1e-12


@pytest.mark.parametrize("method", EACH_METHOD)
def test_flow_never_raises_transport_plus_loss(method: str) -> None:
    q = None
    for _ in range(4):
        problem, outputs = plane(9, epsilon=1.0, tau=3.0, mass=2.0, q=q)
        found = solve(method, problem, outputs, squared)
        q = problem.q
        stay = staying(problem) + problem.tau * squared(outputs.of(q).view(-1, 1)).item()
        assert found.objective <= stay + 1e-12
        q = found.plan.p


def staying(problem: JKOProblem) -> float:
    """W_eps(q, q), by the symmetric Sinkhorn iteration."""
    q, windows = problem.q, problem.kernel.windows([0.0] * (problem.q.ndim - 1))
    log_d = q.log() / 2
    for _ in range(60):
        log_d = (log_d + q.log() - problem.kernel.lse(log_d, windows)) / 2
    return problem.epsilon * float(2 * (q * log_d).sum() - q.sum())


# -- convex programs -------------------------------------------------------------------------------


def convex_program(
    problem: JKOProblem, outputs: OutputMap, *, entropic: bool
) -> tuple[np.ndarray, float]:
    """The step by an interior-point method: p (B, N) and the objective."""
    blocks = problem.q.shape[0]
    n = problem.q[0].numel()
    side = math.isqrt(n)
    dx = math.sqrt(problem.kernel.decay[0] * problem.epsilon)
    axis = dx * np.arange(side)
    x = np.stack(np.meshgrid(axis, axis, indexing="ij"), axis=-1).reshape(-1, 2)
    cost = ((x[:, None] - x[None]) ** 2).sum(-1)
    plans = [cp.Variable((n, n), nonneg=True) for _ in range(blocks)]
    q = problem.q.flatten(1).numpy()
    phi = outputs.features.flatten(1).numpy()
    u = sum(s * phi @ cp.sum(P, axis=1) for s, P in zip(outputs.signs, plans, strict=True))
    y = sinus_data()[1].flatten().numpy()
    value = problem.tau * cp.sum_squares(u - y) / len(y)
    for P in plans:
        value += cp.sum(cp.multiply(cost, P))
        if entropic:
            value += problem.epsilon * (-cp.sum(cp.entr(P)) - cp.sum(P))
    marginals = [cp.sum(P, axis=0) == q[b] for b, P in enumerate(plans)]
    program = cp.Problem(cp.Minimize(value), marginals)
    program.solve(solver=cp.CLARABEL)
    return np.stack([P.value.sum(axis=1) for P in plans]), float(program.value)


def test_step_is_the_minimiser_of_the_convex_program() -> None:
    problem, outputs = plane(5, epsilon=0.5, tau=2.0, side=1.0, mass=4.0)
    found = solve("newton", problem, outputs, squared)
    p, value = convex_program(problem, outputs, entropic=True)
    # Clarabel's duality gap is 1e-8; p is accurate to its root times the curvature.
    assert found.objective == pytest.approx(value, abs=1e-6)
    assert found.plan.p.flatten(1).numpy() == pytest.approx(p, abs=1e-5)


def test_step_tends_to_the_exact_wasserstein_step_with_epsilon() -> None:
    gaps = []
    for epsilon in (1.0, 0.3, 0.1, 0.03):
        problem, outputs = plane(5, epsilon=epsilon, tau=2.0, side=2.0)
        found = solve("newton", problem, outputs, squared)
        # <c, pi> + tau f: W_eps without its entropy.
        unregularised = sharp_cost(problem, found.plan) + problem.tau * found.loss
        _, exact = convex_program(problem, outputs, entropic=False)
        gaps.append(unregularised - exact)
        # pi (log pi - 1) ranges over log(50 cells) + log(25 targets) between any two plans.
        assert -1e-7 <= gaps[-1] <= epsilon * math.log(50 * 25)
    assert gaps == sorted(gaps, reverse=True)
    assert gaps[-1] < 0.01


def sharp_cost(problem: JKOProblem, plan: Plan) -> float:
    """<c, pi> by the dense plan."""
    n = plan.q[0].numel()
    side = math.isqrt(n)
    h = problem.kernel.decay[0]
    axis = torch.arange(side, dtype=F64)
    x = torch.cartesian_prod(axis, axis)
    c = h * problem.epsilon * (x[:, None] - x[None]).square().sum(-1)
    a, b = plan.log_left.flatten(1), plan.log_b.flatten(1)
    pi = torch.exp(a[:, :, None] + b[:, None, :] - c / problem.epsilon)
    torch.testing.assert_close(pi.sum(2), plan.p.flatten(1), rtol=0, atol=1e-14)
    entropy = problem.epsilon * float((pi * (torch.log(pi.clamp(min=1e-300)) - 1)).sum())
    cost = float((c * pi).sum())
    assert cost + entropy == pytest.approx(problem.epsilon * transport_cost(plan), abs=1e-12)
    return cost


# -- edges -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", EACH_METHOD)
def test_one_cell_and_an_empty_block_stay(method: str) -> None:
    q = torch.tensor([[[1.0]], [[0.0]]], dtype=F64)
    problem = JKOProblem(GridKernel([0.0, 0.0], [1, 1], 1.0), q, 1.0, 2.0)
    outputs = OutputMap(torch.ones(1, 1, 1, dtype=F64), (1.0, -1.0), (0, 0), 1)
    found = solve(method, problem, outputs, lambda u: (u - 3).square().sum())
    torch.testing.assert_close(found.plan.p, q, rtol=0, atol=1e-14)


@pytest.mark.parametrize("method", EACH_METHOD)
def test_cells_without_mass_give_none_and_receive_some(method: str) -> None:
    q = torch.zeros(2, 9, 9, dtype=F64)
    q[0, 4, 4] = 1.0
    problem, outputs = plane(9, epsilon=1.0, tau=3.0, q=q)
    found = solve(method, problem, outputs, squared)
    assert found.status is Status.CONVERGED
    assert bool(found.plan.p.isfinite().all())
    assert float(found.plan.p[0].sum()) == pytest.approx(1.0, abs=1e-13)
    assert float(found.plan.p[0, 4, 5]) > 0
    assert not found.plan.p[1].any()


@pytest.mark.parametrize("method", EACH_METHOD)
def test_loss_that_is_not_finite_is_said(method: str) -> None:
    problem, outputs = line(1.0, [0.0, 1.0, 2.0])
    found = solve(method, problem, outputs, lambda u: u.sum() * math.nan)
    assert found.status is Status.NONFINITE


@pytest.mark.parametrize("method", ["newton", "lbfgs", "krylov"])
def test_points_of_infinite_loss_are_stepped_back_from(method: str) -> None:
    problem, outputs = line(20.0, [0.0, 1.0, 2.0])

    def barrier(u: Tensor) -> Tensor:
        return (-10 * u - torch.log(1.2 - u)).sum()

    found = solve(method, problem, outputs, barrier, tolerance=1e-9)
    assert found.status is Status.CONVERGED
    assert 0.9 < float(outputs.of(found.plan.p)) < 1.2


def test_dykstra_ends_at_its_limit_with_the_right_mass() -> None:
    problem, outputs = plane(9, epsilon=0.3, tau=3.0, mass=20.0)
    found = solve("dykstra", problem, outputs, squared, max_iterations=5)
    assert found.status is Status.MAX_ITER
    assert found.iterations == 5
    assert float((found.plan.p.sum((1, 2)) - 0.5).abs().max()) < 1e-12


def test_dykstra_refuses_a_measure_of_wrong_mass(monkeypatch: pytest.MonkeyPatch) -> None:
    problem, outputs = line(1.0, [0.0, 1.0, 2.0])
    honest = partial(JKOProblem.plan, problem)

    def leaking(_: JKOProblem, phi: Tensor) -> Plan:
        plan = honest(phi)
        object.__setattr__(plan, "p", plan.p * 1.001)
        return plan

    monkeypatch.setattr(JKOProblem, "plan", leaking)
    with pytest.raises(RuntimeError, match="mass"):
        solve("dykstra", problem, outputs, lambda u: u.sum(), max_iterations=3)


def test_newton_ends_at_its_limit() -> None:
    problem, outputs = plane(9, epsilon=0.3, tau=30.0, mass=20.0)
    found = solve("newton", problem, outputs, squared, max_iterations=1)
    assert (found.status, found.iterations) == (Status.MAX_ITER, 1)


def test_hessian_is_kept_while_it_predicts_the_gradient() -> None:
    loss = ExplicitLoss(squared, 5)
    u, v = torch.zeros(5, dtype=F64), torch.ones(5, dtype=F64)
    H = loss.hessian(u, loss.at(u).grad)
    torch.testing.assert_close(H, 0.4 * torch.eye(5, dtype=F64), rtol=1e-6, atol=1e-7)
    used = loss.evaluations
    assert loss.hessian(v, loss.at(v).grad) is H
    assert loss.evaluations == used + 1
    full = ExplicitLoss(nonseparable, 5)
    exact = torch.autograd.functional.hessian(lambda u: nonseparable(u.view(5, 1)), v)
    torch.testing.assert_close(full.hessian(v, full.at(v).grad), exact, rtol=1e-5, atol=1e-6)


def test_gmres_solves_the_identity_plus_a_small_rank_in_as_many_steps() -> None:
    g = torch.Generator().manual_seed(0)
    U, b = torch.randn(30, 3, generator=g, dtype=F64), torch.randn(30, generator=g, dtype=F64)
    products = 0

    def product(v: Tensor) -> Tensor:
        nonlocal products
        products += 1
        return v + U @ (U.t() @ v)

    x = gmres(product, b, tolerance=1e-12)
    torch.testing.assert_close(x, torch.linalg.solve(torch.eye(30, dtype=F64) + U @ U.t(), b))
    assert products <= 5
    assert not gmres(product, torch.zeros(3), tolerance=0.1).any()
