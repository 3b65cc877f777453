"""Exact best responses of particles (w, alpha) with w in the plane, sector by sector."""

from __future__ import annotations

import torch
from torch import Tensor

from torch_wprox.certified.problem.particle_problem import Answer, ParticleProblem
from torch_wprox.certified.responses.planar import Sectors


class JointSectors:
    """Minimises scale <lam, relu(X w) alpha^T> + (kappa/2)(|w - w_0|^2 + |alpha - alpha_0|^2).

    On sector s the first term is w^T G alpha with G = scale X^T(1_s lam). The best output weight is
    alpha = alpha_0 - G^T w/kappa, and what is left is quadratic in w,

        (1/2) w^T (kappa I - G G^T/kappa) w - <w, kappa w_0 - G alpha_0> + (kappa/2)|w_0|^2,

    not always convex. If it is bounded below on the sector, its minimum there is at a stationary
    point inside, on one of the rays, or at 0; it is unbounded if |G^T u| >= kappa for a unit vector
    u of the sector, and the largest |G^T u| is at a ray or at the top eigenvector of G G^T.
    """

    is_exact = True

    def __init__(self, problem: ParticleProblem) -> None:
        self._sectors = Sectors.of(problem.features)
        self._problem = problem

    def respond(self, lam: Tensor, coefficient: Tensor | None, anchors: Tensor) -> Answer:
        """Return minimisers (b, 2 + k) and minima (b,), -inf if unbounded, for lam (n, k)."""
        p, s = self._problem, self._sectors
        kappa = p.stiffness
        w0, alpha0 = anchors[:, :2], anchors[:, 2:]
        weights = p.scale * lam
        G = s.slopes(weights.T).permute(1, 2, 0)  # (S, 2, k)
        q = s.ray_values @ weights  # (S, k), G^T u on the ray of u
        bend = kappa - q.square().sum(1) / kappa
        gram = G @ G.mT
        if bool((bend <= 0).any()) or self._unbounded_inside(gram):
            return anchors, torch.full_like(anchors[:, 0], -torch.inf)
        base = 0.5 * kappa * w0.square().sum(1)

        pull = kappa * (w0 @ s.rays.T) - alpha0 @ q.T  # (b, S)
        gain = pull.clamp_min(0.0).square() / (2.0 * bend)
        best_gain, ray = gain.max(1)
        rows = torch.arange(len(anchors), device=anchors.device)
        radius = pull[rows, ray].clamp_min(0.0) / bend[ray]
        w, values = radius.unsqueeze(1) * s.rays[ray], base - best_gain

        eye = torch.eye(2, dtype=G.dtype, device=G.device)
        hessian = kappa * eye - gram / kappa
        right = kappa * w0.unsqueeze(1) - (G @ alpha0.T).permute(2, 0, 1)  # (b, S, 2)
        stationary = _solved(hessian, right)
        inner = base.unsqueeze(1) - 0.5 * (stationary * right).sum(2)
        inside = s.contain(stationary) & stationary.isfinite().all(2)
        inner = torch.where(inside, inner, torch.inf)
        best_inner, sector = inner.min(1)
        lower = best_inner < values
        w = torch.where(lower.unsqueeze(1), stationary[rows, sector], w)
        values = torch.where(lower, best_inner, values)
        alpha = alpha0 - ((w @ p.features.T).clamp_min(0.0) @ weights) / kappa
        return torch.cat([w, alpha], 1), values

    def _unbounded_inside(self, gram: Tensor) -> bool:
        """Return whether |G^T u| >= kappa at an eigenvector u inside its sector."""
        eigenvalues, vectors = torch.linalg.eigh(gram)
        top = vectors[..., -1]  # (S, 2)
        inside = self._sectors.contain(top) | self._sectors.contain(-top)
        return bool((inside & (eigenvalues[:, -1] >= self._problem.stiffness**2)).any())


def _solved(A: Tensor, b: Tensor) -> Tensor:
    """Return A^-1 b by Cramer's rule for A (S, 2, 2), b (.., S, 2); not finite if singular."""
    det = A[:, 0, 0] * A[:, 1, 1] - A[:, 0, 1] * A[:, 1, 0]
    x = (b[..., 0] * A[:, 1, 1] - A[:, 0, 1] * b[..., 1]) / det
    y = (A[:, 0, 0] * b[..., 1] - b[..., 0] * A[:, 1, 0]) / det
    return torch.stack([x, y], -1)
