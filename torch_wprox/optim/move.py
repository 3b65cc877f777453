"""How far one block moved: its distances and its optimal assignment."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from torch_wprox.distances.base import mean_squared
from torch_wprox.distances.emd.assignment import Assignment
from torch_wprox.objective import Block

# A fresh exact assignment for the report costs seconds above this many particles.
_FRESH_UP_TO = 2000


@dataclass(frozen=True)
class Measured:
    """The distances that one block moved, and the assignment that is optimal for it."""

    is_cloud: bool
    m: int
    gamma: float
    distance_sq: float
    frobenius_sq: float
    wasserstein_sq: float | None
    sigma: Tensor | None
    exchanged: int


def measured(block: Block, V: Tensor, W: Tensor) -> Measured:
    """Measure one block's move from ``W`` to ``V``, both (m, D)."""
    frobenius_sq = mean_squared(V, W).value.item()
    found = Measured(
        is_cloud=block.is_cloud,
        m=block.m,
        gamma=block.gamma,
        distance_sq=block.distance.settle(V).value.item(),
        frobenius_sq=frobenius_sq,
        wasserstein_sq=frobenius_sq,
        sigma=None,
        exchanged=0,
    )
    if not block.is_cloud:
        return found
    sigma = _optimal_assignment(block, V, W)
    if sigma is None:
        return replace(found, wasserstein_sq=None, sigma=block.distance.assignment)
    exchanged = int((sigma.cpu() != torch.arange(block.m)).sum())
    wasserstein_sq = frobenius_sq
    if exchanged:
        wasserstein_sq = mean_squared(V, W[sigma.to(W.device)]).value.item()
    return replace(found, wasserstein_sq=wasserstein_sq, sigma=sigma, exchanged=exchanged)


def _optimal_assignment(block: Block, V: Tensor, W: Tensor) -> Tensor | None:
    """Return an optimal sigma (m,): the identity where it ties; None if that would take too long.

    It is the one in force where that is proved, else a fresh one, for clouds that are not large.
    """
    if block.distance.is_certified:
        return block.distance.assignment
    transport = Assignment(W, block.classes)
    if block.m <= _FRESH_UP_TO:
        return transport.settle(V)
    return transport.sigma if transport.proves_identity(V) else None
