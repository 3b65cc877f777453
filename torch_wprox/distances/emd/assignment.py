"""Exact transport between a moving cloud V and its anchor W, cheap enough for every evaluation.

Both clouds have m particles of mass 1/m; a particle may take any anchor of its class. The optimal
assignment sigma maximises sum <V_i, W_sigma(i)>, and prices p (m,) prove it optimal: with

    s_ij = <V_i, W_sigma(i) - W_j> - p_sigma(i) + p_j  >= 0   for all i, j of a class

the sum over any other permutation telescopes to something smaller. At V = W the identity has this
proof for free, p = |W|^2/2. From there on an assignment is proved again as cheaply as possible:

1. balls: for fixed p, s_ij falls by at most |W_sigma(i) - W_j| per unit that V_i moves, so row i
   stays proved inside a ball around the point where it was last checked: O(m D) for all rows;
2. rows that left their ball are checked against all anchors: O(k m D) for k rows;
3. only when a row fails is an assignment problem solved, warm: see :mod:`torch_wprox.repair`.

Small classes are solved where that is quicker than a check; those of hundreds of particles keep
their assignment for a number of evaluations, and the end of the step settles what was kept.

A translation of V changes no assignment, so V is centred before the balls are checked. Everything
is float64 on the CPU, whatever the parameters are.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from torch_wprox.distances.clouds import Floats, Integers, as_float64, centred, class_rows
from torch_wprox.distances.emd.proof import (
    UNPROVED,
    Anchor,
    Proof,
    initial_proof,
    moved_rows,
    recheck,
)
from torch_wprox.distances.emd.repair import bijection, repaired
from torch_wprox.report import TransportCounts

LARGEST_EXACT = 20_000
"""Particles of a class above which no exact problem is solved: BSP-OT gives an upper bound."""

# A class of this many particles is solved in the time of a check: no prices are looked for.
_SMALL = 64
# A repair is idle when it lowers W2^2 by less than this share.
_IDLE = 0.05


@dataclass(frozen=True)
class ClassState:
    """The assignment inside one class.

    Attributes:
        rows: Which particles: a slice where they are contiguous, else indices.
        anchor: Their anchors, centred.
        proof: Assignment, prices and balls.
        hold: Evaluations for which the assignment is kept before it is checked again.
        patience: Evaluations for which it is kept after the next repair.
        certified: Whether the assignment is proved optimal for the last V.
    """

    rows: slice | Integers
    anchor: Anchor
    proof: Proof
    hold: int = 0
    patience: int = 0
    certified: bool = True


@dataclass(frozen=True)
class TransportState:
    """The assignment in force and what proves it.

    Attributes:
        sigma: (m,), on the CPU.
        classes: (m,) labels or None.
        parts: One state per class.
        counts: Assignments certified, repaired, solved so far.
        balls: Centres (m, D) and squared radii (m,) of all rows, in the coordinates of V; None
            where a class is not proved.
    """

    sigma: Tensor
    classes: Tensor | None
    parts: tuple[ClassState, ...]
    counts: TransportCounts = field(default_factory=TransportCounts)
    balls: tuple[Floats, Floats] | None = None

    @property
    def certified(self) -> bool:
        """Whether sigma is proved optimal for the last V."""
        return all(part.certified for part in self.parts)


def start(W: Tensor, classes: Tensor | None) -> TransportState:
    """Return the identity, which is optimal at V = W.

    Args:
        W: Anchors, (m, D).
        classes: Labels (m,), particles of equal label are exchangeable; None: all are.
    """
    points = as_float64(W)
    parts = []
    for rows in class_rows(classes, len(points)):
        anchor = Anchor(points[rows])
        least, _ = _patience(len(anchor.W))
        # The identity is good at first: a quarter of the patience that comes after.
        parts.append(ClassState(rows, anchor, initial_proof(anchor), least // 4, least))
    balls = _all_balls(parts, points)
    return TransportState(torch.arange(len(points)), classes, tuple(parts), balls=balls)


def assign(
    V: Tensor, state: TransportState, *, force: bool = False
) -> tuple[Tensor, TransportState]:
    """Return an assignment for V, optimal unless ``state.certified`` is False.

    Where repairs are dear (hundreds of particles that move far) an assignment that failed its proof
    may be kept for a few evaluations: it then gives an upper bound on W2^2, and majorise-minimise.

    Args:
        V: Moved particles, (m, D).
        state: What :func:`start` or the last call returned.
        force: Hold nothing: answer an optimal assignment (for classes up to LARGEST_EXACT).

    Returns:
        sigma (m,) and the new state; sigma is the same object while it stays the same.
    """
    points = as_float64(V)
    if state.balls is not None and _inside(points, *state.balls):
        proved = TransportCounts(certified=len(state.parts))
        return state.sigma, replace(state, counts=state.counts + proved)
    parts, counts = [], state.counts
    for part in state.parts:
        updated, did = _assign_class(points[part.rows], part, force)
        parts.append(updated)
        counts = counts + did
    sigma = state.sigma
    changed = [
        (new.rows, new.proof.sigma)
        for new, old in zip(parts, state.parts, strict=True)
        if new.proof.sigma is not old.proof.sigma
    ]
    if changed:
        indices = sigma.numpy().copy()
        for rows, local in changed:
            members = np.arange(len(indices))[rows]
            indices[rows] = members[local]
        sigma = torch.from_numpy(indices)
    balls = _all_balls(parts, points)
    return sigma, TransportState(sigma, state.classes, tuple(parts), counts, balls)


def is_certified(V: Tensor, state: TransportState) -> bool:
    """Return whether the prices in force prove ``state.sigma`` optimal for V, (m, D)."""
    points = as_float64(V)
    return all(
        _checked(part.anchor, part.proof, centred(points[part.rows])) is not None
        for part in state.parts
    )


def _assign_class(
    points: Floats, part: ClassState, force: bool
) -> tuple[ClassState, TransportCounts]:
    """Prove, hold or repair the assignment of one class; ``points`` are its rows of V.

    ``force`` is for the end of a step: it holds nothing, and looks for no prices.
    """
    anchor, proof = part.anchor, part.proof
    if part.hold > 0 and not force:
        return replace(part, hold=part.hold - 1, certified=False), TransportCounts()
    V = centred(points)
    unproved = bool((proof.radii_sq[:1] == UNPROVED).any())
    out = None if unproved else moved_rows(proof, V)
    if out is not None and not len(out):
        kept = part if part.certified else replace(part, certified=True)
        return kept, TransportCounts(certified=1)
    if unproved and part.certified and np.array_equal(V, proof.points):
        return part, TransportCounts(certified=1)  # solved at this very point
    if not np.isfinite(V).all():
        return replace(part, certified=False), TransportCounts()
    checked = None if out is None else _checked(anchor, proof, V, out)
    if checked is not None:
        return replace(part, proof=checked, certified=True), TransportCounts(certified=1)
    if len(V) <= _SMALL:
        found = repaired(anchor, proof, V, prove=False)
        return replace(part, proof=found, certified=True), TransportCounts(solved=1)
    large = len(V) > LARGEST_EXACT
    found = bijection(anchor, proof, V) if large else repaired(anchor, proof, V, prove=not force)
    patience = _patience_after(part, found, V)
    settled = replace(part, proof=found, hold=patience, patience=patience, certified=not large)
    return settled, TransportCounts(repaired=1)


def _all_balls(parts: list[ClassState], V: Floats) -> tuple[Floats, Floats] | None:
    """Return the balls of all rows moved to where V (m, D) is, None unless all classes are proved.

    A proof is for a centred cloud. But one shift of all rows of a class, here the mean of V, is
    absorbed by the prices, so that a next V near this one needs no centring.
    """
    if not all(part.certified and part.proof.radii_sq.min(initial=0.0) >= 0 for part in parts):
        return None
    centres, radii_sq = np.empty_like(V), np.empty(len(V))
    for part in parts:
        mean = np.add.reduce(V[part.rows], 0) / max(len(V[part.rows]), 1)
        centres[part.rows] = part.proof.points + mean
        radii_sq[part.rows] = part.proof.radii_sq
    return centres, radii_sq


def _inside(V: Floats, centres: Floats, radii_sq: Floats) -> bool:
    """Return whether every row of V is in its ball; a NaN is in none."""
    moved = V - centres
    return bool((np.einsum("ij,ij->i", moved, moved) <= radii_sq).all())


def _cost(V: Floats, W: Floats, sigma: Integers) -> float:
    """Return sum_i |V_i - W_sigma(i)|^2."""
    moved = (V - W[sigma]).ravel()
    return float(moved @ moved)


def _checked(anchor: Anchor, proof: Proof, V: Floats, out: Integers | None = None) -> Proof | None:
    """Return the proof with new balls for the rows that left theirs, None if one of them fails."""
    out = moved_rows(proof, V) if out is None else out
    if not len(out):
        return proof
    if len(V) > LARGEST_EXACT and len(out) > LARGEST_EXACT // 10:
        return None  # checking that many rows would cost what a solve does
    return recheck(anchor, proof, V, out)


def _patience(m: int) -> tuple[int, int]:
    """Return for how many evaluations a repaired assignment of m particles is kept: least and most.

    A repair costs O(m^2) and more, an evaluation of the network O(m). Small classes get their own
    assignment at every evaluation; above, one in m/12 does, and one in m/8 while repairs gain
    little (at least one in 80 and 120). A thousand evaluations then end within 1 % of the
    objective that fresh assignments reach (benchmarks/cost.py).
    """
    return (0, 0) if m <= _SMALL else (min(m // 12, 80) - 1, min(m // 8, 120) - 1)


def _patience_after(part: ClassState, found: Proof, V: Floats) -> int:
    """Return for how many evaluations the assignment ``found`` at V (m, D) is kept."""
    least, most = _patience(len(V))
    before, now = (_cost(V, part.anchor.W, sigma) for sigma in (part.proof.sigma, found.sigma))
    return min(2 * part.patience + 1, most) if before - now < _IDLE * now else least
