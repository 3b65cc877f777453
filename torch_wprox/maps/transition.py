"""One step of an observed flow."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Transition:
    """A cloud after a step, and where its points came from.

    Attributes:
        end: y, (n, D).
        origins: x for every y, (n, D).
        gamma: Time that the step took.
    """

    end: Tensor
    origins: Tensor
    gamma: float

    @property
    def velocity(self) -> Tensor:
        """(y - x)/gamma, (n, D)."""
        return (self.end - self.origins) / self.gamma


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
