r"""Dykstra's algorithm for the step: Algorithm 1 of the note, corrected, in the log domain.

.. math:: p = \mathrm{prox}^{KL}_{\sigma f}(d\,(\xi b)), \quad d a = p / (\xi b), \quad
    b = q / (\xi^T d a), \qquad \sigma = \tau/\varepsilon,

and the answer is d a (xi b) with the new b, never the prox output, whose mass is right at
convergence only. The reference method: it needs 20 iterations at large epsilon and thousands at
small.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from torch_wprox.jko.loss import OutputLoss
from torch_wprox.jko.newton import Answer, newton
from torch_wprox.jko.plan import Plan
from torch_wprox.jko.problem import JKOProblem, OutputMap, Solution
from torch_wprox.report import Status

_INNER_ITERATIONS = 50


@dataclass(frozen=True)
class KLProx:
    r"""Response of :math:`\mathrm{prox}^{KL}_{\sigma f}(z)`: :math:`p = z\,e^{-\Phi^T\lambda}`.

    The cost is KL(p | z) without its constant; A = Phi diag(p) Phi^T.
    """

    log_z: Tensor
    outputs: OutputMap

    def __call__(self, lam: Tensor) -> Answer:
        """Answer lambda with a measure."""
        phi = self.outputs.potential(lam)
        p = torch.exp(self.log_z - phi)
        return Answer(
            self.outputs.of(p),
            -float((p * phi).sum() + p.sum()),
            lambda: self.outputs.gram(p),
            p,
        )


def solve_dykstra(
    problem: JKOProblem,
    outputs: OutputMap,
    loss: OutputLoss,
    start: Tensor | None,
    *,
    tolerance: float,
    max_iterations: int,
) -> Solution:
    r"""Solve the whole step by Dykstra's algorithm.

    Stops when ConstrEven :math:`= |b\,(\xi^T d a) - q|/|q|` (with the old b) and ConstrOdd
    :math:`= |d a\,(\xi b) - p|/|q|` are below the tolerance.

    Args:
        problem: The step.
        outputs: Phi.
        loss: h.
        start: lambda of the first KL prox, (n,), or None for 0.
        tolerance: On both constraints.
        max_iterations: Iterations allowed.

    Raises:
        RuntimeError: The answer has lost mass.
    """
    q, sigma, kernel = problem.q, problem.tau / problem.epsilon, problem.kernel
    lam = q.new_zeros(outputs.samples * outputs.count) if start is None else start
    log_d = torch.zeros_like(q) if problem.log_d is None else problem.log_d
    norm = float(q.norm())
    held = q > 0
    log_b = torch.where(held, 0.0, -math.inf).to(q)
    # b = 1 where q > 0, so the first prox sees xi 1.
    windows = kernel.windows(kernel.slopes(torch.zeros_like(q)))
    status = Status.MAX_ITER
    iteration = 0
    log_xib = kernel.lse(log_b, windows)
    while True:
        found, _, inner = newton(
            KLProx(log_d + log_xib, outputs),
            loss,
            sigma,
            [lam],
            tolerance=0.1 * tolerance,
            max_iterations=_INNER_ITERATIONS,
        )
        iteration += 1
        lam, p = found.lam, found.answer.source
        log_a = -outputs.potential(lam)  # log p - log d - log xi b, exactly
        plan = problem.plan(-problem.epsilon * log_a)
        even = _even(plan, log_b, log_a)
        windows, log_b = plan.windows, _unshifted(plan, log_a)
        odd = float((plan.p - p).norm()) / norm
        if inner is Status.NONFINITE:
            status = inner
        elif even < tolerance and odd < tolerance:
            status = Status.CONVERGED
        elif iteration < max_iterations and not problem.tell(
            iteration, found.value, max(even, odd)
        ):
            log_xib = kernel.lse(log_b, windows)
            continue
        break
    _check_mass(plan)
    f = loss.at(outputs.of(plan.p))
    value = problem.cost(plan) + problem.tau * f.value
    return Solution(plan, lam, f.value, value, max(even, odd) * norm, iteration, status)


def _unshifted(plan: Plan, log_a: Tensor) -> Tensor:
    """Return log b that belongs to this log a: a plan shifts its own by a constant per block."""
    shift = (log_a - plan.log_a).flatten(1)[:, 0]
    return plan.log_b - shift.view(-1, *[1] * (log_a.ndim - 1))


def _even(plan: Plan, before: Tensor, log_a: Tensor) -> float:
    """ConstrEven: |b_old (xi^T a) - q| / |q|, where (xi^T a) = q / b_new."""
    ratio = torch.where(plan.q > 0, torch.exp(before - _unshifted(plan, log_a)), 1.0)
    return float((plan.q * (ratio - 1)).norm() / plan.q.norm())


def _check_mass(plan: Plan) -> None:
    mass, target = plan.p.flatten(1).sum(1), plan.q.flatten(1).sum(1)
    allowed = 1e4 * torch.finfo(target.dtype).eps
    if not bool(((mass - target).abs() <= allowed).all()):
        raise RuntimeError(
            f"the answer has mass {mass.tolist()} per block instead of {target.tolist()}: "
            'method="newton" is exact, or take a larger epsilon'
        )
