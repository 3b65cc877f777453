"""One step of an observed flow."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Transition:
    """Where the condition of a step holds, and how fast the points there move.

    Attributes:
        points: The cloud after an implicit step, before an explicit one, (n, D).
        velocity: Of every point, (n, D): its way in the step over the time that the step took.
    """

    points: Tensor
    velocity: Tensor


def mean_over_partners(
    function: Callable[[Tensor], Tensor], points: Tensor, partners: int, seed: int
) -> Tensor:
    """Return the mean of function(y_i - y_j) over the partners j of every i, (n, ...).

    All others are partners where there are no more than ``partners``.
    """
    n = len(points)
    random = torch.Generator().manual_seed(seed)
    shifts = (torch.randperm(n - 1, generator=random)[:partners] + 1).tolist()
    total = function(points - points.roll(shifts[0], 0))
    for shift in shifts[1:]:
        total = total + function(points - points.roll(shift, 0))
    return total / len(shifts)
