"""Proved best responses in any dimension: branch and bound on the signs of the samples.

The best radius of the particle with anchor w_i is max over |u| <= 1 of

    r_i(u) = <w_i, u> + sum_j c_j relu(<x_j, u>).

A node is a set of directions in which some samples with c_j > 0 have a decided sign; samples with
c_j < 0 are concave terms and stay as they are. :class:`MomentBound` bounds r on many nodes at once,
for any anchor, and well for anchors that are near each other: one tree serves a group of near
particles, each with its own bound, and the trees of all groups grow together. The node whose bound
exceeds what has been reached by most is branched first, on the sample whose bound is the loosest at
the node's moments. What is reached are directions found by ascent from the nodes' mean directions.

Every number that is returned as proved is a weak-duality bound evaluated in float64 with a margin
for its rounding; the solver's convergence is nowhere assumed.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from torch_wprox.certified.responses.ascent import ascended
from torch_wprox.certified.responses.moment_bound import (
    MomentBound,
    Multipliers,
    Nodes,
    at_anchors,
)
from torch_wprox.certified.responses.near_groups import near_groups
from torch_wprox.certified.responses.open_nodes import OpenNodes

# Nodes solved together; fewer where one takes more memory.
_BATCH, _NUMBERS_AT_ONCE = 64, 4_000_000
# The barrier falls from the first to the last of these shares of the tolerance, at the root ..
_ROOT = ((1e-1, 8), (1e-2, 6), (1e-3, 6))
# .. and in children, which start from their parent's multipliers.
_CHILD, _STEPS = 10.0, 5
_FINER = 0.1
_LAST_BARRIER = 1e-2
# Weights smaller than this share of the largest are bounded by their size.
_TINY = 1e-9
# Particles whose radius is small beside the others' need no more absolute precision than these.
_SMALL = 0.1
# Particles share a tree if their anchors differ by at most this share of the radius.
_NEAR = 0.3


@dataclass(frozen=True)
class Radii:
    """Best radii of particles, between what a direction reaches and what is proved.

    Attributes:
        directions: Unit vectors (m, D).
        reached: r_i at them (m,).
        proved: Upper bounds (m,), at least 0: no direction has a larger r_i.
        nodes: Nodes that were bounded.
    """

    directions: Tensor
    reached: Tensor
    proved: Tensor
    nodes: int


def proved_radii(
    features: Tensor,
    weights: Tensor,
    anchors: Tensor,
    starts: Tensor,
    *,
    tolerance: float,
    seconds: float,
    others: Tensor | None = None,
) -> Radii:
    """Bound max over |u| <= 1 of <w_i, u> + sum_j c_j relu(<x_j, u>) for every particle.

    Args:
        features: X (n, D).
        weights: c (n,).
        anchors: w (m, D).
        starts: Directions (S, D) that are good already; the better, the smaller the tree.
        tolerance: Stop when every bound is this share above what is reached.
        seconds: Stop then, with the bounds of that moment. The root is always solved, coarsely at
            least.
        others: More anchors (S, m, D), bounded by what the nodes of particle i give for them; no
            node is opened for their sake.

    Returns:
        Radii of the m particles and, behind them, of the S m others.

    Example:
        >>> X = torch.eye(4, dtype=torch.float64)
        >>> c = torch.ones(4, dtype=torch.float64)  # max of sum_j max(u_j, 0) over |u| <= 1 is 2
        >>> zero = torch.zeros(1, 4, dtype=torch.float64)
        >>> found = proved_radii(X, c, zero, X, tolerance=0.01, seconds=10.0)
        >>> 2.0 - 1e-6 <= float(found.reached) <= 2.0 <= float(found.proved) <= 2.02
        True
    """
    particles = len(anchors)
    if others is not None:
        anchors = torch.cat([anchors, others.flatten(0, 1)])
    length = features.norm(dim=1)
    size = weights.abs() * length
    kept = size > _TINY * size.amax().clamp_min(1e-300)
    ignored = float(size[~kept & (weights > 0)].sum())
    if not bool(kept.any()):  # nothing but <w, u>
        norm = anchors.norm(dim=1)
        u = anchors / norm.clamp_min(1e-300).unsqueeze(1)
        return Radii(u, norm, norm + ignored, 0)
    X, c = features[kept] / length[kept].unsqueeze(1), (weights * length)[kept]
    forest = _Forest(X, c, anchors, particles, starts)
    forest.grow(tolerance, time.monotonic() + seconds)
    return Radii(
        forest.directions,
        forest.reached,
        forest.proved().clamp_min(0.0) + ignored,
        forest.count,
    )


class _Forest:
    """A tree for each group of particles. Radii are in units of the largest known at the start."""

    def __init__(
        self, X: Tensor, c: Tensor, anchors: Tensor, particles: int, starts: Tensor
    ) -> None:
        m, dimension = anchors.shape
        self._X, self._c, self._W = X, c, anchors
        # One coordinate direction, so that there is always one.
        first = torch.eye(dimension, dtype=X.dtype, device=X.device)[:1]
        self.directions = first.expand(m, dimension).clone()
        self.reached = anchors[:, 0] + float(X[:, 0].clamp_min(0.0) @ c)
        self._particles = particles
        self._learn(starts, anchors[:particles].mean(0).expand_as(starts))
        rises = float(c.clamp_min(0.0).sum()) + float(anchors.norm(dim=1).max())
        best = float(self.reached[:particles].max())
        self._scale = best if best > 1e-6 * rises else max(rises, 1e-300)
        self._bound = MomentBound(X, c / self._scale)
        self._anchors = anchors / self._scale
        near = _NEAR * max(best, 0.0) / self._scale
        groups = near_groups(self._anchors[:particles], reach=near)
        self._member = torch.zeros(len(groups), m, dtype=torch.bool, device=X.device)
        for g, members in enumerate(groups):
            self._member[g].view(-1, particles)[:, members] = True
        self._closed = X.new_full((m,), -math.inf)
        self._open: list[OpenNodes] = []
        self.count = 0

    def proved(self) -> Tensor:
        """Return the bounds of r_i that hold now, (m,)."""
        bounds = [self._closed, *(part.bounds.amax(0) for part in self._open)]
        return self._scale * torch.stack(bounds).amax(0)

    def grow(self, tolerance: float, until: float) -> None:
        """Branch until every bound is within the tolerance or time is up."""
        barrier = _LAST_BARRIER * max(tolerance, 1e-6)
        per_node = (2 * len(self._c) + 1) ** 2 + len(self._W) * self._W.shape[1]
        batch = max(2, min(_BATCH, _NUMBERS_AT_ONCE // per_node))
        for groups in torch.split(torch.arange(len(self._member), device=self._X.device), batch):
            self._root(groups, barrier, until)
        while self._open and time.monotonic() < until:
            waiting = OpenNodes.joined(self._open)
            excess = (waiting.bounds - self._allowed(tolerance)).amax(1)
            live = (excess > 0).nonzero()[:, 0]
            self._close(waiting.bounds[excess <= 0])
            ripe = live[waiting.branch[live] >= -1]
            if len(ripe) == 0:
                self._open = [waiting.rows(live)] if len(live) else []
                return
            order = ripe[excess[ripe].argsort(descending=True)]
            taken = order[: max(1, batch // 2)]
            rest = torch.ones(len(excess), dtype=torch.bool, device=excess.device)
            rest[taken] = False
            rest[excess <= 0] = False
            self._open = [waiting.rows(rest.nonzero()[:, 0])] if bool(rest.any()) else []
            split = waiting.branch[taken] >= 0
            if bool(split.any()):
                self._branch(waiting.rows(taken[split]), barrier, tolerance)
            if not bool(split.all()):
                self._again(waiting.rows(taken[~split]), barrier, tolerance)

    def _root(self, groups: Tensor, barrier: float, until: float) -> None:
        """Bound groups without any decided sign, each for its particle of largest radius."""
        reached = torch.where(self._member[groups], self.reached, -torch.inf)
        reached = reached[:, : self._particles]
        critical = reached.argmax(1)
        sign = self._X.new_zeros(len(groups), len(self._c))
        nodes = self._bound.nodes(sign, self._anchors[critical])
        x = self._bound.start(nodes)
        last = _ROOT[0][0]
        for level, steps in (*_ROOT, (barrier, 6)):
            for _ in range(steps):
                if time.monotonic() > until:
                    break
                last = max(level, barrier)
                x = self._bound.minimised(nodes, x, last, 1)
        self.count += len(groups)
        self._add(groups, nodes, x, last, self._bounds(groups, nodes, x))

    def _branch(self, parents: OpenNodes, barrier: float, tolerance: float) -> None:
        """Bound both children of every parent."""
        size = len(parents.branch)
        rows = torch.arange(2 * size, device=parents.branch.device)
        branch = parents.branch.repeat(2)
        sign = parents.sign.repeat(2, 1)
        sign[rows[:size], branch[:size]], sign[rows[size:], branch[size:]] = 1.0, -1.0
        p = parents.multipliers
        x = Multipliers(p.first.repeat(2, 1), p.second.repeat(2, 1), p.level.repeat(2))
        x.first[rows, branch] = 0.02
        group, bounds = parents.group.repeat(2), parents.bounds.repeat(2, 1)
        self._solve(group, sign, x, bounds, barrier, tolerance)

    def _again(self, nodes: OpenNodes, barrier: float, tolerance: float) -> None:
        """Bound nodes anew for the particle that exceeds by most."""
        critical = (nodes.bounds - self._allowed(tolerance)).argmax(1, keepdim=True)
        before = nodes.bounds.gather(1, critical)
        multipliers, bounds = nodes.multipliers, nodes.bounds
        # Nothing is left to branch on: what the barrier leaves would stay for ever.
        finer = _FINER * barrier
        found = self._solve(
            nodes.group, nodes.sign, multipliers, bounds, finer, tolerance, 4 * _STEPS
        )
        if found is None:
            return
        kept, last = found
        helped = last.bounds.gather(1, critical[kept]) < before[kept] * (1.0 - 1e-6)
        self._open[-1] = replace(last, branch=torch.where(helped[:, 0], -1, -2))

    def _solve(
        self,
        group: Tensor,
        sign: Tensor,
        x: Multipliers,
        bounds: Tensor,
        barrier: float,
        tolerance: float,
        steps: int = _STEPS,
    ) -> tuple[Tensor, OpenNodes] | None:
        """Bound nodes for the particles that exceed by most; keep those open that need it.

        Returns:
            Which of the nodes stay open, and they themselves; None if none does.
        """
        count, remaining = len(sign), torch.arange(len(sign), device=sign.device)
        critical = (bounds - self._allowed(tolerance)).argmax(1)
        nodes = self._bound.nodes(sign, self._anchors[critical])
        x = self._bound.recentred(nodes, x, _CHILD * barrier)
        for level in (_CHILD * barrier, barrier):
            x = self._bound.minimised(nodes, x, level, steps)
            # What bounds the parent bounds its children.
            bounds = torch.minimum(bounds, self._bounds(group, nodes, x))
            over = (bounds > self._allowed(tolerance)).any(1)
            self._close(bounds[~over])
            index = over.nonzero()[:, 0]
            nodes, x, bounds = nodes.rows(index), x.rows(index), bounds[index]
            remaining, group = remaining[index], group[index]
            if len(index) == 0:
                break
        self.count += count
        if len(bounds) == 0:
            return None
        self._add(group, nodes, x, barrier, bounds)
        return remaining, self._open[-1]

    def _add(
        self, group: Tensor, nodes: Nodes, x: Multipliers, barrier: float, bounds: Tensor
    ) -> None:
        """Keep nodes open, with the sample that each branches on; learn their directions."""
        u, squared = self._bound.moments(nodes, x, barrier)
        usual = squared.clamp_min(0.0).sqrt()
        loose = self._c * (usual - (u @ self._X.T).abs())
        loose = torch.where((nodes.sign == 0) & (self._c > 0), loose, -torch.inf)
        slack, branch = loose.max(1)
        branch = torch.where(slack.isfinite(), branch, -1)
        self._open.append(OpenNodes(group, nodes.sign, x, bounds, branch))
        good = u.isfinite().all(1)
        self._learn(u[good], self._scale * nodes.anchor[good])

    def _bounds(self, group: Tensor, nodes: Nodes, x: Multipliers) -> Tensor:
        """Return the bounds (B, m) for the particles of the nodes' groups."""
        bounds = at_anchors(self._bound.quadratic(nodes, x), self._anchors)
        bounds = torch.where(bounds.isnan(), torch.inf, bounds)
        return torch.where(self._member[group], bounds, -torch.inf)

    def _close(self, bounds: Tensor) -> None:
        if len(bounds):
            self._closed = torch.maximum(self._closed, bounds.amax(0))

    def _allowed(self, tolerance: float) -> Tensor:
        """Return the bounds (m,) that need no more work, in units of the scale."""
        reached = self.reached.clamp_min(0.0) / self._scale  # v = 0 is always a choice
        floor = _SMALL * float(reached[: self._particles].max().clamp_min(_SMALL))
        allowed = reached + tolerance * reached.clamp_min(floor)
        allowed[self._particles :] = torch.inf
        return allowed

    def _learn(self, u: Tensor, anchor: Tensor) -> None:
        """Ascend from u (S, D) for anchors (S, D); keep for every particle what is best for it."""
        length = u.norm(dim=1, keepdim=True)
        some = length[:, 0] > 0
        if not bool(some.any()):
            return
        u = ascended(self._X, self._c, anchor[some], (u / length)[some])
        values = self._W @ u.T + (u @ self._X.T).clamp_min(0.0) @ self._c
        best, which = values.max(1)
        better = best > self.reached
        self.reached = torch.where(better, best, self.reached)
        self.directions = torch.where(better.unsqueeze(1), u[which], self.directions)
