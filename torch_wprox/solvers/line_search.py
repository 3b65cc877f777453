"""Weak Wolfe line search with a bracket, for functions with kinks (Lewis & Overton 2013)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

from torch_wprox.arguments import checked_count, checked_number
from torch_wprox.objective import Evaluation, Objective

Numbers = TypeVar("Numbers", float, Tensor)
"""A number, or one for every row of a batch."""

# A trial that was too far leaves a bracket; the next one lies between these fractions of it.
_NEAREST, _FARTHEST = 0.1, 0.5
# How much longer than the last search's length the first trial of the next one may be at kinks.
_GROWTH = 4.0
# The trapezoidal rule misses more than this share of the decrease where a kink was crossed.
_MISSES = 0.25
# A decrease of fewer units in the last place of P says nothing.
_NOISE = 64.0
# Weight of one iteration in the share of those that cross a kink, and the share that is many:
# it is 0.05 to 0.15 where the loss is smooth (the change of curvature in an iteration of a stiff
# one misses 0.1 of the decrease in a third of them), about 0.5 on the note's five samples.
_FORGETS, _MANY_KINKS = 0.1, 0.38


@dataclass(frozen=True)
class WeakWolfe:
    """Shrinking and doubling until both weak Wolfe conditions hold.

        P(v + t p) <= P(v) + decrease t <grad P(v), p>      (sufficient decrease)
        <grad P(v + t p), p> >= curvature <grad P(v), p>    (the slope has flattened)

    A strong Wolfe condition would ask for a small slope, which no point near a kink has. The
    bracket halves, at least in every other trial, until both hold: on a locally Lipschitz function
    the search ends almost surely. Lewis and Overton bisect it; where the first trial is far too
    long, as it often is in deeper networks, the minimum of the cubic through both ends saves most
    of the trials.

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

    def falls(self, value: Numbers, start: Numbers, t: Numbers, slope: Numbers) -> Any:
        """Return whether P has sufficient decrease at length t, for numbers or for rows (B,).

        False where ``value`` is not finite.

        Args:
            value: P(v + t p).
            start: P(v).
            t: Length.
            slope: <grad P(v), p> < 0.
        """
        return value <= start + self.decrease * t * slope

    def flattens(self, slope_there: Numbers, slope: Numbers) -> Any:
        """Return whether <grad P(v + t p), p> has flattened, for numbers or for rows (B,)."""
        return slope_there >= self.curvature * slope

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
            trial_slope = torch.dot(trial.grad, direction).item()
            if not self.falls(trial.value, start.value, t, slope):
                high = t  # too far, or not finite
                ends = (found.value, found_slope, trial.value, trial_slope)
                t = low + (high - low) * _fraction(*ends, high - low)
                continue
            found, found_slope, low = trial, trial_slope, t
            if self.flattens(found_slope, slope):
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


class FirstTrial:
    """Chooses the first t of a search along a quasi-Newton direction.

    Newton's step, t = 1, is right near a smooth minimum only. Before, P falls in this iteration
    about as far as it did in the last one: for a quadratic along the way that gives

        t = 2 * 1.01 * (last decrease) / |slope|,   at most 1

    (Nocedal & Wright (3.60), and SciPy's BFGS). Where the way keeps crossing kinks the model is of
    no use, and its short steps keep a search from leaving them: there the first t is 4 times the
    last one, at most 1. An iteration crosses a kink when the trapezoidal rule, exact for
    quadratics, misses its decrease by more than a quarter.

    Args:
        state: What :meth:`state` gave at the end of the last step.
    """

    def __init__(self, state: list[float] | None = None) -> None:
        self._t, _, self._kinks = state or (1.0, 0.0, 0.0)
        # A step ends where P hardly falls any more; the next one does not begin there, and a length
        # that followed from that decrease would have to be doubled many times.
        self._decrease = 0.0

    def length(self, slope: float) -> float:
        """Return the first t where P has this slope < 0 along the direction."""
        if self._kinks <= _MANY_KINKS and self._decrease > 0:
            return min(1.0, 2.02 * self._decrease / -slope)
        return min(1.0, _GROWTH * self._t)

    def note(self, before: Evaluation, after: Evaluation, t: float) -> None:
        """Take in one accepted iteration of length t."""
        decrease = before.value - after.value
        if abs(decrease) <= _NOISE * torch.finfo(after.point.dtype).eps * abs(before.value):
            return  # rounding: at a length that follows from it no decrease can be seen
        way = after.point - before.point
        trapezoid = -0.5 * torch.dot(way, before.grad + after.grad).item()
        is_kinked = not abs(decrease - trapezoid) <= _MISSES * abs(decrease)
        self._t, self._decrease = t, decrease
        self._kinks += _FORGETS * (is_kinked - self._kinks)

    def state(self) -> list[float]:
        """Return plain numbers to go on from."""
        return [self._t, self._decrease, self._kinks]


def _fraction(
    low_value: float, low_slope: float, high_value: float, high_slope: float, width: float
) -> float:
    """Return where to go on in the bracket: the minimum of a cubic, kept off the ends."""
    if not math.isfinite(high_value):
        return _NEAREST
    # Nocedal & Wright (3.59) in units of the bracket.
    g, h = low_slope * width, high_slope * width
    d = g + h - 3.0 * (high_value - low_value)
    root = d * d - g * h
    if not (math.isfinite(root) and root >= 0):
        return _FARTHEST
    root = math.sqrt(root)
    below = h - g + 2.0 * root
    if not below > 0:
        return _FARTHEST
    return min(max(1.0 - (h + root - d) / below, _NEAREST), _FARTHEST)
