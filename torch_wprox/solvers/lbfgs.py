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


@dataclass(frozen=True)
class Pairs:
    """The last k steps s and gradient differences y, and the products the compact form needs.

    Attributes:
        S: (k, N), oldest first.
        Y: (k, N).
        SY: S Y^T, (k, k).
        YY: Y Y^T, (k, k).
    """

    S: Tensor
    Y: Tensor
    SY: Tensor
    YY: Tensor

    @staticmethod
    def empty(like: Tensor) -> Pairs:
        """Return no pairs of vectors like ``like`` (N,)."""
        none, square = like.new_empty(0, len(like)), like.new_empty(0, 0)
        return Pairs(none, none, square, square)

    def appended(self, s: Tensor, y: Tensor, most: int) -> Pairs:
        """Return the pairs with ``s, y`` (N,) at the end and at most ``most`` in all.

        A pair without positive curvature is left out: H must stay positive definite.
        """
        if not torch.dot(s, y) > 1e-14 * torch.linalg.vector_norm(s) * torch.linalg.vector_norm(y):
            return self
        drop = max(0, len(self.S) + 1 - most)
        S, Y = torch.cat([self.S[drop:], s[None]]), torch.cat([self.Y[drop:], y[None]])
        return Pairs(
            S, Y, _bordered(self.SY, S @ y, Y @ s, drop), _bordered(self.YY, Y @ y, Y @ y, drop)
        )

    def times(self, g: Tensor) -> Tensor:
        """Return H g, (N,).

        With R the upper triangle of S Y^T, D its diagonal and c the largest <s, y>/<y, y>,

            H g = c g + S^T R^-T (D + c Y Y^T) R^-1 S g - S^T R^-T c Y g - c Y^T R^-1 S g

        (Byrd, Nocedal & Schnabel 1994, theorem 2.2). The usual c, that of the last pair, nearly
        vanishes where that pair crossed a kink, and all directions that the pairs do not span with
        it: on functions with kinks it can even stop far from a minimum (Asl & Overton 2020).
        """
        c = (self.SY.diagonal() / self.YY.diagonal()).max()
        R = self.SY.triu()
        q = torch.linalg.solve_triangular(R, (self.S @ g)[:, None], upper=True)
        inner = self.SY.diagonal()[:, None] * q + c * (self.YY @ q) - c * (self.Y @ g)[:, None]
        p = torch.linalg.solve_triangular(R.T, inner, upper=False)
        Hg: Tensor = c * g + p[:, 0] @ self.S - (c * q[:, 0]) @ self.Y
        return Hg


@dataclass(frozen=True)
class LBFGS:
    """Quasi-Newton descent from V = W with the last ``history`` curvature pairs.

    Args:
        history: Number of pairs; memory is 2 history N numbers. None: 50, as kinks want many, but
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
        current, stagnation = objective.start, Stagnation(objective)
        most = self.history or _history_of(len(current.point))
        kept = CurvaturePairs(most)
        pairs = Pairs.empty(current.point)
        for s, y in kept.recall(memory, objective):
            pairs = pairs.appended(s, y, most)
        try:
            while (status := stopping.check(objective, current)) is None:
                if len(pairs.S):
                    direction = -pairs.times(current.grad)
                else:
                    direction = -first_step(objective, current) * current.grad
                found, _ = self.line_search.search(objective, current, direction)
                if found is current:
                    if not len(pairs.S):
                        return Status.STALLED, kept.state()
                    pairs = Pairs.empty(current.point)
                    continue
                pairs = pairs.appended(found.point - current.point, found.grad - current.grad, most)
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


def _bordered(matrix: Tensor, column: Tensor, row: Tensor, drop: int) -> Tensor:
    """Drop the first ``drop`` rows and columns, then append a column and a row (both k + 1)."""
    kept = matrix[drop:, drop:]
    return torch.cat([torch.cat([kept, column[:-1, None]], 1), row[None]])
