"""Every result and its numbers: reports of steps, of grid steps, and certificates."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, fields
from enum import StrEnum
from typing import Any

from torch import Tensor


class Status(StrEnum):
    """Why the inner solver of a step ended.

    Example:
        >>> Status.CONVERGED == "converged"
        True
    """

    CONVERGED = "converged"
    """The residual fell below ``tolerance_grad`` times its first value."""
    INEXACT = "inexact"
    """The relative inexact-prox rule ``|residual| <= rho |V - W| / (m gamma)`` holds."""
    CERTIFIED = "certified"
    """The gap to the lower bound fell below ``tolerance_gap``."""
    STALLED = "stalled"
    """No lower value can be found at this floating-point precision."""
    MAX_EVAL = "max_eval"
    """All closure evaluations allowed for the step are used."""
    MAX_ITER = "max_iter"
    """All iterations allowed for the step are used."""
    STOPPED = "stopped"
    """The callback or the time budget ``seconds`` ended the step: its best point was kept."""
    NO_MOVE = "no_move"
    """Nothing may move: ``gamma`` is 0 or ``max_eval`` is 1."""
    NONFINITE = "nonfinite"
    """Loss or gradient at the anchor is NaN or infinite: the parameters stayed where they were."""


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
            share = _share(self.gap, self.lower_bound)
            line = f"{kind} lower bound {self.lower_bound:.6g}, gap {share}"
            if self.estimate is not None:
                gap = self.objective - self.estimate
                line += f"; estimated {self.estimate:.6g}, gap {_share(gap, self.estimate)}"
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


@dataclass(frozen=True)
class JKOReport:
    """One JKO step, in numbers.

    Attributes:
        status: Why the method ended.
        evaluations: Closure evaluations used, the first and the last one included.
        loss_before: f(q) at the anchor.
        loss_after: f(p) at the accepted measure.
        objective: W_eps(p, q) + tau f(p); for a debiased step the Sinkhorn divergence
            W_eps(p, q) - W_eps(p, p)/2 - W_eps(q, q)/2 takes the place of W_eps (from above).
        wasserstein_eps: W_eps(p, q) = <c, pi> + eps sum pi (log pi - 1), c = |x - y|^2.
        mass: Mass of every block of p.
        iterations: Iterations of the method (all rounds of a debiased step together).
        rounds: Rounds of a debiased step; 1 for the plain step.
        kernel_applications: Fields to which the Gibbs kernel was applied.
        residual: 2-norm of what the method brings to 0.
        mean_displacement: sum_j q_j |E[x | y_j] - y_j|: how far the plan moves a unit of mass.
        epsilon: Entropic regularisation of the step.
        tau: 2 gamma.

    Example:
        >>> import torch, torch_wprox
        >>> layer = torch_wprox.GridLayer([torch.linspace(-1.0, 1.0, 3)] * 2, dtype=torch.float64)
        >>> opt = torch_wprox.EntropicJKO(layer, gamma=1.0, epsilon=2.0)
        >>> def closure():
        ...     opt.zero_grad()
        ...     loss = (layer(torch.ones(1, 1, dtype=torch.float64)) - 1).square().mean()
        ...     loss.backward()
        ...     return loss
        >>> loss = opt.step(closure)
        >>> opt.report.loss_after < opt.report.loss_before
        True
    """

    status: Status
    evaluations: int
    loss_before: float
    loss_after: float
    objective: float
    wasserstein_eps: float
    mass: tuple[float, ...]
    iterations: int
    rounds: int
    kernel_applications: int
    residual: float
    mean_displacement: float
    epsilon: float
    tau: float

    def __str__(self) -> str:
        """Return the numbers that a reader looks for, in two short lines."""
        return (
            f"{self.status} after {counted(self.iterations, 'iteration')} and "
            f"{counted(self.evaluations, 'evaluation')}: "
            f"loss {self.loss_before:.6g} -> {self.loss_after:.6g}\n"
            f"objective {self.objective:.6g}, residual {self.residual:.3g}, mean displacement "
            f"{self.mean_displacement:.4g}"
        )


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


Report = StepReport | JKOReport


def numbers_of(report: Report) -> dict[str, Any]:
    """Return the scalars of a report, and its transport counts, as a flat dict.

    Example:
        >>> from torch_wprox.report import Status, numbers_of, unmoved
        >>> numbers = numbers_of(unmoved(1.0, Status.NO_MOVE, 1))
        >>> numbers["status"], numbers["loss_after"], numbers["transport_solved"]
        ('no_move', 1.0, 0)
    """
    values = {f.name: getattr(report, f.name) for f in fields(report)}
    numbers = {n: v for n, v in values.items() if v is None or isinstance(v, bool | int | float)}
    numbers.pop("assignment", None)
    counts = asdict(report.transport) if isinstance(report, StepReport) else {}
    return {
        "status": str(report.status),
        **numbers,
        **{f"transport_{name}": count for name, count in counts.items()},
    }


def _share(gap: float, bound: float) -> str:
    return f"{gap / max(abs(bound), 1e-300):.3%}"


def counted(number: int, noun: str) -> str:
    """Return the number with its noun, as in "1 evaluation" and "2 evaluations"."""
    return f"{number} {noun}" + "s" * (number != 1)
