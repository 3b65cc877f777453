"""Newton's linear system of :class:`MomentBound`, solved densely or by its low rank.

The Hessian over the 2 n multipliers of the samples is

    H = Delta + U blockdiag(M, tau M x M) U^T,      U = [J_k x_k | eta_k x_k x_k^T],

Delta of 2 x 2 blocks, M x M the map S -> M S M of symmetric matrices: D + D (D + 1)/2 columns in
all, however many samples there are. lam borders it with one row.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class NewtonSystem:
    """H p = -gradient for B nodes.

    Attributes:
        features: X (n, D).
        squares: svec(x_j x_j^T) (n, D (D + 1)/2).
        shifted: lam I - A (B, D, D), of which M is the inverse.
        inverse: M (B, D, D).
        barrier: tau.
        slopes: J (B, 2, n).
        bends: eta (B, 2, n).
        diagonal: Of Delta (B, 2, n).
        mixed: Off-diagonal entry of each block of Delta (B, n).
        border: H between the samples' multipliers and lam (B, 2, n).
        corner: H of lam (B,).
    """

    features: Tensor
    squares: Tensor
    shifted: Tensor
    inverse: Tensor
    barrier: float
    slopes: Tensor
    bends: Tensor
    diagonal: Tensor
    mixed: Tensor
    border: Tensor
    corner: Tensor

    def solve(self, gradient: Tensor, last: Tensor) -> tuple[Tensor, Tensor]:
        """Return -H^-1 gradient, for the samples (B, 2, n) and for lam (B,).

        NaN where H is not positive definite in floating point.

        Args:
            gradient: Of the samples' multipliers (B, 2, n).
            last: Of lam (B,).
        """
        n, rank = len(self.features), self.features.shape[1] + self.squares.shape[1]
        right = torch.stack([gradient, self.border], 3)  # (B, 2, n, 2)
        # The low rank costs about n rank^2, the dense factorisation n^3.
        solved = self._by_rank(right) if n > 2 * rank else self._densely(right)
        z, across = solved[..., 0], solved[..., 1]
        schur = self.corner - (self.border * across).sum((1, 2))
        level = -(last - (self.border * z).sum((1, 2))) / schur
        level = torch.where(schur > 0, level, torch.nan)
        return -(z + level.view(-1, 1, 1) * across), level

    def _densely(self, right: Tensor) -> Tensor:
        n = len(self.features)
        gram = (self.features @ self.inverse) @ self.features.T
        H = gram.new_empty(len(gram), 2 * n, 2 * n)
        body = H.view(-1, 2, n, 2, n)
        J, eta = self.slopes, self.bends
        body.copy_(gram[:, None, :, None] * J[..., None, None] * J[:, None, None])
        curved = (self.barrier * gram.square())[:, None, :, None]
        body += curved * eta[..., None, None] * eta[:, None, None]
        H.diagonal(dim1=1, dim2=2).add_(self.diagonal.flatten(1))
        for offset in (n, -n):
            H.diagonal(offset=offset, dim1=1, dim2=2).add_(self.mixed)
        factor, info = torch.linalg.cholesky_ex(H)
        solved = torch.cholesky_solve(right.flatten(1, 2), factor)
        solved = torch.where((info == 0).view(-1, 1, 1), solved, torch.nan)
        return solved.reshape(right.shape)

    def _by_rank(self, right: Tensor) -> Tensor:
        """Woodbury: H^-1 = E - E U (C + U^T E U)^-1 U^T E, E = Delta^-1, C from lam I - A."""
        U = torch.cat(
            [
                self.slopes.unsqueeze(3) * self.features,
                self.bends.unsqueeze(3) * self.squares,
            ],
            3,
        )  # (B, 2, n, rank)
        EU, E_right = self._blockwise(U), self._blockwise(right)
        core = U.flatten(1, 2).mT @ EU.flatten(1, 2)
        dimension = self.features.shape[1]
        core[:, :dimension, :dimension] += self.shifted
        core[:, dimension:, dimension:] += _congruence(self.shifted) / self.barrier
        factor, info = torch.linalg.cholesky_ex(core)
        inner = torch.cholesky_solve(U.flatten(1, 2).mT @ E_right.flatten(1, 2), factor)
        inner = torch.where((info == 0).view(-1, 1, 1), inner, torch.nan)
        return E_right - (EU.flatten(1, 2) @ inner).view_as(E_right)

    def _blockwise(self, right: Tensor) -> Tensor:
        """Return Delta^-1 times (B, 2, n, q)."""
        a, b = self.diagonal.unsqueeze(3).unbind(1)
        c = self.mixed.unsqueeze(2)
        first, second = right.unbind(1)
        det = a * b - c.square()
        return torch.stack([b * first - c * second, a * second - c * first], 1) / det.unsqueeze(1)


def svec_squares(features: Tensor) -> Tensor:
    """Return svec(x x^T) (n, D (D + 1)/2): the upper triangle, off-diagonal entries times sqrt 2.

    Then <svec S, svec T> = trace S T.
    """
    rows, columns = _upper(features.shape[1], features.device)
    return features[:, rows] * features[:, columns] * _weights(rows, columns, features)


def _congruence(Q: Tensor) -> Tensor:
    """Return the matrix of S -> Q S Q in svec coordinates, (B, p, p), for Q (B, D, D)."""
    rows, columns = _upper(Q.shape[1], Q.device)
    weights = _weights(rows, columns, Q)
    # Entry (ij, kl) of the image of (e_k e_l^T + e_l e_k^T)/2 is (Q_ik Q_jl + Q_il Q_jk)/2.
    left, right = Q[:, :, rows], Q[:, :, columns]  # (B, D, p)
    image = left[:, rows] * right[:, columns] + right[:, rows] * left[:, columns]
    return 0.5 * image * weights.unsqueeze(1) * weights


def _upper(size: int, device: torch.device) -> tuple[Tensor, Tensor]:
    rows, columns = torch.triu_indices(size, size, device=device)
    return rows, columns


def _weights(rows: Tensor, columns: Tensor, like: Tensor) -> Tensor:
    return torch.where(rows == columns, 1.0, 2.0**0.5).to(like.dtype)
