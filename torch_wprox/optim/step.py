"""One proximal step: run the solver, take the best point, report it in numbers."""

from __future__ import annotations

from typing import Any

from torch_wprox.objective import Evaluation, Objective
from torch_wprox.optim.move import Move
from torch_wprox.report import Status, StepReport, UnreadReport
from torch_wprox.solvers.base import Solver
from torch_wprox.solvers.stopping import Stopping

# The solver ended on its own, perhaps under an assignment that was held too long.
_ENDED = (Status.CONVERGED, Status.INEXACT, Status.STALLED)


def minimized(
    objective: Objective, solver: Solver, stopping: Stopping, memory: dict[str, Any] | None
) -> tuple[Status, dict[str, Any] | None]:
    """Let ``solver`` minimise; say at once where there is nothing to do.

    Memory is kept only where every distance term has a known Hessian, I/(m gamma) whatever the
    anchor: the curvature of F is what is left of that of P, and with another anchor it is all that
    stays true.
    """
    if not objective.start.is_finite:
        return Status.NONFINITE, None
    if objective.evaluations_left <= 0:
        return Status.NO_MOVE, memory
    try:
        status, memory = solver.minimize(objective, stopping, memory)
        while status in _ENDED and objective.renew():
            status, memory = solver.minimize(objective, stopping, memory)
    except KeyboardInterrupt as interrupt:
        objective.watch.take_interrupt(interrupt)
    if objective.watch.has_ended:
        status = Status.STOPPED
    known = all(b.distance.is_quadratic for b in objective.blocks)
    return status, memory if known else None


def report_of(
    objective: Objective,
    status: Status,
    accepted: Evaluation,
    evaluations: int,
    *,
    max_eval: int,
    is_same_loss: bool | None = None,
) -> StepReport:
    """Return the report of a step that accepted ``accepted``.

    Its distances are measured when they are read. Among several ranks they are measured at once:
    all have to take part.

    Args:
        objective: The prox objective, solved.
        status: Why the solver ended.
        accepted: The point now in the parameters.
        evaluations: Closure evaluations in all.
        max_eval: Those allowed.
        is_same_loss: Whether the loss was that of the last step.
    """
    bound = objective.bound
    known: dict[str, Any] = {
        "status": status,
        "evaluations": evaluations,
        "max_eval": max_eval,
        "is_same_loss": is_same_loss,
        "loss_before": objective.start.loss,
        "loss_after": accepted.loss,
        "lower_bound": None if bound is None else bound.lower_bound,
        "certified": bound is not None and bound.certified,
        "estimate": None if bound is None else bound.estimate,
    }
    move = Move(
        objective.blocks,
        accepted,
        objective.project(accepted.point),
        objective.anchor,
        bound,
        objective.agree,
    )
    if objective.is_alone:
        return UnreadReport(known, move.measured)
    return StepReport(**known, **move.measured())
