"""How far a step is."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Progress:
    """How far a step is: what a ``callback`` is given while the step runs.

    Attributes:
        evaluation: Closure evaluations of the step so far (iterations, for a step on a grid).
        objective: P at the last evaluation, in units of the loss.
        best: The lowest P so far.
        residual: 2-norm of the gradient of P there, NaN where it is not known.
        lower_bound: The bound below the minimum of P so far; None without one.
        seconds: Time since the step began.

    Example:
        >>> print(Progress(12, 0.5, 0.4, 0.01, None, 1.25))
        evaluation 12: objective 0.5, best 0.4, residual 0.01, 1.2 s
    """

    evaluation: int
    objective: float
    best: float
    residual: float
    lower_bound: float | None
    seconds: float

    def __str__(self) -> str:
        bound = "" if self.lower_bound is None else f", lower bound {self.lower_bound:.6g}"
        return (
            f"evaluation {self.evaluation}: objective {self.objective:.6g}, best {self.best:.6g}"
            f"{bound}, residual {self.residual:.3g}, {self.seconds:.1f} s"
        )
