"""Limited-memory BFGS in compact form, with a weak Wolfe line search."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from torch_wprox.arguments import checked_count
from torch_wprox.objective import Evaluation, Objective
from torch_wprox.report import Status
from torch_wprox.solvers.curvature_pairs import CurvaturePairs, Pairs
from torch_wprox.solvers.line_search import WeakWolfe, checked_search
from torch_wprox.solvers.quasi_newton import descend, start_shape
from torch_wprox.solvers.stopping import Stopping


@dataclass(frozen=True)
class LBFGS:
    """Quasi-Newton descent from V = W with the last ``history`` curvature pairs.

    Args:
        history: Number of pairs; memory is 6 history N numbers. None: N/4 within 50
            and 200, as kinks and stiff losses want many, but no more than 10^6/N (at least 10):
            there a pair costs more than it gains.
        line_search: The weak Wolfe search.

    Raises:
        TypeError: ``line_search`` has no ``search``.
        ValueError: ``history`` is no integer >= 1.

    Example:
        >>> import torch
        >>> from torch_wprox import prox
        >>> solver = LBFGS(history=10)
        >>> W, loss = torch.zeros(4, 1), lambda V: (V - 2).square().mean()
        >>> V, report = prox(loss, W, 1.0, solver=solver)
        >>> V[0], report.objective < report.loss_before
        (tensor([1.3333]), True)

    Source: Byrd, Nocedal & Schnabel 1994 (compact form); Lewis & Overton 2013 (line search).
    """

    history: int | None = None
    line_search: WeakWolfe = field(default_factory=WeakWolfe)

    name = "lbfgs"

    def __post_init__(self) -> None:
        if self.history is not None:
            checked_count("history", self.history)
        checked_search(self.line_search)

    def minimize(
        self, objective: Objective, stopping: Stopping, memory: dict[str, Any] | None = None
    ) -> tuple[Status, dict[str, Any] | None]:
        """Descend until a rule of ``stopping`` holds, the budget ends or no direction descends."""
        most = self.history or history_of(len(objective.anchor))
        inverse = LimitedInverse(most, objective, memory)
        return descend(objective, stopping, inverse, self.line_search, memory)


class LimitedInverse:
    """The inverse Hessian that pairs of P stand for; pairs of F are what carries over."""

    def __init__(self, most: int, objective: Objective, memory: dict[str, Any] | None) -> None:
        self._kept = CurvaturePairs(most)
        self._pairs = Pairs(objective.anchor, most)
        # Where gammas differ the pairs are those of v/r: there a multiple of the identity is a
        # good start.
        self._kappa = objective.stiffness()
        self._r: Tensor | None = None
        if memory is not None and (recalled := self._kept.recall(memory, objective)) is not None:
            S, Y = recalled
            if self._kappa is not None and len(S):
                self._r = start_shape(self._kappa, S[-1], Y[-1]).sqrt()
                S, Y = S / self._r, Y * self._r
            self._pairs.replace(S, Y)

    @property
    def is_empty(self) -> bool:
        """Whether nothing is known."""
        return not len(self._pairs)

    def times(self, g: Tensor) -> Tensor:
        """Return H g, (N,)."""
        if self._r is None:
            return self._pairs.times(g)
        return self._r * self._pairs.times(self._r * g)

    def update(self, before: Evaluation, after: Evaluation, t: float) -> None:
        """Take in one accepted iteration."""
        s, y = after.point - before.point, after.grad - before.grad
        if self._kappa is not None:
            if self.is_empty:
                self._r = start_shape(self._kappa, s, y).sqrt()
            assert self._r is not None
            s, y = s / self._r, y * self._r
        self._pairs.append(s, y)
        self._kept.note(before, after)

    def forget(self) -> None:
        """Become empty."""
        self._pairs.clear()

    def state(self) -> dict[str, Any] | None:
        """Return the pairs of F."""
        return self._kept.state()


def history_of(numbers: int) -> int:
    """Return how many pairs of N numbers are worth their vector work."""
    return max(10, min(200, max(50, numbers // 4), 1_000_000 // numbers))
