"""Space cut into cells by the planes <x_t, v> = 0, with its vertices, arcs and cells on the sphere.

n planes through 0 cut the unit sphere along n great circles. Two circles meet in two opposite
vertices, which cut every circle into arcs, and the arcs bound at most n^2 - n + 2 cells. On a cell
every ReLU is linear. Crossing one vertex of a circle switches one sample on or off, so a sum over
the active samples is a cumulative sum along each circle: n^2 numbers in all, and never the n^3 of a
table of cells and samples.

The second half of a circle is the antipode of the first, and only the first is stored.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

# Normals whose cross product is shorter than this are one plane; that moves <x_t, u> by less.
_PARALLEL = 1e-13


@dataclass(frozen=True)
class Cells:
    """The cells of the sphere, each inside a cap.

    Attributes:
        arc: For every cell one of its sides of arcs, as a position in (4, J, A), (C,).
        centres: Unit vectors, the centres of the caps, (C, 3).
        chords: Largest distance of a point of the cell from its centre, (C,).
    """

    arc: Tensor
    centres: Tensor
    chords: Tensor


@dataclass(frozen=True)
class Arrangement:
    """Great circles j = 0 .. J - 1, each with its A = J - 1 vertices in order.

    Arc a of circle j goes from vertex (j, a) to vertex (j, a + 1), the last one to the antipode of
    vertex (j, 0).

    Attributes:
        features: X (n, 3).
        plane: The circle of every sample, (n,); -1 for samples that are 0.
        side: Sign of <x_t, normal of its plane>, (n,).
        order: The other circle that passes through vertex (j, a), (J, A).
        turn: Whether that circle's normal becomes positive there (1) or negative (-1), (J, A).
        first: Which circles' normals are positive on arc (j, 0), (J, J).
        vertices: Unit vectors (J, A, 3).
        middles: Of the arcs, (J, A, 3).
        tangents: Along the circle, at the middles, (J, A, 3).
        tan: Tangent of half the angle of an arc, (J, A).
        cells: The cells between the circles.
    """

    features: Tensor
    plane: Tensor
    side: Tensor
    order: Tensor
    turn: Tensor
    first: Tensor
    vertices: Tensor
    middles: Tensor
    tangents: Tensor
    tan: Tensor
    cells: Cells

    @classmethod
    def of(cls, features: Tensor) -> Arrangement:
        """Cut space by the planes of X (n, 3) and by the coordinate planes.

        Coordinate planes make every cell a pointed cone narrower than an octant, whatever X is; a
        cut more than needed changes no maximum.
        """
        X = features
        length = X.norm(dim=1)
        nonzero = (length > 0).nonzero()[:, 0]
        eye = torch.eye(3, dtype=X.dtype, device=X.device)
        normals, plane_of = _distinct(torch.cat([X[nonzero] / length[nonzero, None], eye]))
        plane = torch.full_like(length, -1.0).long()
        plane[nonzero] = plane_of[: len(nonzero)]
        side = torch.zeros_like(length)
        side[nonzero] = (X[nonzero] * normals[plane[nonzero]]).sum(1).sign()

        along, across = _bases(normals)
        # Circle k meets circle j in the direction normal to both, in the coordinates of plane j.
        angle = torch.atan2(along @ normals.T, -across @ normals.T).remainder(math.pi)
        angle = angle.fill_diagonal_(math.inf)
        angle, order = angle.sort(dim=1)
        angle, order = angle[:, :-1], order[:, :-1]
        following = torch.cat([angle[:, 1:], angle[:, :1] + math.pi], 1)
        middle = 0.5 * (angle + following)

        def on_circle(theta: Tensor) -> Tensor:
            """Return the points (J, A, 3) at angles (J, A)."""
            cos, sin = theta.cos().unsqueeze(2), theta.sin().unsqueeze(2)
            return cos * along.unsqueeze(1) + sin * across.unsqueeze(1)

        quarter = 0.5 * math.pi
        rises = (on_circle(angle + quarter) * normals[order]).sum(2) > 0
        first = on_circle(middle[:, :1])[:, 0] @ normals.T > 0
        turn = torch.where(rises, 1.0, -1.0).to(X.dtype)
        vertices, middles = on_circle(angle), on_circle(middle)
        return cls(
            features=X,
            plane=plane,
            side=side,
            order=order,
            turn=turn,
            first=first.fill_diagonal_(False),
            vertices=vertices,
            middles=middles,
            tangents=on_circle(middle + quarter),
            tan=(0.5 * (following - angle)).tan(),
            cells=_cells(order, turn, first, vertices, middles),
        )

    def slopes(self, weights: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return p = X^T (1_active * c) on all arcs and in all cells.

        Args:
            weights: c (n,).

        Returns:
            p on the arcs (J, A, 3), on the opposite arcs (J, A, 3), and in the cells (C, 3).
            Samples on the circle itself do not count on its arcs.
        """
        cx = weights.unsqueeze(1) * self.features
        zero = cx.new_zeros(len(self.order), 3)
        positive, negative = (
            ((self.plane >= 0) & (sign * self.side > 0)).nonzero()[:, 0] for sign in (1.0, -1.0)
        )
        up = zero.index_add(0, self.plane[positive], cx[positive])
        down = zero.index_add(0, self.plane[negative], cx[negative])
        on = _along(self.order, self.turn, self.first, up, down)
        total = (up + down).sum(0)
        opposite = total - (up + down).unsqueeze(1) - on
        plus, minus = on + up.unsqueeze(1), on + down.unsqueeze(1)
        sides = torch.stack([plus, minus, total - minus, total - plus])
        return on, opposite, sides.reshape(-1, 3)[self.cells.arc]


def _along(order: Tensor, turn: Tensor, first: Tensor, up: Tensor, down: Tensor) -> Tensor:
    """Sum up_k over the circles with positive normal and down_k over the others, on every arc.

    Args:
        order: See :class:`Arrangement`.
        turn: See :class:`Arrangement`.
        first: See :class:`Arrangement`.
        up: (J, q).
        down: (J, q).

    Returns:
        (J, A, q); a circle does not count on its own arcs.
    """
    start = torch.where(first.unsqueeze(2), up, down).sum(1) - down
    change = turn.unsqueeze(2).to(up.dtype) * (up - down)[order]
    change[:, 0] = 0
    return start.unsqueeze(1) + change.cumsum(1)


def _cells(order: Tensor, turn: Tensor, first: Tensor, vertices: Tensor, middles: Tensor) -> Cells:
    """Find which of the sides of arcs belong to one cell, and a cap around each cell.

    Every cell has an arc. A cell is known by its signs; the sum of one random 64-bit number for
    each positive normal stands for them, and a second one checks that equal sums mean equal signs.
    """
    generator = torch.Generator().manual_seed(0)
    size = (len(order), 2)
    marks = torch.randint(-(2**62), 2**62, size, generator=generator).to(order.device)
    on = _along(order, turn, first, marks, torch.zeros_like(marks))
    plus, minus, total = on + marks.unsqueeze(1), on, marks.sum(0)
    # At the antipode of an arc all signs are opposite: its plus side faces this arc's minus side.
    keys = torch.stack([plus, minus, total - minus, total - plus]).reshape(-1, 2)
    found, cell = torch.unique(keys[:, 0], return_inverse=True)
    count = len(found)
    arc = torch.empty_like(found)
    arc[cell] = torch.arange(len(cell), device=cell.device)
    if not torch.equal(keys[arc, 1][cell], keys[:, 1]):
        raise RuntimeError("two cells of space have one 64-bit mark: please report this data set")

    def on_sides(points: Tensor) -> Tensor:
        return torch.stack([points, points, -points, -points]).reshape(-1, 3)

    ends = vertices.roll(-1, 1)
    ends[:, -1] *= -1
    centres = middles.new_zeros(count, 3).index_add(0, cell, on_sides(middles))
    centres = centres / centres.norm(dim=1, keepdim=True)
    reach = torch.maximum(
        *((on_sides(p) - centres[cell]).square().sum(1) for p in (vertices, ends))
    )
    chords = reach.new_zeros(count).scatter_reduce(0, cell, reach, "amax").sqrt()
    return Cells(arc, centres, chords)


def _distinct(normals: Tensor) -> tuple[Tensor, Tensor]:
    """Return normals of distinct planes (J, 3), and which of them each normal (n, 3) spans."""
    cross = torch.linalg.cross(normals.unsqueeze(1), normals.unsqueeze(0))
    parallel = cross.square().sum(2) <= _PARALLEL**2
    earliest = parallel.to(torch.uint8).argmax(1)
    # Chains of nearly parallel planes: everyone's earliest must be its own earliest.
    while not torch.equal(earliest[earliest], earliest):
        earliest = earliest[earliest]
    kept, of = torch.unique(earliest, return_inverse=True)
    return normals[kept], of


def _bases(normals: Tensor) -> tuple[Tensor, Tensor]:
    """Return orthonormal bases (J, 3), (J, 3) of the planes with these unit normals (J, 3)."""
    axis = torch.zeros_like(normals)
    axis.scatter_(1, normals.abs().argmin(1, keepdim=True), 1.0)
    along = torch.linalg.cross(normals, axis)
    along = along / along.norm(dim=1, keepdim=True)
    return along, torch.linalg.cross(normals, along)
