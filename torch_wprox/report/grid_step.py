"""The report of a step on a grid."""

from __future__ import annotations

from dataclasses import dataclass

from torch_wprox.report.status import Status
from torch_wprox.report.wording import counted


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
