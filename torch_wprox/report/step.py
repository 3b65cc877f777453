"""The report of a proximal step, and what it counts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from torch_wprox.report.status import Status
from torch_wprox.report.wording import counted, share_of


@dataclass(frozen=True)
class TransportCounts:
    """How the assignments of a step were found, counted class by class.

    Attributes:
        proved: The assignment in force was proved optimal without a solve.
        repaired: Problems of larger classes solved, from prices known.
        solved: Problems of small classes solved directly.
        refined: Assignments improved by exchanges: good ones for trial points, not proved optimal.

    Example:
        >>> TransportCounts(proved=8, repaired=1) + TransportCounts(proved=2)
        TransportCounts(proved=10, repaired=1, solved=0, refined=0)
    """

    proved: int = 0
    repaired: int = 0
    solved: int = 0
    refined: int = 0

    def __add__(self, other: TransportCounts) -> TransportCounts:
        return TransportCounts(
            self.proved + other.proved,
            self.repaired + other.repaired,
            self.solved + other.solved,
            self.refined + other.refined,
        )


@dataclass(frozen=True)
class Bound:
    """A number below the global minimum of P.

    Attributes:
        lower_bound: The bound.
        certified: True if it is proved (exact best responses), False if it is an estimate.
        estimate: The higher number that it was estimated at before it was proved; None where best
            responses are exact or nothing was proved.

    Example:
        >>> bound = Bound(lower_bound=0.25, certified=False)  # an estimate
    """

    lower_bound: float
    certified: bool
    estimate: float | None = None


@dataclass(frozen=True)
class StepReport:
    """One proximal step, in numbers.

    Sums run over all clouds and plain tensors of the optimizer; ``d`` is the distance of the step.
    In one process what needs an optimal assignment (all from ``objective`` to ``residual``, and
    ``assignment``, ``transport`` and ``gap``) is computed when one of these is read first.

    Attributes:
        status: Why the inner solver ended.
        evaluations: Closure evaluations used, the first and the last one included.
        loss_before: F(W) at the anchor, weight decay included.
        loss_after: F(V) at the accepted point, weight decay included.
        objective: P(V) = F(V) + sum of d/(2 gamma) at the accepted point.
        distance_sq: d(V, W), the squared distance between the new and the old point.
        wasserstein_sq: Squared 2-Wasserstein distance between V and W inside the classes, or None
            where it would be too expensive (more than 2000 particles, not certified).
        frobenius_sq: Squared Frobenius distance (mean over the particles of a cloud).
        permuted_fraction: Exchanged particles over all particles, None as ``wasserstein_sq``.
        residual: 2-norm of the gradient of P at the accepted point.
        assignment: sigma, (m,) for one cloud, a tuple for several, None without clouds.
        transport: How the assignments of the step were found.
        lower_bound: A bound below the global minimum of P; None unless solved globally.
        gap: ``objective - lower_bound``; None unless solved globally.
        certified: True only if ``lower_bound`` is proved if the loss is convex in the output: best
            responses were exact, and probes met nothing that is not convex.
        estimate: The higher number that the bound is estimated at, where the proof fell short of
            it; None where best responses are exact or nothing was proved.

    Example:
        >>> print(unmoved(1.0, Status.NO_MOVE, 1))
        no_move after 1 evaluation: loss 1 -> 1
        objective 1, residual 0
        squared distance 0 (Wasserstein 0, Frobenius 0), 0% of the particles exchanged
    """

    status: Status
    evaluations: int
    loss_before: float
    loss_after: float
    objective: float
    distance_sq: float
    wasserstein_sq: float | None
    frobenius_sq: float
    permuted_fraction: float | None
    residual: float
    assignment: Tensor | tuple[Tensor, ...] | None = field(default=None, repr=False)
    transport: TransportCounts = field(default_factory=TransportCounts)
    lower_bound: float | None = None
    gap: float | None = None
    certified: bool = False
    estimate: float | None = None
    max_eval: int | None = None
    is_same_loss: bool | None = None

    def __str__(self) -> str:
        """Return the numbers that a reader looks for, in three or four short lines."""
        another = " of another loss than the last step's" if self.is_same_loss is False else ""
        lines = [
            f"{self.status} after {counted(self.evaluations, 'evaluation')}{another}: "
            f"loss {self.loss_before:.6g} -> {self.loss_after:.6g}",
            f"objective {self.objective:.6g}, residual {self.residual:.3g}",
            f"squared distance {self.distance_sq:.4g}{self._moved()}",
        ]
        if self.lower_bound is not None and self.gap is not None:
            kind = "proved (if the loss is convex in the output)" if self.certified else "estimated"
            share = share_of(self.gap, self.lower_bound)
            line = f"{kind} lower bound {self.lower_bound:.6g}, gap {share}"
            if self.estimate is not None:
                gap = self.objective - self.estimate
                line += f"; estimated {self.estimate:.6g}, gap {share_of(gap, self.estimate)}"
            lines.append(line)
        return "\n".join(lines)

    def _moved(self) -> str:
        if self.wasserstein_sq is None or self.permuted_fraction is None:
            return f" (Frobenius {self.frobenius_sq:.4g}, Wasserstein not computed)"
        return (
            f" (Wasserstein {self.wasserstein_sq:.4g}, Frobenius {self.frobenius_sq:.4g}), "
            f"{self.permuted_fraction:.0%} of the particles exchanged"
        )


class UnreadReport(StepReport):
    """A report whose distances are measured when one of them is read first.

    They need an optimal assignment, which may cost more than the step. Once it is measured it is a
    :class:`StepReport` like any other; until then it keeps the positions before and after the step.

    Args:
        known: The fields that are known.
        measure: Returns the others.
    """

    __qualname__ = "StepReport"

    def __init__(self, known: dict[str, Any], measure: Callable[[], dict[str, Any]]) -> None:
        self.__dict__.update(known, _measure=measure)

    def _read(self) -> None:
        measure = self.__dict__.pop("_measure")
        try:
            self.__dict__.update(measure())
        except BaseException:
            self.__dict__["_measure"] = measure
            raise
        object.__setattr__(self, "__class__", StepReport)

    def __eq__(self, other: object) -> bool:
        self._read()
        return self == other

    __hash__ = None  # type: ignore[assignment]  # as that of a report with tensors

    def __reduce_ex__(self, protocol: Any) -> Any:
        self._read()
        return self.__reduce_ex__(protocol)


class _Unread:
    """A field that is measured when it is read first, and then hidden by its value."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __get__(self, report: UnreadReport, owner: type[UnreadReport]) -> Any:
        report._read()
        return report.__dict__[self._name]


MEASURED = (
    *("objective", "distance_sq", "wasserstein_sq", "frobenius_sq", "permuted_fraction"),
    *("residual", "assignment", "transport", "gap"),
)
"""The fields of a step report that need an optimal assignment."""

for _name in MEASURED:
    setattr(UnreadReport, _name, _Unread(_name))


def unmoved(loss: float, status: Status, evaluations: int) -> StepReport:
    """Return the report of a step in which nothing could move."""
    return StepReport(
        status=status,
        evaluations=evaluations,
        loss_before=loss,
        loss_after=loss,
        objective=loss,
        distance_sq=0.0,
        wasserstein_sq=0.0,
        frobenius_sq=0.0,
        permuted_fraction=0.0,
        residual=0.0,
    )
