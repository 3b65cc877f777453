"""From a mixture to m particles: LP vertices, enumeration, swaps.

A mixture gives particle i its j-th atom's position with weight w_ij. With the output z fixed the
weights form a polytope, and at a vertex of it at most n k particles are fractional: all others have
one position. Those few are enumerated, and single and pair exchanges repair what is left.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import linprog
from torch import Tensor

from torch_wprox.certified.bound.mixture import Relaxed
from torch_wprox.certified.problem.particle_problem import Configuration, ParticleProblem
from torch_wprox.certified.problem.quadratic_model import QuadraticRisk

_ENUMERATED = 4096
_PAIRS = 4_000_000
_FRACTIONAL = 1e-9
TILT = 1e-2


@dataclass(frozen=True)
class Table:
    """All positions that the particles may take.

    Attributes:
        atoms: The configurations, J.
        outputs: psi_i of particle i at atom j, (J, m, n k).
        prices: (J, m).
        offset: Output bias of the mixture, (k,); its price is convex, so it is not rounded.
        model: Second-order model of the loss at the mixture.
        shape: (n, k).
    """

    atoms: list[Configuration]
    outputs: Tensor
    prices: Tensor
    offset: Tensor
    model: QuadraticRisk
    shape: tuple[int, int]

    @classmethod
    def of(
        cls,
        problem: ParticleProblem,
        atoms: list[Configuration],
        offset: Tensor,
        model: QuadraticRisk,
    ) -> Table:
        """Tabulate the atoms."""
        outputs = torch.stack([problem.responses(a.points) for a in atoms])
        prices = torch.stack([problem.prices(a.points, a.sigma) for a in atoms])
        shape = (len(problem.features), problem.outputs)
        return cls(atoms, outputs, prices, offset, model, shape)

    def output(self, choice: Tensor) -> Tensor:
        """Return the summed psi (n k,) of a choice (m,) of atoms."""
        return self.outputs[choice, torch.arange(len(choice), device=choice.device)].sum(0)

    def price(self, choice: Tensor) -> Tensor:
        """Return the price of a choice (m,)."""
        return self.prices[choice, torch.arange(len(choice), device=choice.device)].sum()

    def values(self, flat: Tensor) -> Tensor:
        """Return the model's loss at summed outputs (.., n k)."""
        return self.model.values(flat.reshape(*flat.shape[:-1], *self.shape) + self.offset)

    def configuration(self, choice: Tensor) -> Configuration:
        """Return the chosen positions."""
        rows = torch.arange(len(choice), device=choice.device)
        points = torch.stack([a.points for a in self.atoms])[choice, rows]
        sigma = torch.stack([a.sigma for a in self.atoms])[choice, rows]
        return Configuration(points, self.offset, sigma)


def stratified_rounding(
    problem: ParticleProblem, weights: Tensor, generator: torch.Generator
) -> Tensor:
    """Deal the atoms out at random, each to its share of the particles of every coefficient.

    Systematic sampling: the number of particles of an atom is within 1 of its weight's share, where
    independent draws scatter by the square root of it. Particles of equal anchors need no more.

    Args:
        problem: The particles.
        weights: Of the atoms, (J,).
        generator: On the CPU.

    Returns:
        The atom of each particle, (m,).
    """
    choice = torch.zeros(problem.width, dtype=torch.long)
    ends = (weights.cumsum(0) / weights.sum()).cpu()
    group = torch.zeros(problem.width, dtype=torch.long)
    if problem.coefficients is not None:
        group = torch.unique(problem.coefficients, dim=0, return_inverse=True)[1].cpu()
    for q in torch.unique(group):
        members = (group == q).nonzero()[:, 0]
        shift = torch.rand(1, generator=generator, dtype=torch.float64)
        marks = (torch.arange(len(members), dtype=torch.float64) + shift) / len(members)
        order = torch.randperm(len(members), generator=generator)
        atoms = torch.searchsorted(ends, marks).clamp_max(len(weights) - 1)
        choice[members[order]] = atoms
    return choice.to(weights.device)


def vertex_weights(table: Table, target: Tensor, tilt: Tensor) -> Tensor | None:
    """Return the cheapest weights (J, m), but for a tilt, whose output is the target: a vertex.

    None where the linear program has no solution that its solver finds.

    Args:
        table: The positions.
        target: Summed psi of the mixture (n k,).
        tilt: Added to the prices (J, m); at random, for a random vertex.
    """
    J, m, _ = table.outputs.shape
    A = table.outputs.permute(2, 0, 1).reshape(-1, J * m)
    scale = A.abs().amax(1).clamp_min(1e-300)
    one_each = torch.eye(m, dtype=A.dtype, device=A.device).repeat(1, J)
    equal = torch.cat([A / scale.unsqueeze(1), one_each]).cpu().numpy()
    right = torch.cat([target / scale, one_each.new_ones(m)]).cpu().numpy()
    objective = (table.prices + tilt).reshape(-1)
    costs = (objective / objective.abs().max().clamp_min(1e-300)).cpu().numpy()
    if not (np.isfinite(costs).all() and np.isfinite(equal).all() and np.isfinite(right).all()):
        return None
    solved = linprog(costs, A_eq=equal, b_eq=right, bounds=(0.0, None), method="highs-ds")
    if solved.x is None:  # rounding made the target unattainable, or the simplex method gave up
        return None
    return torch.from_numpy(np.ascontiguousarray(solved.x)).to(target).reshape(J, m)


def integer_completion(table: Table, share: Tensor) -> Tensor:
    """Return the best choice (m,) that agrees with the weights (J, m) where these are integral.

    Fractional particles are enumerated, in blocks of at most 4096 combinations, the others of the
    block held at their largest weight.
    """
    choice = share.argmax(0)
    fractional = (share.max(0).values < 1.0 - _FRACTIONAL).nonzero()[:, 0].tolist()
    while fractional:
        options: list[tuple[int, Tensor]] = []
        combinations = 1
        while fractional:
            some = (share[:, fractional[-1]] > _FRACTIONAL).nonzero()[:, 0]
            if options and combinations * len(some) > _ENUMERATED:
                break
            combinations *= len(some)
            options.append((fractional.pop(), some))
        base, price = table.output(choice), table.price(choice)
        outputs, prices = base.unsqueeze(0), price.unsqueeze(0)
        for i, some in options:
            step = table.outputs[some, i] - table.outputs[choice[i], i]
            outputs = (outputs.unsqueeze(1) + step).flatten(0, 1)
            extra = table.prices[some, i] - table.prices[choice[i], i]
            prices = (prices.unsqueeze(1) + extra).flatten()
        winner = int((table.values(outputs) + prices).argmin())
        for i, some in reversed(options):
            choice[i] = some[winner % len(some)]
            winner //= len(some)
    return choice


def interchange_search(
    table: Table, choice: Tensor, *, max_moves: int = 200
) -> tuple[Tensor, float]:
    """Improve a choice (m,) by the best single or pair of changes until none helps.

    Returns:
        The choice and its value by the model (without the price of the output bias).
    """
    choice = choice.clone()
    J, m, size = table.outputs.shape
    particles = torch.arange(m, device=choice.device).repeat(J)
    atoms = torch.arange(J, device=choice.device).repeat_interleave(m)
    pairs = (J * m) ** 2 * size <= _PAIRS
    current = math.inf
    for _ in range(max_moves):
        rows = torch.arange(m, device=choice.device)
        base = table.output(choice)
        price = table.price(choice)
        current = float(table.values(base) + price)
        step = (table.outputs - table.outputs[choice, rows]).reshape(J * m, size)
        extra = (table.prices - table.prices[choice, rows]).reshape(J * m)
        single = table.values(base + step) + price + extra
        best = int(single.argmin())
        if single[best] < current - 1e-13 * abs(current):
            choice[particles[best]] = atoms[best]
            continue
        if not pairs:
            break
        # A quadratic splits: value(a + b) = value(a) + value(b) - value(0) + <a, H b>.
        bent = table.model.hessian(step.reshape(-1, *table.shape)).flatten(-2)
        double = single.unsqueeze(1) + single - current + step @ bent.T
        double[particles.unsqueeze(1) == particles] = torch.inf
        best = int(double.argmin())
        if not double.view(-1)[best] < current - 1e-13 * abs(current):
            break
        for one in (best // (J * m), best % (J * m)):
            choice[particles[one]] = atoms[one]
    return choice, current


def rounded(
    problem: ParticleProblem,
    relaxed: Relaxed,
    model: QuadraticRisk,
    generator: torch.Generator,
    *,
    starts: int,
) -> list[Configuration]:
    """Return configurations of m particles near a mixture, the lowest first.

    Args:
        problem: The particles.
        relaxed: The mixture.
        model: Second-order model of the loss there.
        generator: Of the random vertices (CPU).
        starts: Vertices tried at most.
    """
    offset = torch.stack([a.offset for a in relaxed.atoms]).mT @ relaxed.weights
    table = Table.of(problem, relaxed.atoms + relaxed.pool, offset, model)
    J, m, _ = table.outputs.shape
    target = (relaxed.output - offset).reshape(-1)
    spread = float(table.prices.std(correction=0))
    mixed = torch.cat([relaxed.weights, relaxed.weights.new_zeros(J - len(relaxed.weights))])
    found: dict[tuple[int, ...], float] = {}
    for s in range(starts):
        tilt = torch.rand(J, m, generator=generator, dtype=torch.float64).to(offset)
        weights = vertex_weights(table, target, (TILT * spread if s else 0.0) * tilt)
        if weights is None:  # the mixture itself: every particle is fractional
            weights = mixed.unsqueeze(1).expand(J, m)
        choice, value = interchange_search(table, integer_completion(table, weights))
        found[tuple(choice.tolist())] = value
    ordered = sorted(found, key=lambda key: found[key])
    return [table.configuration(torch.tensor(key, device=offset.device)) for key in ordered]
