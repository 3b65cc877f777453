"""The descent over theta: any inner solver of the package on a function of one vector."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from torch_wprox.closure.ranks import Agree, alone
from torch_wprox.distances.base import AnchoredDistance, DistanceValue
from torch_wprox.objective import Block, Objective
from torch_wprox.report import Status
from torch_wprox.solvers import LBFGS, FirstOrder, Solver, Stopping

ThetaLoss = Callable[[Tensor], tuple[Tensor, Tensor]]
"""theta (N,) -> the objective (0-d) and its gradient (N,)."""

# Pairs kept by the default solver: theta has thousands of numbers at most, and one evaluation costs
# as much as hundreds of products with a pair.
_HISTORY = 50


@dataclass(frozen=True)
class Descended:
    """Where a descent over theta ended.

    Attributes:
        status: Why it ended.
        theta: The best theta evaluated, (N,).
        value: The objective there; infinite if no evaluation was finite.
        residual: 2-norm of the gradient there.
        evaluations: Evaluations used.
    """

    status: Status
    theta: Tensor
    value: float
    residual: float
    evaluations: int


def descend(
    loss_and_grad: ThetaLoss,
    theta: Tensor,
    solver: Solver | None,
    stopping: Stopping,
    budget: int,
    agree: Agree = alone,
) -> Descended:
    """Minimise a function of theta from ``theta`` with at most ``budget`` evaluations, >= 1.

    Args:
        loss_and_grad: The function.
        theta: Where to begin, (N,).
        solver: The solver; None: L-BFGS.
        stopping: When to end before the budget does.
        budget: Evaluations allowed, the first one included.
        agree: Makes the numbers that decide the same on all ranks.
    """
    loss, grad = loss_and_grad(theta)
    block = Block(0, 1, len(theta), 1.0, 0.0, _Nothing(), is_cloud=False)
    objective = Objective((block,), loss_and_grad, theta, loss, grad, budget - 1, agree)
    if not objective.start.is_finite:
        return Descended(Status.STALLED, theta, float("inf"), float("inf"), 1)
    chosen = LBFGS(_HISTORY) if solver is None else solver
    if isinstance(chosen, FirstOrder) and chosen.capped:
        raise ValueError("solver must not be capped: the cap is in units of the particles' space")
    status, _ = chosen.minimize(objective, stopping, None)
    best = objective.best
    used = budget - objective.evaluations_left
    return Descended(status, best.point, best.value, best.residual, used)


class _Nothing(AnchoredDistance):
    """No distance: the objective of theta is complete as it is."""

    is_proved = True

    def evaluate(self, V: Tensor) -> DistanceValue:
        return DistanceValue(torch.zeros((), dtype=V.dtype, device=V.device), torch.zeros_like(V))
