"""Limited-memory BFGS in compact form, with a weak Wolfe line search."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch_wprox.arguments import checked_count
from torch_wprox.objective import BudgetExhausted, Objective
from torch_wprox.report import Status
from torch_wprox.solvers.bfgs import first_step
from torch_wprox.solvers.curvature_pairs import CurvaturePairs, Pairs
from torch_wprox.solvers.line_search import WeakWolfe, checked_search, first_trial
from torch_wprox.solvers.stopping import Stagnation, Stopping


@dataclass(frozen=True)
class LBFGS:
    """Quasi-Newton descent from V = W with the last ``history`` curvature pairs.

    Args:
        history: Number of pairs; memory is 6 history N numbers. None: 50, as kinks want many, but
            fewer above 20 000 numbers, down to 10: there a pair costs more than it teaches.
        line_search: The weak Wolfe search.

    Raises:
        TypeError: ``line_search`` has no ``search``.
        ValueError: ``history`` is no integer >= 1.

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
        current, stagnation = objective.begin, Stagnation(objective)
        most = self.history or _history_of(len(current.point))
        kept = CurvaturePairs(most)
        pairs = Pairs(current.point, most)
        if (recalled := kept.recall(memory, objective)) is not None:
            pairs.replace(*recalled)
        t = 1.0
        try:
            while (status := stopping.check(objective, current)) is None:
                if len(pairs):
                    direction = -pairs.times(current.grad)
                else:
                    direction = -first_step(objective, current) * current.grad
                found, t = self.line_search.search(objective, current, direction, first_trial(t))
                if found is current:
                    if not len(pairs):
                        return Status.STALLED, kept.state()
                    pairs.clear()
                    t = 1.0
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
