"""Weak Wolfe line search with a bracket, for functions with kinks (Lewis & Overton 2013)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from torch_wprox.arguments import checked_count, checked_number
from torch_wprox.objective import Evaluation, Objective

# A trial that was too far leaves a bracket; the next one lies between these fractions of it.
_NEAREST, _FARTHEST = 0.1, 0.5
# How much longer than the last search's length the first trial of the next one may be.
_GROWTH = 4.0


@dataclass(frozen=True)
class WeakWolfe:
    """Shrinking and doubling until both weak Wolfe conditions hold.

        P(v + t p) <= P(v) + decrease t <grad P(v), p>      (sufficient decrease)
        <grad P(v + t p), p> >= curvature <grad P(v), p>    (the slope has flattened)

    A strong Wolfe condition would ask for a small slope, which no point near a kink has. The
    bracket halves, at least in every other trial, until both hold: on a locally Lipschitz function
    the search ends almost surely. Lewis and Overton bisect it; where the first trial is far too
    long, as it often is in deeper networks, the minimum of the parabola through both ends saves
    most of the trials.

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
        for option in ("decrease", "curvature"):
            checked_number(option, getattr(self, option), "in (0, 1)", lambda c: 0 < c < 1)
        if not 0 < self.decrease < self.curvature < 1:
            raise ValueError(
                "decrease and curvature must satisfy 0 < decrease < curvature < 1, got "
                f"{self.decrease!r} and {self.curvature!r}"
            )
        checked_count("max_trials", self.max_trials)

    def search(
        self, objective: Objective, start: Evaluation, direction: Tensor, first: float = 1.0
    ) -> tuple[Evaluation, float]:
        """Search along ``start.point + t * direction``.

        Args:
            objective: What to evaluate.
            start: Where the search starts.
            direction: p, (N,), a descent direction.
            first: First t.

        Returns:
            The last point that had sufficient decrease (``start`` if none had) and its t (0).

        Raises:
            BudgetExhausted: No evaluation is left.
        """
        slope = torch.dot(start.grad, direction).item()
        low, high, t = 0.0, float("inf"), first
        found, found_slope = start, slope
        for _ in range(self.max_trials):
            trial = objective.evaluate(start.point + t * direction)
            if not trial.value <= start.value + self.decrease * t * slope:
                high = t  # too far, or not finite
                t = low + (high - low) * _fraction(
                    found.value, found_slope, trial.value, high - low
                )
                continue
            found, found_slope, low = trial, torch.dot(trial.grad, direction).item(), t
            if found_slope >= self.curvature * slope:
                break
            t = (low + high) / 2 if high < float("inf") else 2 * t
        return found, low


def checked_search(search: Any) -> None:
    """Refuse a line search that cannot search.

    Raises:
        TypeError: It has no method ``search``.
    """
    if isinstance(search, type) or not callable(getattr(search, "search", None)):
        raise TypeError(
            f"line_search must be an object with a method search, such as WeakWolfe(), got "
            f"{search!r}"
        )


def first_trial(last: float) -> float:
    """Return the first t of a search along a quasi-Newton direction.

    It is 1, the length of Newton's step, unless the last search ended at a far shorter t: the scale
    of H is then too large, and this one would have to shrink the bracket as far again.
    """
    return min(1.0, _GROWTH * last)


def _fraction(low_value: float, low_slope: float, high_value: float, width: float) -> float:
    """Return where to go on in the bracket: the minimum of a parabola, kept off the ends."""
    rise = high_value - low_value - low_slope * width
    if not math.isfinite(rise):
        return _NEAREST
    if rise <= 0:
        return _FARTHEST
    return min(max(-low_slope * width / (2 * rise), _NEAREST), _FARTHEST)
