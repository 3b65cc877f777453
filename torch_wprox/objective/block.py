"""A block of the flat vector: a cloud or a plain tensor, with its distance to the anchor."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from torch_wprox.distances.base import AnchoredDistance


class Chart(Protocol):
    """Coordinates in which a block is a manifold, as directions on a sphere."""

    def project(self, V: Tensor) -> Tensor:
        """Return the point (m, D) of the manifold that ``V`` (m, D) stands for."""

    def cotangent(self, V: Tensor, g: Tensor) -> Tensor:
        """Return the gradient (m, D) at ``V`` of f(project(V)) where f has the gradient ``g``."""


@dataclass(frozen=True)
class Block:
    """A cloud or a plain tensor: rows ``start : start + m*D`` of the flat vector.

    Attributes:
        start: Offset in the flat vector.
        m: Number of particles, each of mass 1/m.
        D: Numbers per particle.
        gamma: Step size; d/(2 gamma) enters P.
        weight_decay: F gets (weight_decay/2)|V|^2.
        distance: d(., W) with the anchor inside.
        is_cloud: False for a plain tensor, which is never exchanged nor counted as a particle.
        classes: (m,) labels, equal labels are exchangeable; None: all are.
        chart: Coordinates on a manifold, None in a Euclidean space.
        stored_as: Type of the parameters where it is coarser than that of the computation: the
            closure sees rounded positions, so that d must be measured at these.
    """

    start: int
    m: int
    D: int
    gamma: float
    weight_decay: float
    distance: AnchoredDistance
    is_cloud: bool
    classes: Tensor | None = None
    chart: Chart | None = None
    stored_as: torch.dtype | None = None

    @property
    def curvature(self) -> float:
        """1/(m gamma), the Hessian scale of d/(2 gamma)."""
        return 1.0 / (self.m * self.gamma)

    def of(self, v: Tensor) -> Tensor:
        """Return the block's (m, D) view of a flat vector (N,)."""
        size = self.m * self.D
        if v.numel() != size:
            v = v[self.start : self.start + size]
        return v.view(self.m, self.D)

    def project(self, V: Tensor) -> Tensor:
        """Return the point (m, D) that ``V`` (m, D) stands for."""
        if self.chart is not None:
            V = self.chart.project(V)
        return V if self.stored_as is None else V.to(self.stored_as).to(V.dtype)

    @property
    def moves_freely(self) -> bool:
        """Whether every V stands for itself."""
        return self.chart is None and self.stored_as is None
