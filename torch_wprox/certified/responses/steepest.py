"""The unit direction in which a neuron would lower the loss the fastest: max_u |lam^T relu(X u)|.

It is the dual norm of the path norm: a network that minimises R + beta sum_i |w_i||a_i| has
|lam^T relu(X u)| <= beta for every unit u, lam the gradient of R at its output.
"""

from __future__ import annotations

import math
import time

import torch
from torch import Tensor

from torch_wprox.certified.problem.batched_bfgs import batched_bfgs
from torch_wprox.certified.responses.arrangement import Arrangement
from torch_wprox.certified.responses.branch_and_bound import proved_radii
from torch_wprox.certified.responses.directions import unit
from torch_wprox.certified.responses.planar import Sectors
from torch_wprox.certified.responses.searched import Dictionary
from torch_wprox.certified.responses.spatial import farthest

_REFINEMENT = 60
_REFINED = 16


class Steepest:
    """Finds argmax over |u| = 1 of |lam^T relu(X u)|.

    In a sector of the plane the function is |G^T u| with G = X^T(1_s lam): its maximum is at a ray
    or at the top eigenvector of G G^T. The same holds in the cells of space (one output), whose
    boundaries are planes. Other dimensions search a dictionary and ascend from its best entries.

    Args:
        features: X (n, d).
        outputs: k.
        exact_cells: As in :class:`~torch_wprox.certified.responses.best_response.BestResponse`.
        known: Directions (s, d) that a search must not miss, those of a network at hand: what it
            answers is never below their best, so that no bound is above the value of that network.
    """

    def __init__(
        self,
        features: Tensor,
        outputs: int,
        exact_cells: int = 400_000,
        known: Tensor | None = None,
    ) -> None:
        n, d = features.shape
        self._features = features
        self._sectors = Sectors.of(features) if d == 2 else None
        fits = d == 3 and outputs == 1 and 4 * n**2 <= exact_cells
        self._cells = Arrangement.of(features) if fits else None
        searched = self._sectors is None and self._cells is None
        self._dictionary = Dictionary(features, features[:0]) if searched else None
        self.is_exact = not searched
        self._known = features[:0] if known is None else unit(known[known.norm(dim=1) > 0])

    def know(self, direction: Tensor) -> None:
        """Never miss this unit vector (d,) from now on."""
        if not self.is_exact:
            self._known = torch.cat([self._known, direction.unsqueeze(0)])

    def __call__(self, lam: Tensor) -> tuple[Tensor, float]:
        """Return the direction (d,) and the maximum, for lam (n, k)."""
        if self._sectors is not None:
            candidates = _planar_candidates(self._sectors, lam)
        elif self._cells is not None:
            candidates = self._spatial_candidates(self._cells, lam)
        else:
            candidates = self._searched_candidates(lam)
        sizes = ((candidates @ self._features.T).clamp_min(0.0) @ lam).norm(dim=1)
        best = int(sizes.argmax())
        return candidates[best], float(sizes[best])

    def proved(self, lam: Tensor, *, seconds: float, tolerance: float = 0.01) -> float:
        """Return a number that max over |u| = 1 of |lam^T relu(X u)| is proved not to exceed.

        Where directions are exact it is the maximum. Elsewhere branch and bound proves it for each
        sign of each output; several outputs are bounded one by one, and by the root of the sum of
        their squares together, which may be sqrt(k) times too much.

        Args:
            lam: Loss gradient (n, k).
            seconds: Stop then, with what is proved.
            tolerance: Stop when the maximum is known up to this share.
        """
        u, size = self(lam)
        if self.is_exact:
            return size
        until = time.monotonic() + seconds
        origin = self._features.new_zeros(1, self._features.shape[1])
        outputs = lam.shape[1]
        square = 0.0
        for c in range(outputs):
            largest = 0.0
            for i, sign in enumerate((1.0, -1.0)):
                now = time.monotonic()
                found = proved_radii(
                    self._features,
                    sign * lam[:, c],
                    origin,
                    torch.cat([u.unsqueeze(0), self._features]),
                    tolerance=tolerance,
                    seconds=max(0.0, until - now) / (2 * (outputs - c) - i),
                )
                largest = max(largest, float(found.proved))
            square += largest**2
        return math.sqrt(square)

    def _spatial_candidates(self, cells: Arrangement, lam: Tensor) -> Tensor:
        origin = self._features.new_zeros(1, 3)
        return torch.cat([farthest(cells, sign * lam[:, 0], origin)[0] for sign in (1.0, -1.0)])

    def _searched_candidates(self, lam: Tensor) -> Tensor:
        assert self._dictionary is not None
        table = self._dictionary
        sizes = (table.values @ lam).norm(dim=1)
        start = table.directions[sizes.topk(min(_REFINED, len(sizes))).indices]
        X = self._features
        if len(self._known) > 0:
            reached = ((self._known @ X.T).clamp_min(0.0) @ lam).norm(dim=1)
            best = reached.topk(min(_REFINED, len(reached))).indices
            start = torch.cat([start, self._known[best]])

        def function(v: Tensor) -> tuple[Tensor, Tensor]:
            # -|q(v)|/|v| is constant along rays, and its descent stays near the sphere.
            radius = v.norm(dim=1, keepdim=True)
            hidden = v @ X.T
            q = hidden.clamp_min(0.0) @ lam
            size = q.norm(dim=1, keepdim=True)
            grad = ((hidden > 0) * ((q / size.clamp_min(1e-300)) @ lam.T)) @ X
            return -(size / radius)[:, 0], -grad / radius + size * v / radius**3

        scale = 1.0 / max(float(sizes.max()), 1e-300)
        found = unit(batched_bfgs(function, start, scale, max_rounds=_REFINEMENT).points)
        table.learn(found)
        return torch.cat([start, found])


def _planar_candidates(sectors: Sectors, lam: Tensor) -> Tensor:
    G = sectors.slopes(lam.T).permute(1, 2, 0)  # (S, 2, k)
    top = torch.linalg.eigh(G @ G.mT)[1][..., -1]
    return torch.cat([sectors.rays, top, -top])
