"""Weak Wolfe line search by bisection, for functions with kinks (Lewis & Overton 2013)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from torch_wprox.objective import Evaluation, Objective


@dataclass(frozen=True)
class WeakWolfe:
    """Bisection and doubling until both weak Wolfe conditions hold.

        P(v + t p) <= P(v) + decrease t <grad P(v), p>      (sufficient decrease)
        <grad P(v + t p), p> >= curvature <grad P(v), p>    (the slope has flattened)

    A strong Wolfe condition would ask for a small slope, which no point near a kink has. The
    bracket halves until both hold: on a locally Lipschitz function the search ends almost surely.

    Args:
        decrease: Armijo constant, in (0, curvature).
        curvature: Wolfe constant, in (decrease, 1).
        max_trials: Evaluations of one search.

    Raises:
        ValueError: Not 0 < decrease < curvature < 1, or max_trials < 1.

    Source: Lewis & Overton, Nonsmooth optimization via quasi-Newton methods, 2013, Algorithm 4.6.
    """

    decrease: float = 1e-4
    curvature: float = 0.9
    max_trials: int = 40

    def __post_init__(self) -> None:
        if not 0 < self.decrease < self.curvature < 1:
            raise ValueError(
                "decrease and curvature must satisfy 0 < decrease < curvature < 1, got "
                f"{self.decrease!r} and {self.curvature!r}"
            )
        if self.max_trials < 1:
            raise ValueError(f"max_trials must be >= 1, got {self.max_trials!r}")

    def search(
        self, objective: Objective, start: Evaluation, direction: Tensor, first: float = 1.0
    ) -> tuple[Evaluation, bool]:
        """Search along ``start.point + t * direction``.

        Args:
            objective: What to evaluate.
            start: Where the search starts.
            direction: p, (N,), a descent direction.
            first: First t.

        Returns:
            The last point that had sufficient decrease (``start`` if none had) and whether both
            conditions hold there.

        Raises:
            BudgetExhausted: No evaluation is left.
        """
        slope = torch.dot(start.grad, direction).item()
        low, high, t = 0.0, float("inf"), first
        found = start
        for _ in range(self.max_trials):
            trial = objective.evaluate(start.point + t * direction)
            if not trial.value <= start.value + self.decrease * t * slope:
                high = t  # too far, or not finite
            else:
                found = trial
                if torch.dot(trial.grad, direction).item() >= self.curvature * slope:
                    return trial, True
                low = t
            t = (low + high) / 2 if high < float("inf") else 2 * t
        return found, False
