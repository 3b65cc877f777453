"""The default solver: dense BFGS for small problems, limited memory above."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch_wprox.arguments import checked_count
from torch_wprox.objective import Objective
from torch_wprox.report import Status
from torch_wprox.solvers.bfgs import BFGS
from torch_wprox.solvers.lbfgs import LBFGS
from torch_wprox.solvers.stopping import Stopping


@dataclass(frozen=True)
class Auto:
    """BFGS up to ``dense_up_to`` numbers, LBFGS above.

    In quality per evaluation neither is ahead on networks of 100 to 600 numbers; a dense update
    costs N^2. With 5 to 50 data points 1000 evaluations in all cost the same at N = 220, and BFGS
    1.6 times as much at N = 440 (``python -m benchmarks.quality --only d``).

    Args:
        dense_up_to: Largest N for BFGS.
    """

    dense_up_to: int = 200

    name = "auto"

    def __post_init__(self) -> None:
        checked_count("dense_up_to", self.dense_up_to, least=0)

    def minimize(
        self, objective: Objective, stopping: Stopping, memory: dict[str, Any] | None = None
    ) -> tuple[Status, dict[str, Any] | None]:
        """Minimise by the solver of the problem's size."""
        dense = objective.anchor.numel() <= self.dense_up_to
        return (BFGS() if dense else LBFGS()).minimize(objective, stopping, memory)
