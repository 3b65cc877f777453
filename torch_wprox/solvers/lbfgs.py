"""Limited-memory BFGS in compact form, with a weak Wolfe line search."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from torch_wprox.objective import BudgetExhausted, Objective
from torch_wprox.report import Status
from torch_wprox.solvers.bfgs import first_step
from torch_wprox.solvers.line_search import WeakWolfe
from torch_wprox.solvers.memory import CurvaturePairs
from torch_wprox.solvers.stopping import Stagnation, Stopping


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
        if not torch.dot(s, y) > 1e-14 * torch.linalg.vector_norm(s) * torch.linalg.vector_norm(y):
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


@dataclass(frozen=True)
class LBFGS:
    """Quasi-Newton descent from V = W with the last ``history`` curvature pairs.

    Args:
        history: Number of pairs; memory is 6 history N numbers. None: 50, as kinks want many, but
            fewer above 20 000 numbers, down to 10: there a pair costs more than it teaches.
        line_search: The weak Wolfe search.

    Raises:
        ValueError: history < 1.

    Source: Byrd, Nocedal & Schnabel 1994 (compact form); Lewis & Overton 2013 (line search).
    """

    history: int | None = None
    line_search: WeakWolfe = field(default_factory=WeakWolfe)

    name = "lbfgs"

    def __post_init__(self) -> None:
        if self.history is not None and self.history < 1:
            raise ValueError(f"history must be >= 1 or None, got {self.history!r}")

    def minimize(
        self, objective: Objective, stopping: Stopping, memory: dict[str, Any] | None = None
    ) -> tuple[Status, dict[str, Any] | None]:
        """Descend until a rule of ``stopping`` holds, the budget ends or no direction descends."""
        current, stagnation = objective.begin, Stagnation(objective)
        most = self.history or _history_of(len(current.point))
        kept = CurvaturePairs(most)
        pairs = Pairs(current.point, most)
        for s, y in kept.recall(memory, objective):
            pairs.append(s, y)
        try:
            while (status := stopping.check(objective, current)) is None:
                if len(pairs):
                    direction = -pairs.times(current.grad)
                else:
                    direction = -first_step(objective, current) * current.grad
                found, _ = self.line_search.search(objective, current, direction)
                if found is current:
                    if not len(pairs):
                        return Status.STALLED, kept.state()
                    pairs.clear()
                    continue
                pairs.append(found.point - current.point, found.grad - current.grad)
                if stagnation.reached(current, found):
                    return Status.STALLED, kept.state()
                kept.note(current, found)
                current = found
        except BudgetExhausted:
            status = Status.MAX_EVAL
        return status, kept.state()


def _history_of(numbers: int) -> int:
    """Return how many pairs of N numbers are worth their vector work."""
    return max(10, min(50, 1_000_000 // numbers))
