"""Clouds of points as arrays: their types, their classes, their centre."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Floats = NDArray[np.float64]


Integers = NDArray[np.int64]


def on_cpu(points: Tensor) -> Tensor:
    """Return a (m, D) tensor, detached, as float64 on the CPU, without a copy where it is that."""
    return points.detach().to("cpu", torch.float64)


def as_float64(points: Tensor) -> Floats:
    """Return a (m, D) tensor as a float64 array on the CPU, without a copy where it is one."""
    return on_cpu(points).numpy()


def centred(points: Floats) -> Floats:
    """Return ``points`` (m, D) minus their mean."""
    centre: Floats = points - np.add.reduce(points, 0) / max(len(points), 1)
    return centre


def class_rows(classes: Tensor | None, m: int) -> list[slice | Integers]:
    """Return the members of each class, as a slice where they are contiguous."""
    if classes is None:
        return [slice(0, m)]
    labels = classes.detach().cpu().numpy()
    found: list[slice | Integers] = []
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        first, last = int(members[0]), int(members[-1])
        contiguous = last - first + 1 == len(members)
        found.append(slice(first, last + 1) if contiguous else members)
    return found
