"""Curvature pairs and the inverse Hessian they stand for, in compact form."""

from __future__ import annotations

from collections import deque
from typing import Any

import torch
from torch import Tensor

from torch_wprox.objective import Evaluation, Objective

# Least cosine between s and y.
_CURVED = 1e-14


class Pairs:
    """The last k steps s and gradient differences y, and the products the compact form needs.

    They are windows into buffers of twice their size, so that a pair is written once and moved
    once, when the window reaches the end: appending costs O(N), not a copy of all pairs.

    Args:
        like: A vector (N,) like those to come.
        most: Largest k.
    """

    def __init__(self, like: Tensor, most: int) -> None:
        self._most, self._first, self._end = most, 0, 0
        self._S, self._Y = like.new_empty(2 * most, len(like)), like.new_empty(2 * most, len(like))
        self._SY, self._YY = (like.new_empty(2 * most, 2 * most) for _ in range(2))

    def __len__(self) -> int:
        return self._end - self._first

    @property
    def S(self) -> Tensor:
        """The steps, (k, N), oldest first."""
        return self._S[self._first : self._end]

    @property
    def Y(self) -> Tensor:
        """The differences of gradients, (k, N)."""
        return self._Y[self._first : self._end]

    @property
    def SY(self) -> Tensor:
        """S Y^T, (k, k)."""
        return self._SY[self._first : self._end, self._first : self._end]

    @property
    def YY(self) -> Tensor:
        """Y Y^T, (k, k)."""
        return self._YY[self._first : self._end, self._first : self._end]

    def append(self, s: Tensor, y: Tensor) -> None:
        """Put ``s, y`` (N,) at the end; the oldest pair goes when there are too many.

        A pair without positive curvature is left out: H must stay positive definite.
        """
        if not torch.dot(s, y) > _CURVED * torch.linalg.vector_norm(s) * torch.linalg.vector_norm(
            y
        ):
            return
        if len(self) == self._most:
            self._first += 1
        if self._end == 2 * self._most:
            self._to_front()
        at = self._end
        self._end += 1
        self._S[at], self._Y[at] = s, y
        window = slice(self._first, self._end)
        self._SY[window, at], self._SY[at, window] = self.S @ y, self.Y @ s
        self._YY[window, at] = self._YY[at, window] = self.Y @ y

    def replace(self, S: Tensor, Y: Tensor) -> None:
        """Put the pairs ``S, Y`` (k, N), k at most ``most``, in the place of all there are."""
        sy, lengths = (S * Y).sum(1), S.norm(dim=1) * Y.norm(dim=1)
        positive = sy > _CURVED * lengths
        S, Y = S[positive], Y[positive]
        self._first, self._end = 0, len(S)
        self.S.copy_(S)
        self.Y.copy_(Y)
        self.SY.copy_(S @ Y.T)
        self.YY.copy_(Y @ Y.T)

    def _to_front(self) -> None:
        k = len(self)
        # No overlap: the window, shorter than `most`, is at the end of 2 `most` rows.
        self._S[:k], self._Y[:k] = self.S, self.Y
        self._SY[:k, :k], self._YY[:k, :k] = self.SY, self.YY
        self._first, self._end = 0, k

    def clear(self) -> None:
        """Forget all pairs."""
        self._first = self._end = 0

    def times(self, g: Tensor) -> Tensor:
        """Return H g, (N,).

        With R the upper triangle of S Y^T, D its diagonal and c the largest <s, y>/<y, y>,

            H g = c g + S^T R^-T (D + c Y Y^T) R^-1 S g - S^T R^-T c Y g - c Y^T R^-1 S g

        (Byrd, Nocedal & Schnabel 1994, theorem 2.2). The usual c, that of the last pair, nearly
        vanishes where that pair crossed a kink, and all directions that the pairs do not span with
        it: on functions with kinks it can even stop far from a minimum (Asl & Overton 2020).
        """
        S, Y, SY, YY = self.S, self.Y, self.SY, self.YY
        c = (SY.diagonal() / YY.diagonal()).max()
        R = SY.triu()
        q = torch.linalg.solve_triangular(R, (S @ g)[:, None], upper=True)
        inner = SY.diagonal()[:, None] * q + c * (YY @ q) - c * (Y @ g)[:, None]
        p = torch.linalg.solve_triangular(R.T, inner, upper=False)
        Hg: Tensor = c * g + p[:, 0] @ S - (c * q[:, 0]) @ Y
        return Hg

    def dense(self) -> Tensor:
        """Return H as a matrix (N, N), from the scale of the first pair, as BFGS starts.

        With Q = R^-1 S the formula of :meth:`times` for all g at once:

            H = c I + Q^T (D + c Y Y^T) Q - c (Q^T Y + Y^T Q)
        """
        S, Y, SY, YY = self.S, self.Y, self.SY, self.YY
        c = SY[0, 0] / YY[0, 0]
        Q = torch.linalg.solve_triangular(SY.triu(), S, upper=True)
        cross = Q.T @ Y
        H: Tensor = Q.T @ ((torch.diag(SY.diagonal()) + c * YY) @ Q) - c * (cross + cross.T)
        H.diagonal().add_(c)
        return H


class CurvaturePairs:
    """The last steps s and the differences y of the gradient of F along them.

    F is the same function in the next step of a full-batch run, the distance term is not: its
    anchor moves. But its Hessian is kappa I, kappa = 1/(m gamma), whatever the anchor, so a pair
    (s, y) of F is the pair (s, y + kappa s) of the next P.

    Args:
        most: Number of pairs kept.
    """

    def __init__(self, most: int) -> None:
        self._pairs: deque[tuple[Tensor, Tensor]] = deque(maxlen=most)

    def note(self, before: Evaluation, after: Evaluation) -> None:
        """Keep the pair of one accepted iteration."""
        self._pairs.append((after.point - before.point, after.loss_grad - before.loss_grad))

    def state(self) -> dict[str, Any] | None:
        """Return the pairs as two tensors (k, N), oldest first; None without any."""
        if not self._pairs:
            return None
        steps, differences = zip(*self._pairs, strict=True)
        return {"steps": torch.stack(steps), "differences": torch.stack(differences)}

    def recall(
        self, memory: dict[str, Any] | None, objective: Objective
    ) -> tuple[Tensor, Tensor] | None:
        """Take over the pairs of the last step; return them as pairs (k, N) of this objective."""
        if memory is None:
            return None
        first = max(0, len(memory["steps"]) - (self._pairs.maxlen or 0))
        steps, differences = memory["steps"][first:], memory["differences"][first:]
        self._pairs.extend(zip(steps, differences, strict=True))
        return steps, differences + objective.distance_hessian() * steps
