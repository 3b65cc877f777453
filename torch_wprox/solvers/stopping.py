"""When an inner solver may end: the gradient rule and the relative inexact-prox rule."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from torch_wprox.arguments import checked_number
from torch_wprox.objective import Evaluation, Objective
from torch_wprox.report import Status


@dataclass(frozen=True)
class Stopping:
    """Rules that end the inner loop; evaluations are counted by the objective.

    Attributes:
        tolerance_grad: Converged when |grad P(V)| <= tolerance_grad * |grad F(W)|: relative to the
            residual at the anchor, where the distance term has no gradient yet.
        inexact: rho of the relative rule |grad P(V)| <= rho |V - W_sigma| / (m gamma), or None. It
            is the error criterion under which an inexact proximal point method keeps its
            convergence (Solodov & Svaiter 1999, for rho < 1).

    Raises:
        TypeError: A tolerance is no number.
        ValueError: A tolerance is out of range.

    Example:
        >>> Stopping(tolerance_grad=1e-3)
        Stopping(tolerance_grad=0.001, inexact=None)
    """

    tolerance_grad: float = 1e-7
    inexact: float | None = None

    def __post_init__(self) -> None:
        checked_number(
            "tolerance_grad",
            self.tolerance_grad,
            "a finite number >= 0",
            lambda t: 0 <= t < math.inf,
        )
        if self.inexact is not None:
            checked_number("inexact", self.inexact, "in [0, 1) or None", lambda rho: 0 <= rho < 1)

    def check(self, objective: Objective, evaluation: Evaluation) -> Status | None:
        """Return why the loop may end at ``evaluation``, or None if it must go on."""
        if evaluation.residual <= self.tolerance_grad * objective.start.residual:
            return Status.CONVERGED
        if self.inexact is not None:
            # grad P - grad F is the gradient of the distance term, (V - W_sigma)/(m gamma).
            pull = torch.linalg.vector_norm(evaluation.grad - evaluation.loss_grad).item()
            if pull > 0 and evaluation.residual <= self.inexact * pull:
                return Status.INEXACT
        return None


class Stagnation:
    """Tells when iterations no longer get anywhere at this floating-point precision.

    At the floor of P an accepted point has the same value as the last one, up to rounding, and only
    a shrinking residual still shows progress. ``patience`` iterations without either are the end.

    Args:
        objective: Knows the rounding of P.
        patience: Idle iterations that are tolerated.
    """

    def __init__(self, objective: Objective, patience: int = 10) -> None:
        self._objective = objective
        self._patience = patience
        self._idle = 0
        self._least = objective.begin.residual

    def reached(self, before: Evaluation, after: Evaluation) -> bool:
        """Note one iteration from ``before`` to ``after``; return whether it was one too many."""
        progress = after.residual < 0.9 * self._least
        self._least = min(self._least, after.residual)
        if progress or not self._objective.equals(before.value, after.value):
            self._idle = 0
        else:
            self._idle += 1
        return self._idle > self._patience
