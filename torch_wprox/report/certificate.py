"""A value with a bound below the global minimum."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Certificate:
    """A value with a bound below the global minimum.

    Attributes:
        objective: The value at the layer's parameters.
        lower_bound: No parameters have a lower value than this.
        certified: Whether the bound is proved if the loss is convex in the output; else it is an
            estimate.
        evaluations: Closure evaluations used.
        estimate: The higher number that the bound is estimated at, where the proof fell short of
            it; None where best responses are exact or nothing was proved.

    Example:
        >>> print(Certificate(objective=2.02, lower_bound=2.0, certified=True, evaluations=9))
        objective 2.02, proved lower bound 2, gap 1 % (proved if the loss is convex in the output)
    """

    objective: float
    lower_bound: float
    certified: bool
    evaluations: int
    estimate: float | None = None

    @property
    def gap(self) -> float:
        """``objective - lower_bound``."""
        return self.objective - self.lower_bound

    @property
    def relative_gap(self) -> float:
        """The gap as a share of the bound's size."""
        return self.gap / max(abs(self.lower_bound), 1e-300)

    def __str__(self) -> str:
        if not math.isfinite(self.lower_bound):
            return f"objective {self.objective:.6g}, no lower bound was found"
        kind = "proved" if self.certified else "estimated"
        text = (
            f"objective {self.objective:.6g}, {kind} lower bound {self.lower_bound:.6g}, "
            f"gap {100 * self.relative_gap:.3g} %"
        )
        if self.estimate is not None:
            gap = (self.objective - self.estimate) / max(abs(self.estimate), 1e-300)
            text += f", estimated {self.estimate:.6g}, gap {100 * gap:.3g} %"
        return f"{text} (proved if the loss is convex in the output)" if self.certified else text
