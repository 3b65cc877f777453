r"""Newton-Krylov in the potential phi in R^N, for a loss that is not a function of few outputs.

The root of :math:`R(\phi) = \phi - \tau \nabla f(p(\phi))`, with

.. math:: \Bigl(I + \frac{\tau}{\varepsilon} \nabla^2\! f\, C\Bigr)\,\delta = -R,
    \qquad C v = p\,v - \pi\,\mathrm{diag}(1/q)\,\pi^T v,

solved by GMRES: a product needs two kernel applications and a difference of two gradients of f.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from torch_wprox.jko.loss import LossAt
from torch_wprox.jko.plan import Plan
from torch_wprox.jko.problem import JKOProblem, Solution
from torch_wprox.report import Status

_ARMIJO = 1e-4
_HALVINGS = 40


class MeasureLoss(Protocol):
    """f on measures: p (B, *shape) -> f(p) and its gradient (B, *shape)."""

    precision: float
    """Relative step of a difference of gradients."""

    def __call__(self, p: Tensor) -> LossAt:
        """Evaluate f."""
        ...


@dataclass(frozen=True)
class _Iterate:
    phi: Tensor
    plan: Plan
    loss: LossAt
    value: float
    residual: Tensor
    size: float


def solve_krylov(
    problem: JKOProblem,
    loss: MeasureLoss,
    start: Tensor | None,
    *,
    tolerance: float,
    max_iterations: int,
) -> Solution:
    """Solve the whole step by Newton-Krylov.

    Args:
        problem: The step.
        loss: f.
        start: phi (B, *shape), tried beside 0; None for 0 alone.
        tolerance: On the residual relative to phi and tau grad f.
        max_iterations: Newton steps allowed.
    """

    def at(phi: Tensor) -> _Iterate:
        plan = problem.plan(phi)
        f = loss(plan.p)
        value = problem.cost(plan) + problem.tau * f.value
        residual = phi - problem.tau * f.grad
        norm = max(float(phi.norm()), float((problem.tau * f.grad).norm()))
        size = float(residual.norm())
        value = value if math.isfinite(value) else math.inf
        return _Iterate(phi, plan, f, value, residual, size / norm if norm > 0 else size)

    starts = (
        [torch.zeros_like(problem.q)] if start is None else [start, torch.zeros_like(problem.q)]
    )
    now = min((at(phi) for phi in starts), key=lambda iterate: iterate.value)
    status, iteration = Status.NONFINITE, 0
    while now.value < math.inf:
        if now.size <= tolerance:
            status = Status.CONVERGED
        elif iteration >= max_iterations:
            status = Status.MAX_ITER
        else:
            found = _newton_step(problem, loss, at, now)
            if found is not None and (found.size < 0.9 * now.size or found.value < now.value):
                now, iteration = found, iteration + 1
                if not problem.tell(iteration, now.value, now.size):
                    continue
                status = Status.STOPPED
                break
            status = Status.STALLED
        break
    residual = float(now.residual.norm())
    return Solution(now.plan, now.phi, now.loss.value, now.value, residual, iteration, status)


def _newton_step(
    problem: JKOProblem, loss: MeasureLoss, at: Callable[[Tensor], _Iterate], now: _Iterate
) -> _Iterate | None:
    ratio, plan, r = problem.tau / problem.epsilon, now.plan, now.residual

    def product(v: Tensor) -> Tensor:
        w = plan.covariance(v)
        # |C v| <= 2 max|v| p: the difference stays near p, and positive, in every cell.
        step = loss.precision / max(2 * float(v.abs().max()), torch.finfo(v.dtype).tiny)
        return v + ratio * (loss(plan.p + step * w).grad - now.loss.grad) / step

    # Eisenstat and Walker: linear systems no better than the nonlinear residual deserves.
    d = gmres(product, -r, tolerance=min(1e-2, max(now.size, 1e-8)))
    slope = float((r * plan.covariance(d)).sum()) / problem.epsilon
    noise = 64 * torch.finfo(r.dtype).eps * (abs(now.value) + abs(problem.tau * now.loss.value))
    step = 1.0
    for _ in range(_HALVINGS):
        trial = at(now.phi + step * d)
        if trial.value <= now.value + _ARMIJO * step * min(slope, 0.0) + noise:
            return trial
        step /= 2
    return None


def gmres(
    product: Callable[[Tensor], Tensor], b: Tensor, *, tolerance: float, max_iterations: int = 200
) -> Tensor:
    """Solve A x = b by GMRES (Saad and Schultz) from x = 0, without restarts.

    Here A is the identity plus a matrix of rank at most the number of outputs n: n + 1 iterations
    are enough, and few are needed.

    Args:
        product: v -> A v.
        b: Right-hand side, any shape.
        tolerance: On |A x - b| / |b|.
        max_iterations: Products allowed.
    """
    norm = b.norm()
    if norm == 0:
        return torch.zeros_like(b)
    basis = [b.flatten() / norm]
    columns: list[Tensor] = []
    y = b.new_zeros(0)
    for k in range(max_iterations):
        w = product(basis[-1].view_as(b)).flatten()
        V = torch.stack(basis)
        h = V @ w
        w = w - h @ V
        again = V @ w  # twice is enough (Kahan, Parlett)
        w = w - again @ V
        last = w.norm()
        columns.append(torch.cat([h + again, last.reshape(1)]))
        H = b.new_zeros(k + 2, k + 1)
        for j, column in enumerate(columns):
            H[: j + 2, j] = column
        target = b.new_zeros(k + 2)
        target[0] = norm
        y = torch.linalg.lstsq(H, target.unsqueeze(1)).solution.squeeze(1)
        if (H @ y - target).norm() <= tolerance * norm or last <= 1e-14 * norm:
            break
        basis.append(w / last)
    return (y @ torch.stack(basis[: len(y)])).view_as(b)
