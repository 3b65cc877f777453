"""What a grid step tells about itself."""

from __future__ import annotations

from dataclasses import dataclass

from torch_wprox.report import Status


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
