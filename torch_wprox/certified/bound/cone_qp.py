"""A convex quadratic over nonnegative lengths in groups: the master problem of the rays."""

from __future__ import annotations

import math

import torch
from torch import Tensor

# All entries that promise at least this share of the largest gain come in together.
_ENTERING = 0.3
_RIDGE = 1e-13


class ConeQP:
    """Minimises (1/2)|A s|^2 + (1/2) sum_g K_g (sum_{j in g} s_j)^2 + <c, s> over s >= 0.

    Args:
        rows: A^T, one row for each length, (J, N).
        linear: c (J,).
        group: The group of each length, (J,).
        stiffness: K (G,), positive.
        free: Lengths (J,) that may be negative; each is a group of its own.
    """

    def __init__(
        self, rows: Tensor, linear: Tensor, group: Tensor, stiffness: Tensor, free: Tensor
    ) -> None:
        self._rows, self._linear, self._group = rows, linear, group
        self._stiffness, self._free = stiffness, free
        self._size = (rows.square().sum(1) + stiffness[group]).sqrt()
        self._gram: Tensor | None = None

    def value(self, s: Tensor) -> float:
        """Return the objective at s (J,)."""
        image, totals = s @ self._rows, self._totals(s)
        quadratic = image @ image + self._stiffness @ totals.square()
        return float(0.5 * quadratic + self._linear @ s)

    def gradient(self, s: Tensor) -> Tensor:
        """Return the objective's gradient (J,) at s."""
        image = s @ self._rows
        return self._rows @ image + (self._stiffness * self._totals(s))[self._group] + self._linear

    def minimizer(self, start: Tensor, *, tolerance: float = 1e-9, max_solves: int = 400) -> Tensor:
        """Return the minimiser, by an active set that begins with the support of ``start`` (J,).

        On a face of positive lengths the minimiser is one linear system. If it has negative
        lengths, all of them are dropped at once where that lowers the objective, else the first
        that the straight way meets. The objective falls at every turn, so no face comes back.

        Args:
            start: A point of the cone.
            tolerance: Largest gain per unit of a column's size that is left, relative.
            max_solves: Linear systems solved at most; the last point is feasible whatever happens.
        """
        s = start.clone()
        if not len(s):
            return s
        face = (s > 0) | self._free
        level = tolerance * float((self._linear / self._size).abs().max())
        value, solves = math.inf, 0
        while solves < max_solves:
            gain = torch.where(face, 0.0, -self.gradient(s) / self._size)
            top = float(gain.max())
            if top <= level and (solves or not bool(face.any())):
                break
            if top > level:
                face = face | (gain > _ENTERING * top)
            value = self.value(s)
            while solves < max_solves:
                x, solves = self._face_minimizer(face), solves + 1
                negative = face & ~self._free & (x <= 0)
                if not bool(negative.any()):
                    s = x
                    break
                cut = torch.where(negative, 0.0, x)
                lower = self.value(cut)
                if lower < value:
                    s, value = cut, lower
                    face = (s > 0) | self._free
                    continue
                ratio = torch.where(negative, s / (s - x), torch.inf)
                first = ratio.min()
                hit = ratio <= first
                s = torch.where(hit, 0.0, s + first * (x - s))
                face = face & ~hit
                value = self.value(s)
        return s

    def _totals(self, s: Tensor) -> Tensor:
        return torch.zeros_like(self._stiffness).index_add_(0, self._group, s)

    def _face_minimizer(self, face: Tensor) -> Tensor:
        """Return the minimiser over the lengths of a face, of any sign; 0 elsewhere."""
        at = face.nonzero()[:, 0]
        groups = len(torch.unique(self._group[at]))
        size, samples, extra = len(at), self._rows.shape[1], len(at) - groups
        eliminated = samples**2 * (size + samples / 3) + extra**2 * samples
        x = torch.zeros_like(self._linear)
        x[at] = self._eliminated(at) if 2 * eliminated < size**3 / 3 else self._by_gram(at)
        return x

    def _by_gram(self, at: Tensor) -> Tensor:
        if self._gram is None:
            same = self._group.unsqueeze(1) == self._group
            self._gram = self._rows @ self._rows.T
            self._gram += torch.where(same, self._stiffness[self._group], 0.0)
        return _solved(self._gram[at][:, at], -self._linear[at])

    def _eliminated(self, at: Tensor) -> Tensor:
        """Solve for w = A s and the splits inside groups; the totals S of the groups follow.

        With a base b(g) in each group and the differences D_e = A_e - A_b(g) of the others,
        w = A_b S + D t, K S + A_b^T w + c_b = 0 and D^T w + c_D = 0.
        """
        groups, inverse = torch.unique(self._group[at], return_inverse=True)
        place = torch.arange(len(at), device=at.device)
        base = torch.full_like(groups, len(at)).scatter_reduce(0, inverse, place, "amin")
        is_other = torch.ones_like(at, dtype=torch.bool)
        is_other[base] = False
        other = place[is_other]
        K = self._stiffness[groups]
        A, c = self._rows[at], self._linear[at]
        A_b, c_b, owner = A[base], c[base], inverse[other]
        D, c_D = A[other] - A_b[owner], c[other] - c_b[owner]
        M = A_b.T @ (A_b / K.unsqueeze(1))
        M.diagonal().add_(1.0)
        factor = torch.linalg.cholesky(M)
        right = -A_b.T @ (c_b / K)
        bent = torch.cholesky_solve(torch.cat([D, right.unsqueeze(0)]).T, factor)
        t = _solved(D @ bent[:, :-1], -c_D - D @ bent[:, -1]) if len(other) else c_D
        w = bent[:, -1] + bent[:, :-1] @ t
        x = torch.zeros_like(c)
        x[base] = (-(c_b + A_b @ w) / K).index_add_(0, owner, -t)
        x[other] = t
        return x


def _solved(Q: Tensor, right: Tensor) -> Tensor:
    """Return Q^-1 right for a positive semidefinite Q, which gets a ridge at the last digits."""
    Q.diagonal().add_(_RIDGE * float(Q.diagonal().max()))
    factor, failed = torch.linalg.cholesky_ex(Q)
    if bool(failed):
        pseudo: Tensor = torch.linalg.pinv(Q, hermitian=True) @ right
        return pseudo
    return torch.cholesky_solve(right.unsqueeze(1), factor)[:, 0]
