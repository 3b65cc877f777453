"""Curvature pairs of F that carry over from one step to the next."""

from __future__ import annotations

from collections import deque
from typing import Any

import torch
from torch import Tensor

from torch_wprox.objective import Evaluation, Objective


class CurvaturePairs:
    """The last steps s and the differences y of the gradient of F along them.

    F is the same function in the next step of a full-batch run, the distance term is not: its
    anchor moves. But its Hessian is kappa I, kappa = 1/(m gamma), whatever the anchor, so a pair
    (s, y) of F is the pair (s, y + kappa s) of the next P.

    Args:
        most: Number of pairs kept.
    """

    def __init__(self, most: int) -> None:
        self._pairs: deque[tuple[Tensor, Tensor]] = deque(maxlen=most)

    def note(self, before: Evaluation, after: Evaluation) -> None:
        """Keep the pair of one accepted iteration."""
        self._pairs.append((after.point - before.point, after.loss_grad - before.loss_grad))

    def state(self) -> dict[str, Any] | None:
        """Return the pairs as two tensors (k, N), oldest first; None without any."""
        if not self._pairs:
            return None
        steps, differences = zip(*self._pairs, strict=True)
        return {"steps": torch.stack(steps), "differences": torch.stack(differences)}

    def recall(
        self, memory: dict[str, Any] | None, objective: Objective
    ) -> tuple[Tensor, Tensor] | None:
        """Take over the pairs of the last step; return them as pairs (k, N) of this objective."""
        if memory is None:
            return None
        first = max(0, len(memory["steps"]) - (self._pairs.maxlen or 0))
        steps, differences = memory["steps"][first:], memory["differences"][first:]
        self._pairs.extend(zip(steps, differences, strict=True))
        return steps, differences + objective.distance_hessian() * steps
