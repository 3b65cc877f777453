"""Ascent of many directions at once on the radius of a best response."""

from __future__ import annotations

import torch
from torch import Tensor

_ASCENT = 25


def ascended(X: Tensor, c: Tensor, w: Tensor, u: Tensor) -> Tensor:
    """Return directions (S, D) with larger <w, u> + <c, relu(X u)>: ascent, the better is kept."""

    def value(u: Tensor) -> Tensor:
        return (w * u).sum(1) + (u @ X.T).clamp_min(0.0) @ c

    best, step = value(u), u.new_full((len(u),), 0.3)
    for _ in range(_ASCENT):
        g = w + ((u @ X.T > 0) * c) @ X
        trial = u + (step / g.norm(dim=1).clamp_min(1e-300)).unsqueeze(1) * g
        trial = trial / trial.norm(dim=1, keepdim=True).clamp_min(1e-300)
        found = value(trial)
        better = found > best
        u = torch.where(better.unsqueeze(1), trial, u)
        best = torch.where(better, found, best)
        step = step * torch.where(better, 1.3, 0.4)
    return u
