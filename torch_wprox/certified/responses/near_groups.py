"""Points split into groups of near ones."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def near_groups(
    points: Tensor, *, size: int | None = None, reach: float = math.inf
) -> list[Tensor]:
    """Split points (m, D) at medians of the widest coordinate into groups (indices).

    Args:
        points: What to split.
        size: Points of a group at most; None: any number.
        reach: How far they may be from their mean.
    """
    waiting, done = [torch.arange(len(points), device=points.device)], []
    while waiting:
        group = waiting.pop()
        x = points[group]
        near = reach == math.inf or float((x - x.mean(0)).norm(dim=1).max()) <= reach
        if len(group) <= 1 or (near and (size is None or len(group) <= size)):
            done.append(group)
            continue
        order = x[:, int((x.amax(0) - x.amin(0)).argmax())].argsort()
        half = len(group) // 2
        waiting += [group[order[:half]], group[order[half:]]]
    return done
