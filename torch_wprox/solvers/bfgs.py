"""BFGS with a dense inverse Hessian and a weak Wolfe line search: robust on nonsmooth functions."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from torch_wprox.arguments import checked_count
from torch_wprox.objective import BudgetExhausted, Evaluation, Objective
from torch_wprox.report import Status
from torch_wprox.solvers.curvature_pairs import CurvaturePairs, Pairs
from torch_wprox.solvers.line_search import WeakWolfe, checked_search, first_trial
from torch_wprox.solvers.stopping import Stagnation, Stopping


@dataclass(frozen=True)
class BFGS:
    """Quasi-Newton descent from V = W with a dense inverse Hessian H (N, N).

        H+ = (I - r s y^T) H (I - r y s^T) + r s s^T,   s = v+ - v, y = grad P(v+) - grad P(v),
        r = 1/<s, y>

    With a weak Wolfe search <s, y> > 0 always, so H stays positive definite. On a function with
    kinks H becomes ill-conditioned on purpose: it learns to move along the kink (Lewis & Overton
    2013). When a search fails H is forgotten once; when it fails again the step has stalled.

    Args:
        line_search: The weak Wolfe search.
        remember: Curvature pairs of F that carry over to the next step.

    Raises:
        TypeError: ``line_search`` has no ``search``.
        ValueError: ``remember`` is no integer >= 0.

    Source: Lewis & Overton, Nonsmooth optimization via quasi-Newton methods, 2013.
    """

    line_search: WeakWolfe = field(default_factory=WeakWolfe)
    remember: int = 20

    name = "bfgs"

    def __post_init__(self) -> None:
        checked_search(self.line_search)
        checked_count("remember", self.remember, least=0)

    def minimize(
        self, objective: Objective, stopping: Stopping, memory: dict[str, Any] | None = None
    ) -> tuple[Status, dict[str, Any] | None]:
        """Descend until a rule of ``stopping`` holds, the budget ends or no direction descends."""
        current, stagnation = objective.begin, Stagnation(objective)
        pairs = CurvaturePairs(self.remember)
        H = _recalled(pairs.recall(memory, objective))
        t = 1.0
        try:
            while (status := stopping.check(objective, current)) is None:
                direction = (
                    -first_step(objective, current) * current.grad
                    if H is None
                    else -(H @ current.grad)
                )
                found, t = self.line_search.search(objective, current, direction, first_trial(t))
                if found is current:
                    if H is None:
                        return Status.STALLED, pairs.state()
                    H, t = None, 1.0
                    continue
                H = updated(H, found.point - current.point, found.grad - current.grad)
                if stagnation.reached(current, found):
                    return Status.STALLED, pairs.state()
                pairs.note(current, found)
                current = found
        except BudgetExhausted:
            status = Status.MAX_EVAL
        return status, pairs.state()


def first_step(objective: Objective, current: Evaluation) -> float:
    """Return the length of the first step over |grad P|.

    With the length l of F that the last step saw, 1/(1/l + kappa), kappa = 1/(m gamma): the scaled
    start of Nocedal & Wright (6.20), before any pair is known. Else no longer than the prox step
    m gamma, and than 1.
    """
    if objective.length is not None:
        return 1.0 / (1.0 / objective.length + objective.curvature)
    return min(1.0 / objective.curvature, 1.0 / max(current.residual, 1e-300))


def _recalled(kept: tuple[Tensor, Tensor] | None) -> Tensor | None:
    """Return H after pairs (k, N), as :func:`updated` makes it one by one; None without any."""
    if kept is None:
        return None
    pairs = Pairs(kept[0][0], len(kept[0]))
    pairs.replace(*kept)
    return pairs.dense() if len(pairs) else None


def updated(H: Tensor | None, s: Tensor, y: Tensor) -> Tensor | None:
    """Return H after the pair ``s, y`` (N,); as it was if <s, y> <= 0."""
    sy = torch.dot(s, y)
    if not sy > 0:
        return H
    if H is None:  # Nocedal & Wright (6.20): the scale of the first curvature seen
        H = torch.eye(len(s), dtype=s.dtype, device=s.device) * (sy / torch.dot(y, y))
    Hy = H @ y
    r = 1.0 / sy
    # H - r (s Hy^T + Hy s^T) + r (1 + r <y, Hy>) s s^T
    u = 0.5 * (1.0 + r * torch.dot(y, Hy)) * s - Hy
    W = torch.outer(r * s, u)
    return H + W + W.T
