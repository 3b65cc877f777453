"""What a step tells about itself."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from torch import Tensor


class Status(StrEnum):
    """Why the inner solver of a step ended."""

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
    NO_MOVE = "no_move"
    """Nothing may move: ``gamma`` is 0 or ``max_eval`` is 1."""
    NONFINITE = "nonfinite"
    """Loss or gradient at the anchor is NaN or infinite: the parameters stayed where they were."""


@dataclass(frozen=True)
class TransportCounts:
    """How often the assignment of a step was certified, repaired or solved afresh.

    Attributes:
        certified: Evaluations at which the assignment in force was proved optimal without a solve.
        repaired: Assignment problems solved warm, from the prices in force.
        solved: Problems of small classes solved directly, where that is quicker than a proof.
    """

    certified: int = 0
    repaired: int = 0
    solved: int = 0

    def __add__(self, other: TransportCounts) -> TransportCounts:
        return TransportCounts(
            self.certified + other.certified,
            self.repaired + other.repaired,
            self.solved + other.solved,
        )


@dataclass(frozen=True)
class Bound:
    """A number below the global minimum of P.

    Attributes:
        lower_bound: The bound.
        certified: True if it is proved (exact best responses), False if it is an estimate.
    """

    lower_bound: float
    certified: bool


@dataclass(frozen=True)
class StepReport:
    """One proximal step, in numbers.

    Sums run over all clouds and plain tensors of the optimizer; ``d`` is the distance of the step.

    Attributes:
        status: Why the inner solver ended.
        evaluations: Closure evaluations used, the first and the last one included.
        loss_before: F(W) at the anchor, weight decay included.
        loss_after: F(V) at the accepted point, weight decay included.
        objective: P(V) = F(V) + sum of d/(2 gamma) at the accepted point.
        distance_sq: d(V, W), the squared distance that the step paid.
        wasserstein_sq: Squared 2-Wasserstein distance between V and W inside the classes, or None
            where it was too dear to compute (more than 2000 particles, not certified).
        frobenius_sq: Squared Frobenius distance (mean over the particles of a cloud).
        permuted_fraction: Exchanged particles over all particles, None as ``wasserstein_sq``.
        residual: 2-norm of the gradient of P at the accepted point.
        assignment: sigma, (m,) for one cloud, a tuple for several, None without clouds.
        transport: How the assignments of the step were found.
        lower_bound: A bound below the global minimum of P; None unless solved globally.
        gap: ``objective - lower_bound``; None unless solved globally.
        certified: True only if ``lower_bound`` is proved (exact best responses).
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
    assignment: Tensor | tuple[Tensor, ...] | None = None
    transport: TransportCounts = field(default_factory=TransportCounts)
    lower_bound: float | None = None
    gap: float | None = None
    certified: bool = False
