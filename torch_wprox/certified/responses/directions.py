"""Directions of neurons: rows scaled to length 1."""

from __future__ import annotations

import torch
from torch import Tensor


def unit(v: Tensor) -> Tensor:
    """Return the rows of v (b, d) scaled to length 1; those that are 0 stay so."""
    norm = v.norm(dim=1, keepdim=True)
    return v / torch.where(norm > 0, norm, torch.ones_like(norm))
