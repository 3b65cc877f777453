"""Exact best responses of particles with three inputs: space cut into cells by <x_t, v> = 0."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from torch_wprox.certified.problem.particle_problem import Answer, ParticleProblem
from torch_wprox.certified.responses.planar import Sectors, frozen_response

# Relative size under which a midpoint counts as lying on a plane.
_ON_PLANE = 1e-10
_NUMBERS_AT_ONCE = 4_000_000


@dataclass(frozen=True)
class SpaceCells:
    """Space cut by the planes <x_t, v> = 0.

    Attributes:
        planes: An orthonormal basis (3, 2) of every plane, and the plane's own sectors.
        patterns: Signs of X v in every cell, (C, n).
    """

    planes: list[tuple[Tensor, Sectors]]
    patterns: Tensor

    @classmethod
    def of(cls, features: Tensor) -> SpaceCells:
        """Cut space by the planes of X (n, 3) and by the coordinate planes.

        Every cell has a facet, so the cells are the two sides of every planar sector. Coordinate
        planes make the arrangement essential; a cut more than needed changes no minimum.
        """
        X = features
        normals = torch.cat([X[X.norm(dim=1) > 0], torch.eye(3, dtype=X.dtype, device=X.device)])
        normals = normals / normals.norm(dim=1, keepdim=True)
        planes, patterns = [], []
        for normal in normals:
            basis = _plane_basis(normal)
            # Cut by every plane, the coordinate planes too: they bound cells as well.
            cut = Sectors.of(normals @ basis)
            middle = cut.rays + cut.rays.roll(-1, 0)
            side = X @ normal
            across = (middle @ basis.T) @ X.T
            on_plane = across.abs() <= _ON_PLANE * X.norm(dim=1) * middle.norm(dim=1, keepdim=True)
            for sign in (1.0, -1.0):
                patterns.append(torch.where(on_plane, sign * side > 0, across > 0))
            planes.append((basis, Sectors.of(X @ basis)))
        return cls(planes, torch.unique(torch.cat(patterns), dim=0))


class SpaceOracle:
    """Minimises <g, relu(X v)> + (kappa/2)|v - W_i|^2 over R^3, exactly.

    The minimiser lies inside a cell, where it is the cell's own stationary point W - p/kappa, or on
    a plane <x_t, v> = 0, where the problem is the planar one. All planes are solved first. A cell
    whose stationary value p.W - |p|^2/(2 kappa) is not below the best so far needs no look, because
    that value is a lower bound on the cell; of the others, the stationary point must have the signs
    of the cell.
    """

    is_exact = True

    def __init__(self, problem: ParticleProblem) -> None:
        self._features, self._stiffness = problem.features, problem.stiffness
        self._cells = SpaceCells.of(problem.features)

    def respond(self, lam: Tensor, coefficient: Tensor | None, anchors: Tensor) -> Answer:
        """Return minimisers (b, 3) and minima (b,) for lam (n, k), a (k,), W (b, 3)."""
        assert coefficient is not None
        X, kappa, g = self._features, self._stiffness, lam @ coefficient
        points = torch.zeros_like(anchors)
        values = 0.5 * kappa * anchors.square().sum(1)  # v = 0
        for basis, sectors in self._cells.planes:
            flat = anchors @ basis
            found, low = frozen_response(sectors, g, flat, kappa)
            low = low + 0.5 * kappa * (anchors - flat @ basis.T).square().sum(1)
            lower = low < values
            points = torch.where(lower.unsqueeze(1), found @ basis.T, points)
            values = torch.where(lower, low, values)
        slopes = self._cells.patterns.to(g.dtype) @ (g.unsqueeze(1) * X)  # (C, 3)
        bound = anchors @ slopes.T - slopes.square().sum(1) / (2.0 * kappa)
        which, cell = (bound < values.unsqueeze(1)).nonzero().unbind(1)
        for i, c in zip(
            torch.split(which, _NUMBERS_AT_ONCE // len(X)),
            torch.split(cell, _NUMBERS_AT_ONCE // len(X)),
            strict=True,
        ):
            v = anchors[i] - slopes[c] / kappa
            hidden = v @ X.T
            # Outside by rounding counts as inside: the bound may only become lower by that.
            slack = 1e-12 * v.norm(dim=1, keepdim=True) * X.norm(dim=1)
            agrees = torch.where(self._cells.patterns[c], hidden >= -slack, hidden <= slack).all(1)
            i, c, v = i[agrees], c[agrees], v[agrees]
            order = bound[i, c].argsort(descending=True)
            # Later writes win, and these are the lower ones.
            for j in order.tolist():
                if bound[i[j], c[j]] < values[i[j]]:
                    values[i[j]] = bound[i[j], c[j]]
                    points[i[j]] = v[j]
        return points, values


def _plane_basis(normal: Tensor) -> Tensor:
    """Return an orthonormal basis (3, 2) of the plane with that normal (3,)."""
    axis = torch.zeros_like(normal)
    axis[normal.abs().argmin()] = 1.0
    first = torch.linalg.cross(normal, axis)
    first = first / first.norm()
    return torch.stack([first, torch.linalg.cross(normal, first)], 1)
