"""A symmetric matrix that changes by rank-two terms, many of which are added at once."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class RunningMatrix:
    r"""H = c H0 + sum_i U_i^T M_i U_i with U_i (2, N) and M_i (2, 2) symmetric.

    An update of H0 in place reads and writes N^2 numbers, which takes longer than two products with
    it: where it does not fit the cache it is nearly all of the time of a quasi-Newton iteration.
    So the terms are kept beside H0, and added to it 32 at a time by one product of matrices. While
    H0 is a diagonal N/16 of them are kept: they have an eighth of the matrix's numbers, and a
    short search never makes a matrix.

    Args:
        start: H0, (N, N), or its diagonal, (N,). It is not changed.
    """

    def __init__(self, start: Tensor) -> None:
        self._base, self._scale = start, 1.0
        self._owns_base = False
        self._used = 0
        self._U, self._M = self._room(_MOST)

    @classmethod
    def of(cls, state: dict[str, Any]) -> RunningMatrix:
        """Return the matrix that :meth:`state` described."""
        made = cls(state["inverse_hessian"])
        for U, M in zip(state.get("terms", ()), state.get("weights", ()), strict=True):
            made.add(U, M)
        # Afterwards: the terms are those that are left when all scales have been applied.
        made._scale = state.get("scale", 1.0)
        return made

    @property
    def is_small(self) -> bool:
        """Whether H0 fits the cache, so that a product costs next to nothing."""
        return len(self._base) < _LARGE

    @property
    def is_matrix_next(self) -> bool:
        """Whether H0 is a diagonal and the next term makes a matrix of it."""
        return self._base.ndim == 1 and self._used + 1 >= self._most

    @property
    def _most(self) -> int:
        """How many terms are kept."""
        if self.is_small:
            return 1
        return _MOST if self._base.ndim == 2 else max(_MOST, len(self._base) // 16)

    def _room(self, terms: int) -> tuple[Tensor, Tensor]:
        N = len(self._base)
        return self._base.new_empty(terms, 2, N), self._base.new_empty(terms, 2, 2)

    def times(self, g: Tensor) -> Tensor:
        """Return H g, (N,)."""
        product = self._base * g if self._base.ndim == 1 else torch.mv(self._base, g)
        if self._scale != 1.0:
            product.mul_(self._scale)
        if self._used:
            U = self._U[: self._used].flatten(0, 1)
            inner = torch.bmm(self._M[: self._used], torch.mv(U, g).view(-1, 2, 1))
            product.addmv_(U.T, inner.view(-1))
        return product

    def add(self, U: Tensor, M: Tensor, scale: float = 1.0) -> None:
        """Replace H by ``scale`` H + U^T M U."""
        self._scale *= scale
        self._M[: self._used].mul_(scale)
        if self._used == len(self._U):
            old, (self._U, self._M) = (self._U, self._M), self._room(2 * self._used)
            self._U[: self._used], self._M[: self._used] = old
        self._U[self._used], self._M[self._used] = U, M
        self._used += 1
        if self._used >= self._most:
            self.dense()

    def dense(self) -> Tensor:
        """Return H, (N, N): the memory of this object."""
        if self._base.ndim == 1:
            self._base, self._owns_base = torch.diag(self._base), True
        elif not self._owns_base:
            self._base, self._owns_base = self._base.clone(), True
        if self._used:
            U = self._U[: self._used]
            weighted = torch.bmm(self._M[: self._used], U).flatten(0, 1)
            self._base.addmm_(U.flatten(0, 1).T, weighted, beta=self._scale)
        elif self._scale != 1.0:
            self._base.mul_(self._scale)
        self._scale, self._used = 1.0, 0
        if len(self._U) > _MOST:
            self._U, self._M = self._room(_MOST)
        return self._base

    def state(self) -> dict[str, Any]:
        """Return numbers and tensors from which :meth:`of` makes an equal matrix.

        The matrix in it is not changed by what this object does later.
        """
        self._owns_base = False
        return {
            "inverse_hessian": self._base,
            "scale": self._scale,
            "terms": self._U[: self._used].clone(),
            "weights": self._M[: self._used].clone(),
        }


# Terms that are kept beside a matrix, and from which size on. Below, H0 fits the cache and changing
# it in place is cheaper than products with the terms.
_MOST, _LARGE = 32, 400
