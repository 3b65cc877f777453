r"""Damped Newton in the dual of the outputs: the semi-dual of the step, and the KL prox.

Both ask for the lambda in R^n with :math:`\lambda = t\,\nabla h(u(\lambda))`, where u(lambda) is
the output that minimises :math:`\mathrm{cost} + \langle \lambda, u \rangle`: the multiplier that
the loss puts on the output. With A = -du/dlambda (symmetric, positive semidefinite) and r = lambda
- t grad h,

.. math:: (I + t\,H A)\,\delta = -r, \qquad H = \nabla^2 h(u),

and along delta the primal value cost + t h(u) has the slope :math:`r^T A \delta \le 0`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from torch_wprox.jko.loss import LossAt, OutputLoss
from torch_wprox.jko.plan import Plan
from torch_wprox.jko.problem import JKOProblem, OutputMap, Solution
from torch_wprox.report import Status

_ARMIJO = 1e-4
_HALVINGS = 40


@dataclass(frozen=True)
class Answer:
    """What a lambda is answered with.

    Attributes:
        output: u, (n,).
        cost: What the step pays for it.
        curvature: Gives A = -du/dlambda, (n, n).
        source: The plan or the measure behind it.
    """

    output: Tensor
    cost: float
    curvature: Callable[[], Tensor]
    source: Any


class Response(Protocol):
    """lambda (n,) -> the output that minimises cost + <lambda, u>."""

    def __call__(self, lam: Tensor) -> Answer:
        """Answer lambda."""
        ...


@dataclass(frozen=True)
class SemiDual:
    r"""Response of the whole step: :math:`\log a = -\Phi^T\lambda/\varepsilon`, A = C/epsilon."""

    problem: JKOProblem
    outputs: OutputMap

    def __call__(self, lam: Tensor) -> Answer:
        """Answer lambda with a plan: two applications of the kernel, n more for the curvature."""
        plan = self.problem.plan(self.outputs.potential(lam))
        return Answer(
            self.outputs.of(plan.p),
            self.problem.cost(plan),
            lambda: self.outputs.covariance(plan) / self.problem.epsilon,
            plan,
        )


@dataclass(frozen=True)
class Point:
    """An iterate.

    Attributes:
        lam: lambda.
        answer: Of the response.
        loss: h(u) and its gradient.
        value: cost + t h(u), inf where h is not finite.
        residual: r = lambda - t grad h(u).
        size: 2-norm of the residual, relative to lambda and t grad h.
    """

    lam: Tensor
    answer: Answer
    loss: LossAt
    value: float
    residual: Tensor
    size: float


def point(response: Response, loss: OutputLoss, scale: float, lam: Tensor) -> Point:
    """Evaluate the response and the loss at lambda; ``scale`` is t."""
    answer = response(lam)
    h = loss.at(answer.output)
    value = answer.cost + scale * h.value
    residual = lam - scale * h.grad
    size = float(torch.linalg.vector_norm(residual))
    norm = max(float(torch.linalg.vector_norm(t)) for t in (lam, scale * h.grad))
    if not math.isfinite(value):
        value = math.inf
    return Point(lam, answer, h, value, residual, size / norm if norm > 0 else size)


def best_point(
    response: Response, loss: OutputLoss, scale: float, starts: Sequence[Tensor]
) -> Point:
    """Return the point of lowest value."""
    return min((point(response, loss, scale, lam) for lam in starts), key=lambda p: p.value)


def newton(
    response: Response,
    loss: OutputLoss,
    scale: float,
    starts: Sequence[Tensor],
    *,
    tolerance: float,
    max_iterations: int,
    tell: Callable[[int, float, float], bool] | None = None,
) -> tuple[Point, int, Status]:
    """Solve lambda = t grad h(u(lambda)).

    Args:
        response: lambda -> u.
        loss: h.
        scale: t.
        starts: Each (n,); the one with the lowest value is taken.
        tolerance: On the relative residual.
        max_iterations: Newton steps allowed.
        tell: Given the number of steps, the value and the residual; a true answer ends the solve.

    Returns:
        The last point, the number of steps and why they ended.
    """
    now = best_point(response, loss, scale, starts)
    if now.value == math.inf:
        return now, 0, Status.NONFINITE
    for iteration in range(max_iterations):
        if now.size <= tolerance:
            return now, iteration, Status.CONVERGED
        found = _line_search(response, loss, scale, now)
        if found is None or (found.size >= 0.9 * now.size and found.value >= now.value):
            # At the floating-point floor neither the value nor the residual falls any more.
            return now, iteration, Status.STALLED
        now = found
        if tell is not None and tell(iteration + 1, now.value, now.size):
            return now, iteration + 1, Status.STOPPED
    return now, max_iterations, Status.CONVERGED if now.size <= tolerance else Status.MAX_ITER


def _line_search(response: Response, loss: OutputLoss, scale: float, now: Point) -> Point | None:
    direction, slope = _direction(loss, scale, now)
    # Below this, differences of values are rounding.
    noise = (
        64 * torch.finfo(now.lam.dtype).eps * (abs(now.answer.cost) + abs(scale * now.loss.value))
    )
    step = 1.0
    for _ in range(_HALVINGS):
        trial = point(response, loss, scale, now.lam + step * direction)
        if trial.value <= now.value + _ARMIJO * step * slope + noise:
            return trial
        step /= 2
    return None


def _direction(loss: OutputLoss, scale: float, now: Point) -> tuple[Tensor, float]:
    r, A = now.residual, now.answer.curvature()
    H = loss.hessian(now.answer.output, now.loss.grad)
    identity = torch.eye(len(r), dtype=r.dtype, device=r.device)
    direction = torch.linalg.solve(identity + scale * H @ A, -r)
    slope = float(r @ (A @ direction))
    if not slope <= 0 or not math.isfinite(slope):
        # A loss that is not convex here: keep the convex part of its curvature.
        values, vectors = torch.linalg.eigh(H)
        H = (vectors * values.clamp(min=0)) @ vectors.t()
        direction = torch.linalg.solve(identity + scale * H @ A, -r)
        slope = min(float(r @ (A @ direction)), 0.0)
    return direction, slope


def solve_newton(
    problem: JKOProblem,
    outputs: OutputMap,
    loss: OutputLoss,
    start: Tensor | None,
    *,
    tolerance: float,
    max_iterations: int,
) -> Solution:
    """Solve the whole step by Newton's method on its semi-dual, 2 to 12 steps.

    Args:
        problem: The step.
        outputs: Phi.
        loss: h.
        start: lambda (n,), tried beside 0; None for 0 alone.
        tolerance: On the relative residual.
        max_iterations: Newton steps allowed.
    """
    found, iterations, status = newton(
        SemiDual(problem, outputs),
        loss,
        problem.tau,
        starts_of(problem, outputs, start),
        tolerance=tolerance,
        max_iterations=max_iterations,
        tell=problem.tell,
    )
    return solution_of(found, iterations, status)


def starts_of(problem: JKOProblem, outputs: OutputMap, start: Tensor | None) -> list[Tensor]:
    """Return 0, which moves nothing but by diffusion, and the start if there is one."""
    zero = problem.q.new_zeros(outputs.samples * outputs.count)
    return [zero] if start is None else [start, zero]


def solution_of(found: Point, iterations: int, status: Status) -> Solution:
    """Return the solution at a point of the semi-dual."""
    plan = found.answer.source
    assert isinstance(plan, Plan)
    residual = float(torch.linalg.vector_norm(found.residual))
    return Solution(plan, found.lam, found.loss.value, found.value, residual, iterations, status)
