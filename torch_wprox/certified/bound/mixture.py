"""Mixtures of configurations and the best weights of their atoms."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from torch_wprox.certified.bound.simplex_qp import Array, simplex_qp
from torch_wprox.certified.problem.particle_problem import Configuration, ParticleProblem
from torch_wprox.certified.problem.quadratic_model import QuadraticRisk


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
