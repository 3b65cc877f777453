r"""L-BFGS on the semi-dual: two kernel applications an iteration, however many outputs there are.

With :math:`\lambda = \tau \nabla h(v)` for a free output v the (negative) dual value of the step is

.. math:: G(v) = \langle \lambda, v - u(\lambda)\rangle - \tau h(v) - \mathrm{cost}(\lambda),
    \qquad \nabla G(v) = \tau\, \nabla^2 h(v)\,(v - u(\lambda)),

which for the squared error is the dual of the step up to the scale of v. The loss need not be known
for it: h, its gradient and one product with its Hessian come from evaluations.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from torch_wprox.jko.loss import OutputLoss
from torch_wprox.jko.newton import Point, SemiDual, best_point, point, solution_of, starts_of
from torch_wprox.jko.problem import JKOProblem, OutputMap, Solution
from torch_wprox.report import Status
from torch_wprox.solvers.curvature_pairs import Pairs

_PAIRS = 30
_ARMIJO, _CURVATURE = 1e-4, 0.5
_TRIALS = 30


@dataclass(frozen=True)
class _Iterate:
    """A free output v with G, its gradient, and what the step answers.

    Attributes:
        v: (n,).
        value: G(v).
        grad: Its gradient.
        noise: Rounding error of the value.
        gap: |v - u| relative to u.
        scale: Length of a step along -grad of the size of v - u, where no curvature is known.
    """

    v: Tensor
    value: float
    grad: Tensor
    noise: float
    gap: float
    scale: float


def solve_lbfgs(
    problem: JKOProblem,
    outputs: OutputMap,
    loss: OutputLoss,
    start: Tensor | None,
    *,
    tolerance: float,
    max_iterations: int,
) -> Solution:
    """Solve the whole step by L-BFGS on its semi-dual; arguments as of `solve_newton`."""
    response, tau = SemiDual(problem, outputs), problem.tau
    rounding = 16 * torch.finfo(problem.q.dtype).eps

    def at(v: Tensor) -> _Iterate:
        h = loss.at(v)
        lam = tau * h.grad
        answer = response(lam)
        apart = v - answer.output
        value = float(lam @ apart) - tau * h.value - answer.cost
        grad = tau * loss.curvature_along(v, h.grad, apart)
        along = float(grad @ apart)
        return _Iterate(
            v,
            value if math.isfinite(value) else math.inf,
            grad,
            rounding * (abs(tau * h.value) + abs(answer.cost) + float(lam.abs() @ v.abs())),
            float(apart.norm() / (answer.output.norm() + rounding)),
            float(apart @ apart) / along if along > 0 else 1.0,
        )

    def root(v: Tensor) -> Point:
        return point(response, loss, tau, tau * loss.at(v).grad)

    first = best_point(response, loss, tau, starts_of(problem, outputs, start))
    now = at(first.answer.output)
    if first.value == math.inf or now.value == math.inf:
        return solution_of(first, 0, Status.NONFINITE)
    pairs = Pairs(now.v, _PAIRS)
    # |v - u| bounds the residual up to the condition of H only: the residual itself is then
    # checked.
    target, iteration = tolerance, 0
    found = None
    for iteration in range(max_iterations):
        if now.gap <= target:
            found = root(now.v)
            if found.size <= tolerance:
                return solution_of(found, iteration, Status.CONVERGED)
            target = 0.1 * now.gap
        direction = pairs.times(now.grad) if len(pairs) else now.scale * now.grad
        following = _weak_wolfe(at, now, -direction)
        if following is None:
            if not len(pairs):
                break
            pairs.clear()  # they may mislead: once more without
            continue
        pairs.append(following.v - now.v, following.grad - now.grad)
        now = following
        if problem.tell(iteration + 1, now.value, now.gap):
            iteration += 1
            break
    found = root(now.v)
    if found.size <= tolerance:
        return solution_of(found, iteration, Status.CONVERGED)
    # The dual may be far from the primal value where it has not converged.
    found = min(found, first, key=lambda p: p.value)
    last = iteration + 1 >= max_iterations
    return solution_of(found, iteration, Status.MAX_ITER if last else Status.STALLED)


def _weak_wolfe(at: Callable[[Tensor], _Iterate], now: _Iterate, d: Tensor) -> _Iterate | None:
    """Bisect for sufficient decrease and curvature; near the floor the gradient decides."""
    slope = float(now.grad @ d)
    low, high, step = 0.0, math.inf, 1.0
    if slope >= 0:
        return None
    for _ in range(_TRIALS):
        trial = at(now.v + step * d)
        along = float(trial.grad @ d)
        if abs(step * slope) <= now.noise and float(trial.grad.norm()) < float(now.grad.norm()):
            return trial
        if not trial.value <= now.value + _ARMIJO * step * slope:
            high = step
        elif along < _CURVATURE * slope:
            low = step
        else:
            return trial
        step = (low + high) / 2 if math.isfinite(high) else 2 * step
    return None
