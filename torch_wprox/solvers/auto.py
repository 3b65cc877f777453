"""The default solver: a dense inverse Hessian for small problems, limited memory above."""

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

    Per evaluation BFGS is ahead wherever its matrix fits: on a stiff regression with 2751 numbers
    it needs half the evaluations of 200 pairs to 1e-4 of the first loss, and it alone gets to 1e-6.
    One product with the matrix is 2.5 ms there on one core, and none is made in the first N/16
    iterations (``python -m benchmarks.versus``). A closure that takes longer than a few
    milliseconds deserves ``solver="bfgs"`` whatever N is.

    Args:
        dense_up_to: Largest N for BFGS.
        remember: What BFGS carries over and saves, as in :class:`BFGS`: None for its whole matrix,
            k for k pairs, 0 for nothing.

    Example:
        >>> import torch
        >>> from torch_wprox import prox
        >>> solver = Auto(dense_up_to=100)
        >>> W, loss = torch.zeros(4, 1), lambda V: (V - 2).square().mean()
        >>> V, report = prox(loss, W, 1.0, solver=solver)
        >>> V[0], report.objective < report.loss_before
        (tensor([1.3333]), True)
    """

    dense_up_to: int = 3000
    remember: int | None = None

    name = "auto"

    def __post_init__(self) -> None:
        checked_count("dense_up_to", self.dense_up_to, least=0)
        if self.remember is not None:
            checked_count("remember", self.remember, least=0)

    def minimize(
        self, objective: Objective, stopping: Stopping, memory: dict[str, Any] | None = None
    ) -> tuple[Status, dict[str, Any] | None]:
        """Minimise by the solver of the problem's size."""
        dense = objective.anchor.numel() <= self.dense_up_to
        solver = BFGS(remember=self.remember) if dense else LBFGS()
        return solver.minimize(objective, stopping, memory)
