"""The proof that an assignment is optimal: prices, and balls inside which they keep proving it."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from scipy.spatial import cKDTree
from scipy.spatial.distance import cdist

from torch_wprox.distances.clouds import Floats, Integers

# A search tree finds neighbours faster than all distances do, up to this many coordinates.
_TREE_COORDINATES = 6
# Up to this many anchors all their distances may be computed at once (72 MB at the limit).
_ALL_DISTANCES = 3000
# Above this many anchors only near neighbours are looked for.
_NEAR_ONLY = 20_000
_TINY = float(np.finfo(np.float64).tiny)
# Rows are checked in pieces of about this many entries, to bound memory.
_PIECE = 4_000_000
# The rows furthest outside their balls are checked first, so that a lost proof is found early.
_PROBE = 16


UNPROVED = -1.0
"""Squared radius of a ball without a proof: no point is inside."""


class Anchor:
    """The anchors of one class, centred, with what is computed from them once per step.

    Args:
        points: (m, D).

    Attributes:
        W: Centred anchors, (m, D).
        scale: Largest norm of an anchor.
    """

    def __init__(self, points: Floats) -> None:
        self.W: Floats = points - points.mean(0) if len(points) else points
        self.scale = float(np.sqrt((self.W**2).sum(1).max(initial=0.0)))

    def distances(self, columns: Integers) -> Floats:
        """Return |W_c - W_j| for the given columns c and all j, (len(columns), m)."""
        found: Floats = cdist(self.W[columns], self.W)
        return found

    def nearest_other(self) -> Floats:
        """Return the distance to the nearest other anchor, (m,); 0 for duplicates.

        In clouds of more than 20 000 a lower bound, the distance if it is small.
        """
        m = len(self.W)
        if m < 2:
            return np.full(m, np.inf)
        if self.W.shape[1] > _TREE_COORDINATES and m <= _ALL_DISTANCES:
            others: Floats = cdist(self.W, self.W)
            np.fill_diagonal(others, np.inf)
            nearest: Floats = others.min(1)
            return nearest
        tree, within = cKDTree(self.W), np.inf
        if m > _NEAR_ONLY:
            # In many dimensions a neighbour takes a search of half the tree, unless it is near.
            some = self.W[:: m // 64]
            within = 0.25 * float(np.median(_second(tree, some, np.inf)))
        return np.minimum(_second(tree, self.W, max(within, _TINY)), within)


def _second(tree: cKDTree, points: Floats, within: float) -> Floats:
    """Return the distance of points of the tree to the nearest other one; inf if none is near."""
    distances, _ = tree.query(points, k=2, distance_upper_bound=within)
    return np.asarray(distances, dtype=np.float64)[:, 1]


@dataclass(frozen=True)
class Proof:
    """An assignment with prices, and per row the ball inside which they prove it.

    Attributes:
        sigma: Column of each row, (m,).
        prices: p, (m,).
        points: Centre of each row's ball, (m, D).
        radii_sq: Squared radius of each row's ball, (m,); negative: always check.
    """

    sigma: Integers
    prices: Floats
    points: Floats
    radii_sq: Floats


def initial_prices(anchor: Anchor) -> Floats:
    """Return the prices |W|^2/2, (m,), which prove the identity at V = W."""
    prices: Floats = 0.5 * (anchor.W**2).sum(1)
    return prices


def initial_proof(anchor: Anchor, identity: Integers) -> Proof:
    """Return the identity at V = W: p = |W|^2/2 gives s_ij = |W_i - W_j|^2/2, half the distance."""
    radii = 0.5 * anchor.nearest_other()
    return Proof(identity, initial_prices(anchor), anchor.W, radii**2)


def unproved(sigma: Integers, prices: Floats, V: Floats) -> Proof:
    """Return ``sigma`` with prices that prove it nowhere: no row has a ball."""
    return Proof(sigma, prices, V, np.full(len(sigma), UNPROVED))


def proved(anchor: Anchor, proof: Proof, V: Floats) -> Proof | None:
    """Return the proof with new balls for the rows of V that left theirs, None if one row fails.

    Args:
        anchor: The class's anchors.
        proof: What is known of an assignment.
        V: (m, D), centred and finite.
    """
    if (proof.radii_sq[:1] == UNPROVED).any():
        return None
    out = moved_rows(proof, V)
    if not len(out):
        return proof
    if len(V) > _NEAR_ONLY and len(out) > _NEAR_ONLY // 10:
        return None  # checking that many rows would cost what a solve does
    return recheck(anchor, proof, V, out)


def moved_rows(proof: Proof, V: Floats) -> Integers:
    """Return the rows whose point left its ball; ``V`` (m, D) is centred."""
    moved = V - proof.points
    inside = np.einsum("ij,ij->i", moved, moved) <= proof.radii_sq
    if inside.all():
        return _NONE
    return np.flatnonzero(~inside)


def slacks(proof: Proof, V: Floats, W: Floats, rows: Integers) -> Floats:
    """Return s_ij = <V_i, W_sigma(i) - W_j> - p_sigma(i) + p_j for the rows, (len(rows), m)."""
    reduced = proof.prices - V[rows] @ W.T
    own: Floats = reduced[np.arange(len(rows)), proof.sigma[rows]]
    return reduced - own[:, None]


def tolerance(anchor: Anchor, V: Floats) -> float:
    """Return the rounding error of a slack: 32 eps (|V||W| + |W|^2)."""
    reach = float(np.sqrt((V**2).sum(1).max(initial=0.0)))
    return 32 * float(np.finfo(np.float64).eps) * (reach * anchor.scale + anchor.scale**2)


def identity_is_tied(anchor: Anchor, V: Floats, sigma: Integers) -> bool:
    """Return whether the identity costs no more than ``sigma`` at V (m, D), up to rounding."""
    gain = (V * (anchor.W[sigma] - anchor.W)).sum()
    return bool(gain <= len(V) * tolerance(anchor, V))


def is_proved_at_identity(anchor: Anchor, V: Floats) -> bool:
    """Return whether the prices |W|^2/2 prove the identity optimal for V (m, D), centred."""
    if not np.isfinite(V).all():
        return False
    proof = initial_proof(anchor, np.arange(len(V)))
    return proved(anchor, proof, V) is not None


def recheck(anchor: Anchor, proof: Proof, V: Floats, rows: Integers) -> Proof | None:
    """Check rows against all anchors; return the proof with their new balls, None if one fails.

    Row i stays proved for |V_i - point| <= min_j s_ij / |W_sigma(i) - W_j| over the anchors that
    differ from its own; an equal anchor at the same price is no alternative.
    """
    slack_of_rounding = tolerance(anchor, V)
    if len(rows) > 4 * _PROBE:
        excess = ((V[rows] - proof.points[rows]) ** 2).sum(1) - proof.radii_sq[rows]
        furthest = rows[np.argpartition(-excess, _PROBE)[:_PROBE]]
        if slacks(proof, V, anchor.W, furthest).min() < -slack_of_rounding:
            return None
    radii = np.empty(len(rows))
    step = max(1, _PIECE // max(len(V), 1))
    for first in range(0, len(rows), step):
        piece = rows[first : first + step]
        s = slacks(proof, V, anchor.W, piece)
        if s.min() < -slack_of_rounding:
            return None
        gaps = anchor.distances(proof.sigma[piece])
        with np.errstate(divide="ignore", invalid="ignore"):
            ratio = np.where(gaps > 0, (s + slack_of_rounding) / gaps, np.inf)
        radii[first : first + step] = ratio.min(1)
    if len(rows) == len(V):
        return replace(proof, points=V, radii_sq=radii**2)
    points, radii_sq = proof.points.copy(), proof.radii_sq.copy()
    points[rows], radii_sq[rows] = V[rows], radii**2
    return replace(proof, points=points, radii_sq=radii_sq)


_NONE: Integers = np.empty(0, dtype=np.int64)
