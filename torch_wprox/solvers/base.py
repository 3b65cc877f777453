"""What an inner solver is."""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

from torch_wprox.objective import Objective
from torch_wprox.report import Status
from torch_wprox.solvers.stopping import Stopping


@runtime_checkable
class Solver(Protocol):
    """Options and algorithm of an inner solver.

    Example:
        >>> from torch_wprox import BFGS
        >>> isinstance(BFGS(), Solver), BFGS().name
        (True, 'bfgs')
    """

    @property
    def name(self) -> str:
        """The name under which a checkpoint remembers it."""

    def minimize(
        self, objective: Objective, stopping: Stopping, memory: dict[str, Any] | None = None
    ) -> tuple[Status, dict[str, Any] | None]:
        """Minimise; the objective remembers the best point.

        Args:
            objective: What to minimise, with its budget of evaluations.
            stopping: When to end before the budget does.
            memory: What the same solver returned after the last step, given only when F is the
                same function as then.

        Returns:
            Why it ended, and what may carry over to the next step: plain numbers and tensors.
        """
