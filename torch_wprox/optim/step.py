"""One proximal step: run the solver, take the best point, report it in numbers."""

from __future__ import annotations

from typing import Any

from torch_wprox.objective import Evaluation, Objective
from torch_wprox.optim.move import measured
from torch_wprox.report import Status, StepReport, TransportCounts
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
    objective: Objective, status: Status, accepted: Evaluation, evaluations: int
) -> StepReport:
    """Return the report of a step that accepted ``accepted``.

    Args:
        objective: The prox objective, solved.
        status: Why the solver ended.
        accepted: The point now in the parameters.
        evaluations: Closure evaluations in all.
    """
    x, W = objective.project(accepted.point), objective.anchor
    blocks = [measured(b, b.of(x), b.of(W)) for b in objective.blocks]
    clouds = [b for b in blocks if b.is_cloud]
    particles = sum(b.m for b in clouds)
    exact = all(b.wasserstein_sq is not None for b in blocks)
    sigmas = tuple(b.sigma for b in clouds if b.sigma is not None)
    bound = objective.bound
    distance_term = sum(b.distance_sq / (2.0 * b.gamma) for b in blocks)
    value = accepted.loss + distance_term
    return StepReport(
        status=status,
        evaluations=evaluations,
        loss_before=objective.start.loss,
        loss_after=accepted.loss,
        objective=value,
        distance_sq=sum(b.distance_sq for b in blocks),
        wasserstein_sq=sum(b.wasserstein_sq or 0.0 for b in blocks) if exact else None,
        frobenius_sq=sum(b.frobenius_sq for b in blocks),
        permuted_fraction=(sum(b.exchanged for b in clouds) / max(particles, 1) if exact else None),
        residual=accepted.residual,
        assignment=None if not sigmas else sigmas[0] if len(sigmas) == 1 else sigmas,
        transport=sum((b.distance.counts for b in objective.blocks), TransportCounts()),
        lower_bound=None if bound is None else bound.lower_bound,
        gap=None if bound is None else value - bound.lower_bound,
        certified=bound is not None and bound.certified,
    )
