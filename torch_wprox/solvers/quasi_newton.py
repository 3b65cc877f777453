"""The loop that all quasi-Newton solvers share: a direction, a weak Wolfe search, an update."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor

from torch_wprox.objective import BudgetExhausted, Evaluation, Objective
from torch_wprox.report import Status
from torch_wprox.solvers.line_search import FirstTrial, WeakWolfe
from torch_wprox.solvers.stopping import Stagnation, Stopping

# Key of what the first trials go by, beside the inverse Hessian's own memory.
_TRIALS = "trials"

# The first way of all is at most this share of the anchor's norm. On the note's problem at large
# gamma 7 of 10 seeds leave the plateau of dead neurons with it, none with ways of length 1.
_SHARE = 0.1


class InverseHessian(Protocol):
    """What the loop learns of P: H, positive definite, or nothing yet."""

    @property
    def is_empty(self) -> bool:
        """Whether nothing is known."""

    def times(self, g: Tensor) -> Tensor:
        """Return H g, (N,)."""

    def update(self, before: Evaluation, after: Evaluation, t: float) -> None:
        """Take in one accepted iteration, ``after.point = before.point - t H before.grad``."""

    def forget(self) -> None:
        """Know less, after a search that failed; empty at the latest when called again."""

    def state(self) -> dict[str, Any] | None:
        """Return what may carry over to the next step, None if nothing."""


def descend(
    objective: Objective,
    stopping: Stopping,
    inverse: InverseHessian,
    line_search: WeakWolfe,
    memory: dict[str, Any] | None,
) -> tuple[Status, dict[str, Any] | None]:
    """Descend until a rule of ``stopping`` holds, the budget ends or no direction descends.

    When a search fails some of H is forgotten, then all of it; when a search along the gradient
    fails the step has stalled.

    Args:
        objective: What to minimise.
        stopping: When to end before the budget does.
        inverse: The inverse Hessian, with what it recalls of the last step.
        line_search: The weak Wolfe search.
        memory: What the last step left, for the first trials.

    Returns:
        Why it ended, and what may carry over.
    """
    kappa = objective.stiffness()
    current, stagnation = objective.begin, Stagnation(objective)
    trials = FirstTrial(None if inverse.is_empty or memory is None else memory.get(_TRIALS))
    try:
        while (status := stopping.check(objective, current)) is None:
            is_gradient_step = inverse.is_empty
            if is_gradient_step:
                direction = -first_step(objective, current, kappa) * current.grad
            else:
                direction = -inverse.times(current.grad)
            slope = torch.dot(current.grad, direction).item()
            found, t = current, 0.0
            if slope < 0:
                found, t = line_search.search(objective, current, direction, trials.length(slope))
            if found is current:
                if is_gradient_step:
                    status = Status.STALLED
                    break
                inverse.forget()
                trials = FirstTrial()
                continue
            inverse.update(current, found, t)
            trials.note(current, found, t)
            if stagnation.reached(current, found):
                status = Status.STALLED
                break
            current = found
    except BudgetExhausted:
        status = Status.MAX_EVAL
    state = inverse.state()
    return status, None if state is None else {**state, _TRIALS: trials.state()}


def start_shape(kappa: Tensor, s: Tensor, y: Tensor) -> Tensor:
    """Return the diagonal of the first H where gammas differ: 1/(l + kappa), (N,).

    Where gammas differ by orders of magnitude so do the curvatures of P, and a multiple of the
    identity would have to suit the stiffest block: all others would stand still. The curvature
    kappa of the distance is known, that of F is l = <s, y - kappa s>/<s, s>.

    Args:
        kappa: 1/(m gamma) of every number, (N,).
        s: The first way, (N,).
        y: The change of grad P along it, (N,).
    """
    of_loss = torch.dot(s, y - kappa * s) / torch.dot(s, s)
    return 1.0 / (of_loss.clamp_min(0.0) + kappa)


def first_step(
    objective: Objective, current: Evaluation, kappa: Tensor | None = None
) -> float | Tensor:
    """Return the length of the first step over |grad P|, for every number where gammas differ.

    With the length l of F that the last step saw, 1/(1/l + kappa), kappa = 1/(m gamma): the scaled
    start of Nocedal & Wright (6.20), before any pair is known. Else no longer than the prox step
    m gamma, and than a way of min(1, |W|/10): particles that are thrown far beyond where they
    began, at large gamma, may all be dead there.
    """
    stiffness = objective.curvature if kappa is None else kappa
    if objective.length is not None:
        return 1.0 / (1.0 / objective.length + stiffness)
    scale = _SHARE * torch.linalg.vector_norm(objective.anchor).item()
    way = min(1.0, scale) if scale > 0 else 1.0
    longest = way / max(current.residual, 1e-300)
    if kappa is not None:
        return (1.0 / kappa).clamp(max=longest)
    return min(1.0 / objective.curvature, longest)
