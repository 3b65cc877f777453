"""The plane cut into sectors by the lines <x_t, v> = 0: on each of them every ReLU is linear."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from torch_wprox.certified.problem.particle_problem import Answer, ParticleProblem

# Anchors x sectors that are held in memory at a time.
_NUMBERS_AT_ONCE = 4_000_000


@dataclass(frozen=True)
class Sectors:
    """Rays u_0, u_1, .. in counter-clockwise order; sector s lies between u_s and u_{s+1}.

    Attributes:
        rays: u (S, 2), unit vectors.
        ray_values: relu(X u), (S, n).
        active: 1 where <x_t, .> > 0 inside the sector, (S, n).
        features: X (n, 2).
    """

    rays: Tensor
    ray_values: Tensor
    active: Tensor
    features: Tensor

    @classmethod
    def of(cls, features: Tensor) -> Sectors:
        """Cut the plane by the lines of X (n, 2) and by both axes.

        The axes make every sector narrower than a half plane, so that a sector is the convex cone
        of its two rays whatever X is; a cut more than needed changes no minimum.
        """
        x, y = features[:, 0], features[:, 1]
        lines = torch.atan2(x, -y)[(x != 0) | (y != 0)]  # the direction (-y, x) spans the line
        axes = lines.new_tensor([0.0, 0.5 * math.pi])
        angles = torch.unique(torch.cat([lines, axes]).remainder(math.pi))
        angles = torch.cat([angles, angles + math.pi])
        rays = torch.stack([angles.cos(), angles.sin()], 1)
        following = torch.cat([angles[1:], angles[:1] + 2.0 * math.pi])
        middle = 0.5 * (angles + following)
        inside = torch.stack([middle.cos(), middle.sin()], 1)
        active = (inside @ features.T > 0).to(features.dtype)
        return cls(rays, (rays @ features.T).clamp_min(0.0), active, features)

    def slopes(self, weights: Tensor) -> Tensor:
        """Return p_s = X^T (1_s * weights), (.., S, 2), for weights (.., n)."""
        return self.active @ (weights.unsqueeze(-1) * self.features)

    def contain(self, points: Tensor) -> Tensor:
        """Return whether points (.., S, 2) lie in their sector, both rays included.

        A point outside by rounding counts as inside: it can only lower a lower bound.
        """
        before, after = self.rays, self.rays.roll(-1, 0)
        slack = 1e-12 * (points[..., 0].abs() + points[..., 1].abs())
        left = before[:, 0] * points[..., 1] - before[:, 1] * points[..., 0]
        right = points[..., 0] * after[:, 1] - points[..., 1] * after[:, 0]
        return (left >= -slack) & (right >= -slack)


def frozen_response(
    sectors: Sectors, weights: Tensor, anchors: Tensor, stiffness: float
) -> tuple[Tensor, Tensor]:
    """Minimise <g, relu(X v)> + (kappa/2)|v - W_i|^2 over the plane, exactly, for every anchor.

    In a sector the objective is p.v + (kappa/2)|v - W|^2, whose minimiser over the sector is
    v = W - p/kappa if that lies inside, else a point of one of the two rays. On the ray of u the
    ReLU is homogeneous, so the best radius is r = max(0, <u, W> - <g, relu(X u)>/kappa), of value
    (kappa/2)(|W|^2 - r^2).

    Args:
        sectors: The plane, cut.
        weights: g (n,).
        anchors: W (m, 2).
        stiffness: kappa.

    Returns:
        Minimisers (m, 2) and minima (m,).
    """
    radius = anchors @ sectors.rays.T - (sectors.ray_values @ weights) / stiffness
    best_radius, ray = radius.max(1)
    best_radius = best_radius.clamp_min(0.0)
    points = best_radius.unsqueeze(1) * sectors.rays[ray]
    values = 0.5 * stiffness * (anchors.square().sum(1) - best_radius.square())

    slopes = sectors.slopes(weights)
    stationary = anchors.unsqueeze(1) - slopes / stiffness
    inner = anchors @ slopes.T - slopes.square().sum(1) / (2.0 * stiffness)
    inner = torch.where(sectors.contain(stationary), inner, torch.inf)
    best_inner, sector = inner.min(1)
    found = stationary.gather(1, sector.view(-1, 1, 1).expand(-1, 1, 2)).squeeze(1)
    lower = best_inner < values
    return torch.where(lower.unsqueeze(1), found, points), torch.where(lower, best_inner, values)


class PlaneOracle:
    """Exact best responses of particles with two inputs, over sectors prepared once."""

    is_exact = True

    def __init__(self, problem: ParticleProblem) -> None:
        self._sectors = Sectors.of(problem.features)
        self._stiffness = problem.stiffness

    def respond(self, lam: Tensor, coefficient: Tensor | None, anchors: Tensor) -> Answer:
        """Return minimisers (b, 2) and minima (b,) for lam (n, k), a (k,), W (b, 2)."""
        assert coefficient is not None
        weights = lam @ coefficient
        chunk = max(1, _NUMBERS_AT_ONCE // len(self._sectors.rays))
        parts = [
            frozen_response(self._sectors, weights, part, self._stiffness)
            for part in torch.split(anchors, chunk)
        ]
        return torch.cat([v for v, _ in parts]), torch.cat([f for _, f in parts])
