"""The local solver from the anchor: what the answer of a global one must not be above."""

from __future__ import annotations

import math

from torch import Tensor

from torch_wprox.closure.watch import Watch
from torch_wprox.objective import LossAndGrad, Objective
from torch_wprox.report import Status
from torch_wprox.solvers.lbfgs import LBFGS
from torch_wprox.solvers.stopping import Stopping

_ENDED = (Status.CONVERGED, Status.INEXACT, Status.STALLED)


def descended(objective: Objective, stopping: Stopping) -> Status:
    """Run L-BFGS from ``objective.begin``, as a step with ``solver="lbfgs"`` does.

    The best point is left on the objective.
    """
    status, _ = LBFGS().minimize(objective, stopping, None)
    while status in _ENDED and objective.renew():
        status, _ = LBFGS().minimize(objective, stopping, None)
    return status


def descended_on_model(
    objective: Objective, function: LossAndGrad, stopping: Stopping, budget: int
) -> Tensor:
    """Return where that run ends, (N,), if F is a function of which every evaluation is free.

    Args:
        objective: The step; its budget is not touched, its clock holds.
        function: F and its gradient, (N,) -> 0-d and (N,).
        stopping: Of the step.
        budget: Evaluations that the local solver would have.
    """
    loss, grad = function(objective.anchor)
    left = objective.watch.seconds_left
    clock = Watch(None, None if left == math.inf else left, objective.agree)
    free = Objective(objective.blocks, function, objective.anchor, loss, grad, budget, watch=clock)
    descended(free, stopping)
    return free.best.point
