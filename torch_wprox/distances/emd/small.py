"""The assignments inside small classes of particles, solved together at every point."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from torch_wprox.distances.clouds import Floats, Integers, centred
from torch_wprox.distances.emd.proof import Anchor, identity_is_tied, is_proved_at_identity
from torch_wprox.report import TransportCounts

SMALL = 64
"""A class of this many particles is solved in the time of a few tensor operations."""

# Particles of the classes whose costs are computed as one matrix: one operation for all of them is
# quicker than one for each as long as few of its entries lie between two classes.
_TOGETHER = 128
# A class is far from the origin if its centre has this share of its mean square: then it is seven
# times further than it is wide.
_FAR = 0.98


@dataclass(frozen=True)
class Pack:
    """Small classes whose costs are computed together.

    Attributes:
        rows: Their rows in the cloud, one class after the other.
        cuts: Which of ``rows`` are of each class.
        is_whole: Whether they are the whole cloud, in its order.
    """

    rows: Integers
    cuts: tuple[slice, ...]
    is_whole: bool

    @cached_property
    def starts(self) -> Integers:
        """Where each class begins."""
        return np.array([cut.start for cut in self.cuts])

    @cached_property
    def sizes(self) -> Integers:
        """Particles of each class."""
        return np.array([cut.stop - cut.start for cut in self.cuts])

    @cached_property
    def offsets(self) -> Integers:
        """Where the class of each particle begins."""
        return np.repeat(self.starts, self.sizes)

    @cached_property
    def identities(self) -> tuple[Integers, ...]:
        """The identity of each class, in indices inside the class."""
        return tuple(np.arange(size) for size in self.sizes)

    @cached_property
    def identity_bytes(self) -> bytes:
        """The identities, to compare with."""
        return _bytes_of(self.identities)


class SmallClasses:
    """Classes solved at every point, with as few calls as there can be.

    The cost p_j - <V_i, W_j> with p = |W|^2/2 has its row minima on the diagonal while particles
    are near their anchors; scipy finds the assignment in O(m^2) then.

    Args:
        points: The anchors of the whole cloud, float64 on the CPU.
        pack: The classes.

    Attributes:
        rows: The rows of all these classes, one class after the other.
        sigma: The assignment in force, indices into ``rows``: the identity at first.
        is_proved: Whether it is known to be optimal for the last V.
        is_whole: Whether they are the whole cloud, in its order.
    """

    def __init__(self, points: Tensor, pack: Pack) -> None:
        self.rows, self.is_whole = pack.rows, pack.is_whole
        self._pack = pack
        self._index = None if pack.is_whole else torch.from_numpy(pack.rows)
        self._W = points if self._index is None else points[self._index]
        self._centres, W = self._centres_if_far()
        self._columns, self._prices = W.T, torch.linalg.vecdot(0.5 * W, W)
        self._found: Sequence[Integers] = pack.identities
        self.sigma = np.arange(len(pack.rows))
        self._bytes = pack.identity_bytes
        self.is_proved = True
        self._times = 0

    def _centres_if_far(self) -> tuple[Tensor | None, Tensor]:
        """Return the class centres to take off a cloud, and the anchors less them.

        A translation of V changes no assignment. Far from the origin inner products lose digits, so
        that clouds are centred; elsewhere that would be an operation too many.
        """
        W, sizes = self._W.numpy(), self._pack.sizes[:, None]
        centres = np.add.reduceat(W, self._pack.starts) / sizes
        squares = np.add.reduceat(W * W, self._pack.starts) / sizes
        if not ((centres * centres).sum(1) > _FAR * squares.sum(1)).any():
            return None, self._W
        c = torch.from_numpy(np.repeat(centres, self._pack.sizes, 0))
        return c, self._W - c

    @cached_property
    def _anchors(self) -> list[Anchor]:
        return [Anchor(self._W[cut].numpy()) for cut in self._pack.cuts]

    @property
    def counts(self) -> TransportCounts:
        """How often classes were solved."""
        return TransportCounts(solved=self._times)

    def holds(self) -> bool:
        """Return that no assignment is kept unseen."""
        return False

    def trial(self, points: Tensor) -> bool:
        """Solve for a cloud V; return whether the assignment changed."""
        V = points if self._index is None else points[self._index]
        if self._centres is not None:
            V = V - self._centres
        R = torch.addmm(self._prices, V, self._columns, alpha=-1.0).numpy()
        try:
            found = [linear_sum_assignment(R[cut, cut])[1] for cut in self._pack.cuts]
        except ValueError:  # a NaN or an infinity
            self.is_proved = False
            return False
        self._times += len(found)
        self.is_proved = True
        return self._take(found)

    def settle(self, points: Tensor) -> bool:
        """Solve for a cloud V, and keep the identity where it is as good."""
        before = self.sigma
        self.trial(points)
        if self.is_proved and self._bytes != self._pack.identity_bytes:
            self._take(
                [
                    identity if identity_is_tied(anchor, V, sigma) else sigma
                    for identity, anchor, V, sigma in zip(
                        *(self._pack.identities, self._anchors, self._centred(points)),
                        self._found,
                        strict=True,
                    )
                ]
            )
        return self.sigma is not before

    def proves_identity(self, points: Tensor) -> bool:
        """Return whether the first prices prove the identity optimal for a cloud V."""
        return all(map(is_proved_at_identity, self._anchors, self._centred(points)))

    def _centred(self, points: Tensor) -> list[Floats]:
        """Return the particles of each class in a cloud V, less their mean."""
        V = points if self._index is None else points[self._index]
        return [centred(V[cut].numpy()) for cut in self._pack.cuts]

    def _take(self, found: Sequence[Integers]) -> bool:
        """Put ``found`` in force; return whether it is another assignment."""
        bytes_ = _bytes_of(found)
        if bytes_ == self._bytes:
            return False
        self._found, self._bytes = found, bytes_
        self.sigma = np.concatenate(found)
        if len(found) > 1:
            self.sigma += self._pack.offsets
        return True


def packs_of(members: Sequence[slice | Integers], m: int) -> list[Pack]:
    """Return classes in packs of at most 128 particles.

    Args:
        members: The rows of each class, none of them empty.
        m: Particles of the cloud.
    """
    every = np.arange(m)
    each = sorted((every[rows] for rows in members), key=lambda rows: int(rows[0]))
    packs: list[list[Integers]] = []
    room = 0
    for rows in each:
        if len(rows) > room:
            packs.append([])
            room = _TOGETHER
        packs[-1].append(rows)
        room -= len(rows)
    return [_pack(pack, every) for pack in packs]


def _pack(each: Sequence[Integers], every: Integers) -> Pack:
    rows = np.concatenate(each)
    ends = np.cumsum([len(part) for part in each]).tolist()
    cuts = tuple(slice(end - len(part), end) for part, end in zip(each, ends, strict=True))
    return Pack(rows, cuts, np.array_equal(rows, every))


def size_of(rows: slice | Integers) -> int:
    """Return the number of rows."""
    return rows.stop - rows.start if isinstance(rows, slice) else len(rows)


def _bytes_of(found: Sequence[Integers]) -> bytes:
    return b"".join([sigma.tobytes() for sigma in found])
