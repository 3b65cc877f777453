"""One proximal step: run the solver, take the best point, report it in numbers."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from torch_wprox import transport
from torch_wprox.distances import mean_squared
from torch_wprox.objective import Block, Evaluation, Objective
from torch_wprox.report import Status, StepReport, TransportCounts
from torch_wprox.solvers import Solver, Stopping

# A fresh exact assignment for the report costs seconds above this many particles.
_FRESH_UP_TO = 2000
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
    status, memory = solver.minimize(objective, stopping, memory)
    while status in _ENDED and objective.renew():
        status, memory = solver.minimize(objective, stopping, memory)
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
    blocks = [_measure(b, b.of(x), b.of(W)) for b in objective.blocks]
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


def unmoved(loss: float, status: Status, evaluations: int) -> StepReport:
    """Return the report of a step in which nothing could move."""
    return StepReport(
        status=status,
        evaluations=evaluations,
        loss_before=loss,
        loss_after=loss,
        objective=loss,
        distance_sq=0.0,
        wasserstein_sq=0.0,
        frobenius_sq=0.0,
        permuted_fraction=0.0,
        residual=0.0,
    )


@dataclass(frozen=True)
class _Measured:
    is_cloud: bool
    m: int
    gamma: float
    distance_sq: float
    frobenius_sq: float
    wasserstein_sq: float | None
    sigma: Tensor | None
    exchanged: int


def _measure(block: Block, V: Tensor, W: Tensor) -> _Measured:
    """Measure one block's move from ``W`` to ``V``, both (m, D)."""
    frobenius_sq = mean_squared(V, W).value.item()
    found = _Measured(
        is_cloud=block.is_cloud,
        m=block.m,
        gamma=block.gamma,
        distance_sq=block.distance.settle(V).value.item(),
        frobenius_sq=frobenius_sq,
        wasserstein_sq=frobenius_sq,
        sigma=None,
        exchanged=0,
    )
    if not block.is_cloud:
        return found
    sigma = _optimal_assignment(block, V, W)
    if sigma is None:
        return replace(found, wasserstein_sq=None, sigma=block.distance.assignment)
    exchanged = int((sigma.cpu() != torch.arange(block.m)).sum())
    wasserstein_sq = frobenius_sq
    if exchanged:
        wasserstein_sq = mean_squared(V, W[sigma.to(W.device)]).value.item()
    return replace(found, wasserstein_sq=wasserstein_sq, sigma=sigma, exchanged=exchanged)


def _optimal_assignment(block: Block, V: Tensor, W: Tensor) -> Tensor | None:
    """Return an optimal sigma (m,): the identity where it ties; None if that would take too long.

    It is the one in force where that is proved, else a fresh one, for clouds that are not large.
    """
    if block.distance.is_certified:
        sigma = block.distance.assignment
    elif block.m <= _FRESH_UP_TO:
        sigma, _ = transport.assign(V, transport.start(W, block.classes), force=True)
    else:
        identity = transport.start(W, block.classes)
        return identity.sigma if transport.is_certified(V, identity) else None
    if sigma is not None and transport.is_tied(V, W, sigma):
        return torch.arange(block.m)
    return sigma
