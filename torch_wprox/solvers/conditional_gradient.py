"""Conditional gradient in the space of measures, fully corrective: the step, solved globally.

An atom is a configuration: all particles' best responses to one loss gradient. Mixing atoms with
weights w gives every particle a law instead of a position; outputs and prices mix linearly, so

    min over w in the simplex   R(sum_j w_j z_j) + sum_j w_j c_j

is convex, and so is the limit over all atoms, whose value is a lower bound of P.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from torch_wprox.objective import BudgetExhausted
from torch_wprox.solvers.best_response import BestResponse
from torch_wprox.solvers.master import Array, simplex_qp
from torch_wprox.solvers.particle_problem import Configuration, ParticleProblem, Risk
from torch_wprox.solvers.risk_model import QuadraticRisk


@dataclass(frozen=True)
class Relaxed:
    """A solution of the relaxed step.

    Attributes:
        atoms: Configurations of positive weight.
        weights: Their weights (J,).
        output: z of the mixture, (n, k).
        value: Value of the relaxed problem at the mixture.
        lower_bound: Best dual bound met.
        multiplier: The loss gradient (n, k) that gave it.
        bound_output: Output (n, k) at which it is the loss gradient.
        pool: The last configurations met, of whatever weight: what rounding chooses from.
    """

    atoms: list[Configuration]
    weights: Tensor
    output: Tensor
    value: float
    lower_bound: float
    multiplier: Tensor
    bound_output: Tensor
    pool: list[Configuration]


class Mixture:
    """Atoms with weights, and what the master problem needs of them."""

    def __init__(self, problem: ParticleProblem, atoms: list[Configuration]) -> None:
        self._problem = problem
        self.atoms: list[Configuration] = []
        self.outputs = torch.empty(0)
        self.prices = torch.empty(0)
        self.weights: Array = np.empty(0)
        for atom in atoms:
            self.add(atom)

    def add(self, atom: Configuration) -> None:
        """Add an atom of weight 0 (1 if it is the first)."""
        z = self._problem.output(atom.points, atom.offset).unsqueeze(0)
        price = z.new_tensor([self._problem.price(atom)])
        self.outputs = torch.cat([self.outputs, z]) if self.atoms else z
        self.prices = torch.cat([self.prices, price]) if self.atoms else price
        self.weights = np.append(self.weights, 0.0 if self.atoms else 1.0)
        self.atoms.append(atom)

    def keep(self, kept: NDArray[np.bool_]) -> None:
        """Forget the atoms where ``kept`` is False."""
        index = torch.from_numpy(np.flatnonzero(kept)).to(self.outputs.device)
        self.outputs, self.prices = self.outputs[index], self.prices[index]
        self.atoms = [a for a, keep in zip(self.atoms, kept, strict=True) if keep]
        self.weights = self.weights[kept]

    def _weights(self) -> Tensor:
        return torch.from_numpy(self.weights).to(self.outputs)

    @property
    def output(self) -> Tensor:
        """Output z of the mixture, (n, k)."""
        return torch.einsum("j,jnk->nk", self._weights(), self.outputs)

    @property
    def price(self) -> float:
        """Price of the mixture."""
        return float(self._weights() @ self.prices)

    def corrected(self, model: QuadraticRisk) -> Array:
        """Return the weights that minimise the model's value plus the price."""
        size = len(self.atoms)
        # Relative to the model's centre, where the model is the most precise.
        moved = self.outputs - model.centre
        bent = model.hessian(moved).reshape(size, -1)
        moved = moved.reshape(size, -1)
        Q = (moved @ bent.T).cpu().numpy()
        c = (moved @ model.grad.reshape(-1) + self.prices).cpu().numpy()
        return simplex_qp(0.5 * (Q + Q.T), c, self.weights)


def conditional_gradient(
    problem: ParticleProblem,
    respond: BestResponse,
    risk: Risk,
    model: QuadraticRisk,
    relearn: Callable[[Tensor, float, Tensor], QuadraticRisk],
    atoms: list[Configuration],
    *,
    tolerance: float,
    max_iter: int,
    pool_size: int = 60,
) -> Relaxed:
    """Solve the relaxed step by fully corrective conditional gradient.

    With z, lam = grad R(z), price c and best responses b at hand,

        gap = <lam, z> + c - sum_i [<lam, psi_i(b_i)> + cost_i(b_i)] >= 0,

    and R(z) + c - gap is a lower bound of the relaxed value, hence of P.

    Args:
        problem: The particles.
        respond: Their best responses.
        risk: R and its gradient; its own model if the loss is a quadratic.
        model: Second-order model of R.
        relearn: (z, R(z), grad R(z)) -> a new model, for losses that are not quadratics.
        atoms: Where to start; the first has all the weight.
        tolerance: Gap at which to stop, relative to the value.
        max_iter: Iterations.
        pool_size: Configurations kept for rounding.

    Returns:
        The mixture with its bound.
    """
    mixture = Mixture(problem, atoms)
    z = mixture.output
    value, lam = risk(z)
    best = -float("inf")
    multiplier, bound_output = lam, z
    pool: list[Configuration] = []
    for _ in range(max_iter):
        response = respond(lam)
        bound = value - float((lam * z).sum()) + response.value
        if bound > best:
            best, multiplier, bound_output = bound, lam, z
        total = value + mixture.price
        if total - best <= tolerance * abs(total):
            break
        mixture.add(response.configuration)
        pool.append(response.configuration)
        if model.is_exact:
            mixture.weights = mixture.corrected(model)
            value, lam = risk(mixture.output)
        else:
            before = mixture.weights
            try:
                value, lam, model = _corrected(mixture, risk, model, relearn, value, lam)
            except BudgetExhausted:
                mixture.weights = before
                break
        mixture.keep(mixture.weights > 0)
        z = mixture.output
    total = value + mixture.price
    return Relaxed(
        mixture.atoms,
        torch.from_numpy(mixture.weights).to(z),
        z,
        total,
        best,
        multiplier,
        bound_output,
        pool[-pool_size:],
    )


def _corrected(
    mixture: Mixture,
    risk: Risk,
    model: QuadraticRisk,
    relearn: Callable[[Tensor, float, Tensor], QuadraticRisk],
    value: float,
    lam: Tensor,
) -> tuple[float, Tensor, QuadraticRisk]:
    """Reweigh by one Newton step with backtracking on the loss itself; return R, lam, model."""
    before, z = mixture.weights, mixture.output
    total = value + mixture.price
    after = mixture.corrected(model)
    change = torch.from_numpy(after - before).to(z)
    step = torch.einsum("j,jnk->nk", change, mixture.outputs)
    slope = float((lam * step).sum()) + float(mixture.prices @ change)
    promised = slope + 0.5 * float((step * model.hessian(step)).sum())
    share = 1.0
    while True:
        mixture.weights = before + share * (after - before)
        z = mixture.output
        value, lam = risk(z)
        gained = value + mixture.price - total
        if gained <= 1e-4 * share * slope or share < 1e-6:
            break
        share *= 0.5
    if share < 1.0 or gained > 0.7 * promised:
        return value, lam, relearn(z, value, lam)
    return value, lam, QuadraticRisk(z, value, lam, model.blocks, False)
