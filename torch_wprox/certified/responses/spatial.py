"""Exact best responses of particles with three inputs, over all cells of space.

With frozen output weights the best response along a unit vector u is of radius

    r(u) = <u, W> + sum_j c_j relu(<x_j, u>),       c = -g/kappa,

so the particle's problem is max over the sphere of r. On a cell r(u) = <u, s>, s = W + p, with p
the slope of the cell: the maximum is at s/|s| if the cell contains it, else on an arc of the
boundary, where the same holds in the plane of the arc, else at a vertex. All vertices, arcs and
cells are compared for all particles.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from torch_wprox.certified.problem.particle_problem import Answer, ParticleProblem
from torch_wprox.certified.responses.arrangement import Arrangement
from torch_wprox.certified.responses.near_groups import near_groups

# Numbers held in memory at a time.
_NUMBERS_AT_ONCE = 2_000_000
# Near anchors that share one list of candidates.
_TOGETHER = 32
# A point outside its arc or cap by rounding counts as inside: a bound may only become lower by it.
_SLACK = 1e-9


@dataclass(frozen=True)
class _Candidates:
    """What the maximum of r can be: u on a vertex, inside an arc, inside a cell.

    Attributes:
        vertices: Unit vectors (V, 3).
        at_vertices: sum_j c_j relu(<x_j, u>) there, (V,).
        middles: Middles of arcs (E, 3).
        tangents: Unit tangents there (E, 3).
        tan: Tangents of half their angles (E,).
        along: <p, middle> and <p, tangent> of each arc, (E, 2).
        slopes: p of the cells (C, 3).
        centres: Of the caps around the cells, (C, 3).
        chords: Largest distance of a point of the cap from its centre, (C,).
    """

    vertices: Tensor
    at_vertices: Tensor
    middles: Tensor
    tangents: Tensor
    tan: Tensor
    along: Tensor
    slopes: Tensor
    centres: Tensor
    chords: Tensor

    @classmethod
    def of(cls, space: Arrangement, weights: Tensor) -> _Candidates:
        """Return all vertices, arcs and cells for c (n,)."""
        on, opposite, slopes = space.slopes(weights)
        vertices, middles, tangents = space.vertices, space.middles, space.tangents
        # Every vertex lies on two circles: one is enough.
        once = (space.order > torch.arange(len(on), device=on.device).unsqueeze(1)).flatten()
        flat = [t.reshape(-1, 3) for t in (on, opposite, vertices, middles, tangents)]
        on, opposite, vertices, middles, tangents = flat
        along = [
            torch.stack([(p * middles).sum(1), (p * tangents).sum(1)], 1) for p in (on, -opposite)
        ]
        at = [(p * vertices).sum(1)[once] for p in (on, -opposite)]
        tan = space.tan.flatten()
        return cls(
            vertices=torch.cat([vertices[once], -vertices[once]]),
            at_vertices=torch.cat(at),
            middles=torch.cat([middles, -middles]),
            tangents=torch.cat([tangents, -tangents]),
            tan=torch.cat([tan, tan]),
            along=torch.cat(along),
            slopes=slopes,
            centres=space.cells.centres,
            chords=space.cells.chords,
        )

    def near(self, anchor: Tensor, reach: float) -> _Candidates:
        """Leave out what no anchor within ``reach`` of ``anchor`` (3,) has its maximum at.

        With u' the best vertex for the anchor W, r(u) - r(u') changes by at most reach |u - u'|
        when W moves by ``reach``: what is lower than r(u') by more than that is out.
        """
        at = self.vertices @ anchor + self.at_vertices
        top = at.argmax()
        best, where = at[top], self.vertices[top]
        v = at + reach * (self.vertices - where).norm(dim=1) >= best
        a = self.middles @ anchor + self.along[:, 0]
        b = (self.tangents @ anchor + self.along[:, 1]).abs()
        cos = (1.0 + self.tan.square()).rsqrt()
        length = torch.hypot(a, b)
        highest = torch.where(b <= a * self.tan, length, a * cos + b * self.tan * cos)
        chord = (2.0 - 2.0 * cos).clamp_min(0.0).sqrt()
        e = highest + reach * ((self.middles - where).norm(dim=1) + chord) >= best
        s = self.slopes + anchor
        length, a = s.norm(dim=1), (s * self.centres).sum(1)
        b = (length.square() - a.square()).clamp_min(0.0).sqrt()
        cos = 1.0 - 0.5 * self.chords.square()
        sin = (1.0 - cos.square()).clamp_min(0.0).sqrt()
        highest = torch.where(a >= length * cos, length, a * cos + b * sin)
        c = highest + reach * ((self.centres - where).norm(dim=1) + self.chords) >= best
        v[top] = True
        return _Candidates(
            vertices=self.vertices[v],
            at_vertices=self.at_vertices[v],
            middles=self.middles[e],
            tangents=self.tangents[e],
            tan=self.tan[e],
            along=self.along[e],
            slopes=self.slopes[c],
            centres=self.centres[c],
            chords=self.chords[c],
        )

    def farthest(self, anchors: Tensor) -> tuple[Tensor, Tensor]:
        """Return the unit vector (b, 3) and the value (b,) of max r over vertices and arcs."""
        radius, which = (anchors @ self.vertices.T + self.at_vertices).max(1)
        u = self.vertices[which]
        if len(self.middles) > 0:
            a = anchors @ self.middles.T + self.along[:, 0]
            b = anchors @ self.tangents.T + self.along[:, 1]
            inside = b.abs() <= (1.0 + _SLACK) * a * self.tan
            length, which = torch.where(inside, a.square() + b.square(), -1.0).max(1)
            a, b = a.gather(1, which.unsqueeze(1)), b.gather(1, which.unsqueeze(1))
            longer = length.clamp_min(0.0).sqrt() > radius
            found = a * self.middles[which] + b * self.tangents[which]
            u = torch.where(longer.unsqueeze(1), found / found.norm(dim=1, keepdim=True), u)
            radius = torch.where(longer, length.clamp_min(0.0).sqrt(), radius)
        return u, radius

    def inside(self, anchors: Tensor, radius: Tensor) -> tuple[Tensor, Tensor]:
        """Return (anchor, direction) pairs at which r could exceed ``radius`` (b,) inside a cell.

        Only cells with |s| > radius whose cap contains s/|s|; r itself decides.
        """
        a = anchors @ self.centres.T + (self.slopes * self.centres).sum(1)
        length = 2.0 * anchors @ self.slopes.T + self.slopes.square().sum(1)
        length = length + anchors.square().sum(1, keepdim=True)
        cos = (1.0 - 0.5 * self.chords.square() - _SLACK).clamp_min(0.0)
        longer = length > radius.clamp_min(0.0).square().unsqueeze(1)
        which, cell = (longer & (a > 0) & (a.square() >= cos.square() * length)).nonzero().unbind(1)
        s = anchors[which] + self.slopes[cell]
        return which, s / s.norm(dim=1, keepdim=True)


class SpaceOracle:
    """Minimises <g, relu(X v)> + (kappa/2)|v - W_i|^2 over R^3, exactly.

    The best radius along u is r(u) = <u, W> - <g, relu(X u)>/kappa where that is positive, and the
    value (kappa/2)(|W|^2 - r^2).
    """

    is_exact = True

    def __init__(self, problem: ParticleProblem) -> None:
        self._space, self._stiffness = Arrangement.of(problem.features), problem.stiffness

    def respond(self, lam: Tensor, coefficient: Tensor | None, anchors: Tensor) -> Answer:
        """Return minimisers (b, 3) and minima (b,) for lam (n, k), a (k,), W (b, 3)."""
        assert coefficient is not None
        u, radius = farthest(self._space, -(lam @ coefficient) / self._stiffness, anchors)
        radius = radius.clamp_min(0.0)
        values = 0.5 * self._stiffness * (anchors.square().sum(1) - radius.square())
        return radius.unsqueeze(1) * u, values


def farthest(space: Arrangement, weights: Tensor, anchors: Tensor) -> tuple[Tensor, Tensor]:
    """Maximise r(u) = <u, W_i> + sum_j c_j relu(<x_j, u>) over the unit sphere, exactly.

    Args:
        space: All of space, cut by X (n, 3).
        weights: c (n,).
        anchors: W (b, 3).

    Returns:
        Unit vectors (b, 3) and maxima (b,), which may be negative.
    """
    everything = _Candidates.of(space, weights)
    u, radius = torch.empty_like(anchors), anchors.new_empty(len(anchors))
    for group in near_groups(anchors, size=_TOGETHER):
        W = anchors[group]
        centre = W.mean(0)
        table = everything.near(centre, float((W - centre).norm(dim=1).max()))
        width = max(len(table.vertices), len(table.middles), len(table.slopes))
        for part in torch.split(torch.arange(len(W)), max(1, _NUMBERS_AT_ONCE // width)):
            rows = group[part.to(group.device)]
            found, value = table.farthest(anchors[rows])
            which, inner = table.inside(anchors[rows], value)
            r = (inner * anchors[rows][which]).sum(1)
            r = r + (inner @ space.features.T).clamp_min(0.0) @ weights
            for i in torch.unique(which).tolist():
                mine = (which == i).nonzero()[:, 0]
                top = mine[r[mine].argmax()]
                if r[top] > value[i]:
                    value[i], found[i] = r[top], inner[top]
            u[rows], radius[rows] = found, value
    return u, radius
