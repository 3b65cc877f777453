"""Inner solvers: each is a frozen dataclass of options that minimises an ``Objective``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

from torch_wprox.objective import Objective
from torch_wprox.report import Status
from torch_wprox.solvers.auto import Auto
from torch_wprox.solvers.bfgs import BFGS
from torch_wprox.solvers.first_order import GradientDescent
from torch_wprox.solvers.global_solver import Global
from torch_wprox.solvers.lbfgs import LBFGS
from torch_wprox.solvers.line_search import WeakWolfe
from torch_wprox.solvers.stopping import Stopping
from torch_wprox.solvers.torch_optimizer import FirstOrder, adam

__all__ = [
    "BFGS",
    "LBFGS",
    "Auto",
    "FirstOrder",
    "Global",
    "GradientDescent",
    "Solver",
    "Stopping",
    "WeakWolfe",
    "named",
]


@runtime_checkable
class Solver(Protocol):
    """Options and algorithm of an inner solver."""

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


_BY_NAME: dict[str, Callable[[], Solver]] = {
    "auto": Auto,
    "adam": adam,
    "gd": GradientDescent,
    "bfgs": BFGS,
    "lbfgs": LBFGS,
    "global": Global,
}


def named(solver: str | Solver) -> Solver:
    """Return the solver of that name with its default options; an object is returned as it is.

    Raises:
        ValueError: No solver has that name.
    """
    if not isinstance(solver, str):
        return solver
    if solver not in _BY_NAME:
        known = ", ".join(repr(name) for name in _BY_NAME)
        raise ValueError(f"solver must be one of {known} or an object of solvers/, got {solver!r}")
    return _BY_NAME[solver]()
