"""What a user would write without this package: exact transport by POT inside autograd."""

from __future__ import annotations

from collections.abc import Sequence

import ot
import torch
from torch import Tensor


def emd2_by_autograd(V: Tensor, W: Tensor, classes: Sequence[Tensor]) -> Tensor:
    """Return W2^2(V, W) inside the classes, 0-d, differentiable through the cost matrices.

    Args:
        V: Particles (m, D).
        W: Anchors (m, D).
        classes: Which particles are in each class, as indices or masks. Each has mass 1/m.
    """
    parts = []
    for rows in classes:
        cost = ot.dist(V[rows], W[rows])
        mass = V.new_full((len(cost),), 1.0 / len(V))
        parts.append(ot.emd2(mass, mass, cost))
    return torch.stack(parts).sum()
