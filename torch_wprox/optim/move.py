"""How far a step moved: its distances and its optimal assignments."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from torch_wprox.closure.ranks import Agree, alone
from torch_wprox.distances.base import mean_squared
from torch_wprox.distances.emd.assignment import Assignment
from torch_wprox.objective import Block, Evaluation
from torch_wprox.objective.terms import scaled_norm
from torch_wprox.particles.flat import joined
from torch_wprox.report import Bound, TransportCounts

# A fresh exact assignment for the report costs seconds above this many particles.
_FRESH_UP_TO = 2000


@dataclass(frozen=True)
class Move:
    """A step from the anchor to the point that was accepted.

    Attributes:
        blocks: The blocks of the prox objective.
        accepted: The point accepted, as the solver saw it.
        end: The point that it stands for, (N,).
        anchor: W, (N,).
        bound: What a global solver proved.
        agree: Makes a number the same on all ranks.
    """

    blocks: tuple[Block, ...]
    accepted: Evaluation
    end: Tensor
    anchor: Tensor
    bound: Bound | None
    agree: Agree = alone

    def measured(self) -> dict[str, Any]:
        """Return the fields of a step report that need an optimal assignment."""
        monotone = self.accepted.monotone
        blocks = [_measured(b, b.of(self.end), b.of(self.anchor), monotone) for b in self.blocks]
        clouds = [b for b in blocks if b.block.is_cloud]
        particles = sum(b.block.m for b in clouds)
        exact = all(b.wasserstein_sq is not None for b in blocks)
        sigmas = tuple(b.sigma for b in clouds if b.sigma is not None)
        # Agreed at once: all ranks then go the same way below, and report one objective.
        value = self._agreed(
            self.accepted.loss + sum(b.distance_sq / (2.0 * b.block.gamma) for b in blocks)
        )
        return {
            "objective": value,
            "distance_sq": sum(b.distance_sq for b in blocks),
            "wasserstein_sq": sum(b.wasserstein_sq or 0.0 for b in blocks) if exact else None,
            "frobenius_sq": sum(b.frobenius_sq for b in blocks),
            "permuted_fraction": (
                sum(b.exchanged for b in clouds) / max(particles, 1) if exact else None
            ),
            "residual": self._residual(blocks, value),
            "assignment": None if not sigmas else sigmas[0] if len(sigmas) == 1 else sigmas,
            "transport": sum((b.distance.counts for b in self.blocks), TransportCounts()),
            "gap": None if self.bound is None else value - self.bound.lower_bound,
        }

    def _residual(self, blocks: list[_Measured], value: float) -> float:
        """Return |grad P| under the optimal assignments: the solver may have seen held ones."""
        if value == self.accepted.value:
            return self.accepted.residual
        parts = []
        for b in blocks:
            g = b.pull / (2.0 * b.block.gamma)
            if b.block.chart is not None:
                g = b.block.chart.cotangent(b.block.of(self.accepted.point), g)
            parts.append(g.reshape(-1))
        grad = self.accepted.loss_grad + joined(parts)
        residual = float(torch.linalg.vector_norm(grad))
        return self._agreed(residual if 0 < residual < math.inf else scaled_norm(grad))

    def _agreed(self, number: float) -> float:
        if self.agree is alone:
            return number
        return float(self.agree(torch.tensor(number, dtype=torch.float64)).item())


@dataclass(frozen=True)
class _Measured:
    """The distances that one block moved, and the assignment that is optimal for it."""

    block: Block
    distance_sq: float
    pull: Tensor
    frobenius_sq: float
    wasserstein_sq: float | None
    sigma: Tensor | None
    exchanged: int


def _measured(block: Block, V: Tensor, W: Tensor, monotone: bool) -> _Measured:
    """Measure one block's move from ``W`` to ``V``, both (m, D); ``monotone``: by a convex map."""
    frobenius_sq = mean_squared(V, W).value.item()
    settled = block.distance.monotone(V) if monotone else block.distance.settle(V)
    found = _Measured(
        block=block,
        distance_sq=settled.value.item(),
        pull=settled.gradient,
        frobenius_sq=frobenius_sq,
        wasserstein_sq=frobenius_sq,
        sigma=None,
        exchanged=0,
    )
    if not block.is_cloud:
        return found
    if monotone:
        return replace(found, sigma=torch.arange(block.m))
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
    if block.distance.is_proved:
        return block.distance.assignment
    transport = Assignment(W, block.classes)
    if block.m <= _FRESH_UP_TO:
        return transport.settle(V)
    return transport.sigma if transport.proves_identity(V) else None
