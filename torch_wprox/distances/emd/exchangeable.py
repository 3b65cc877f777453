"""The assignment inside one large class of exchangeable particles, followed as they move.

A translation of V changes no assignment, so V is centred first.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from torch_wprox.distances.clouds import Floats, Integers, centred
from torch_wprox.distances.emd.proof import (
    Anchor,
    Proof,
    identity_is_tied,
    initial_prices,
    initial_proof,
    is_proved_at_identity,
    proved,
    unproved,
)
from torch_wprox.distances.emd.refine import refined
from torch_wprox.distances.emd.repair import repaired
from torch_wprox.report import TransportCounts

LARGEST_EXACT = 20_000
"""Particles of a class above which no exact problem is solved: W2^2 has an upper bound only."""

# Up to this many a solve is quicker than a refinement.
_SOLVED = 128
# In more coordinates proposals along lines are rarely good, and a warm solve is quick.
_REFINED_COORDINATES = 3
# Lines of a refinement at a trial point, and at the end of a step where no exact problem is solved.
_LINES, _LINES_AT_END = 8, 64
# A new assignment is idle when it lowers W2^2 by less than this share.
_IDLE = 0.05


class Held:
    """A large class: held at trial points, proved or solved at the end of a step.

    A held assignment is renewed after a number of evaluations: solved up to 128 particles and
    where there are more than three coordinates, else refined by exchanges, which is a hundred times
    cheaper.

    Args:
        points: The anchors of the whole cloud, float64 on the CPU.
        rows: Which of them are the class's: a slice where they are contiguous, else indices.

    Attributes:
        rows: As given.
        sigma: The assignment in force, (m,), indices inside the class: the identity at first.
        is_proved: Whether it is known to be optimal for the last V.
    """

    def __init__(self, points: Tensor, rows: slice | Integers) -> None:
        self.rows = rows
        self.is_proved = True
        self._index = rows if isinstance(rows, slice) else torch.from_numpy(rows)
        self._points = points[self._index]
        m, D = self._points.shape
        self._identity: Integers = np.arange(m)
        self.sigma = self._identity
        self._is_exact = m <= LARGEST_EXACT
        self._has_proofs = m > _SOLVED
        self._is_refined = self._has_proofs and (D <= _REFINED_COORDINATES or not self._is_exact)
        self._least, self._most = _patience(m)
        # The identity is good at first: a quarter of the patience that comes after.
        self._hold, self._patience = self._least // 4, self._least
        self._proof: Proof | None = None
        self._settled_at: Floats | None = None
        self._counts = TransportCounts()

    @cached_property
    def _anchor(self) -> Anchor:
        return Anchor(self._points.numpy())

    @property
    def counts(self) -> TransportCounts:
        """How the assignments were found."""
        return self._counts

    def holds(self) -> bool:
        """Return whether the assignment is kept at the next trial point, unseen."""
        if self._hold == 0:
            return False
        self._hold -= 1
        self.is_proved = False
        return True

    def trial(self, points: Tensor) -> bool:
        """Renew the assignment for a cloud V; return whether it changed."""
        self.is_proved = False
        V = self._centred(points)
        if not np.isfinite(V).all():
            return False
        before = self.sigma
        changed = self._refine(V, _LINES) if self._is_refined else self._solve(V, prove=True)
        old, new = (_cost(V, self._anchor.W, sigma) for sigma in (before, self.sigma))
        is_idle = old - new < _IDLE * new
        self._patience = min(2 * self._patience + 1, self._most) if is_idle else self._least
        self._hold = self._patience
        return changed

    def settle(self, points: Tensor) -> bool:
        """Prove the assignment in force optimal for a cloud V, or solve; refine a very large class.

        No prices are looked for: the step ends here, or goes on from where it is.
        """
        V = self._centred(points)
        if not np.isfinite(V).all():
            self.is_proved = False
            return False
        if self.is_proved and self._settled_at is not None and np.array_equal(V, self._settled_at):
            return False  # settled at this very point
        if self._is_exact:
            changed = self._solve(V, prove=False)
        else:
            changed = self._refine(V, _LINES_AT_END)
            self.is_proved = self.sigma is self._identity and self.proves_identity(points)
        self._settled_at = V
        return changed

    def proves_identity(self, points: Tensor) -> bool:
        """Return whether the first prices prove the identity optimal for a cloud V."""
        return is_proved_at_identity(self._anchor, self._centred(points))

    def _centred(self, points: Tensor) -> Floats:
        """Return the class's particles in a cloud V, less their mean, (m, D)."""
        return centred(points[self._index].numpy())

    def _take(self, found: Integers, V: Floats) -> bool:
        """Put ``found`` in force, or the identity where it is as good; return if that changed."""
        before = self.sigma
        self.sigma = self._identity if identity_is_tied(self._anchor, V, found) else found
        return self.sigma is not before

    def _solve(self, V: Floats, *, prove: bool) -> bool:
        """Prove the assignment in force optimal for V (m, D), else solve for one that is."""
        self.is_proved = True
        proof = self._proof_in_force()
        checked = proved(self._anchor, proof, V) if self._has_proofs else None
        if checked is not None:
            self._proof = checked
            self._counts += TransportCounts(proved=1)
            return False
        found = repaired(self._anchor, proof, V, prove=prove and self._has_proofs)
        changed = self._take(found.sigma, V)
        self._proof = replace(found, sigma=self.sigma)
        self._counts += TransportCounts(repaired=1)
        return changed

    def _proof_in_force(self) -> Proof:
        """Return what is known of the assignment in force: balls, or prices without any."""
        if self._proof is not None and self._proof.sigma is self.sigma:
            return self._proof
        if self._has_proofs and self.sigma is self._identity:
            return initial_proof(self._anchor, self._identity)
        return unproved(self.sigma, initial_prices(self._anchor), self._anchor.W)

    def _refine(self, V: Floats, lines: int) -> bool:
        """Refine the assignment in force for V (m, D) by exchanges."""
        found = refined(V, self._anchor.W, self.sigma, lines, seed=self._counts.refined)
        self._counts += TransportCounts(refined=1)
        return found is not self.sigma and self._take(found, V)


def _cost(V: Floats, W: Floats, sigma: Integers) -> float:
    """Return sum_i |V_i - W_sigma(i)|^2."""
    moved = (V - W[sigma]).ravel()
    return float(moved @ moved)


def _patience(m: int) -> tuple[int, int]:
    """Return for how many evaluations an assignment of m particles is kept: least and most.

    A class of more than 64 gets a new one in every m/12 evaluations, and in every m/8 while new
    ones gain little (at least one in 20 and 40). A thousand evaluations then end within 1 % of the
    objective that optimal assignments reach (benchmarks/cost.py).
    """
    return min(m // 12, 20) - 1, min(m // 8, 40) - 1
