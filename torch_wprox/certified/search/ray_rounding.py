"""From particles that are spread over rays to one position each.

At the solution of the relaxed step all positions of a particle are equally good answers to the loss
gradient: to first order P does not see which one is taken, and what it loses is the curvature of
the loss along the error of the output. So particles are settled one by one, in a random order, each
at the position that keeps the error of those settled before it the smallest; then single changes
repair what is left.
"""

from __future__ import annotations

import torch
from torch import Tensor

from torch_wprox.certified.bound.spread import Spread
from torch_wprox.certified.problem.particle_problem import Configuration, ParticleProblem
from torch_wprox.certified.problem.quadratic_model import QuadraticRisk

_CHANGES = 200


class RayRounding:
    """Roundings of one solution of the relaxed step.

    Args:
        problem: The particles; output weights frozen.
        spread: Where they are spread.
        model: Second-order model of the loss.
    """

    def __init__(self, problem: ParticleProblem, spread: Spread, model: QuadraticRisk) -> None:
        assert problem.coefficients is not None
        self._problem, self._spread = problem, spread
        lam = model(spread.output)[1]
        hidden = (spread.points @ problem.features.T).clamp_min(0.0)
        outputs = hidden.unsqueeze(2) * problem.coefficients[spread.particle].unsqueeze(1)
        moved = spread.points - problem.anchors[spread.particle]
        self._costs = (outputs * lam).sum((1, 2)) + 0.5 * problem.stiffness * moved.square().sum(1)
        self._roots = model.root(outputs).flatten(1)  # (J, n k)
        mean = self._roots.new_zeros(problem.width, self._roots.shape[1])
        weighted = spread.shares.unsqueeze(1) * self._roots
        self._mean = mean.index_add_(0, spread.particle, weighted)

    def sample(self, generator: torch.Generator) -> Configuration:
        """Return one rounding; the order of the particles is drawn from the generator (CPU)."""
        m, owner = self._problem.width, self._spread.particle
        rows = [(owner == i).nonzero()[:, 0] for i in range(m)]
        choice = torch.zeros(m, dtype=torch.long, device=owner.device)
        error = torch.zeros_like(self._mean[0])
        for i in torch.randperm(m, generator=generator).tolist():
            steps = self._roots[rows[i]] - self._mean[i]
            promised = self._costs[rows[i]] + 0.5 * (error + steps).square().sum(1)
            best = int(promised.argmin())
            choice[i], error = rows[i][best], error + steps[best]
        choice = self._repaired(choice, error)
        return Configuration(
            self._spread.points[choice], self._spread.offset, self._problem.start().sigma
        )

    def _repaired(self, choice: Tensor, error: Tensor) -> Tensor:
        """Make the best single change until none helps."""
        owner = self._spread.particle
        for _ in range(_CHANGES):
            own = choice[owner]
            steps = self._roots - self._roots[own]
            change = self._costs - self._costs[own] + steps @ error + 0.5 * steps.square().sum(1)
            best = int(change.argmin())
            if not change[best] < -1e-12 * float(error.square().sum()):
                break
            error = error + steps[best]
            choice[owner[best]] = best
        return choice
