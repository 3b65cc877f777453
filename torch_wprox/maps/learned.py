"""An energy that was learned from a flow."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from torch_wprox.distances.frobenius import Frobenius
from torch_wprox.maps.energies import CloudEnergy, Energy, Entropy, Interaction, Potential
from torch_wprox.maps.features import Features
from torch_wprox.objective import Block, Objective
from torch_wprox.solvers import LBFGS, Stopping

_MOST_EVALUATIONS = 500


@dataclass(frozen=True)
class Term:
    """V or U: features with coefficients, or a network.

    Attributes:
        name: "potential" or "interaction".
        features: The features, (m, D) to (m, K), or a network, (m, D) to (m, 1).
        coefficients: (K,); None for a network.
    """

    name: str
    features: Features | nn.Module | None
    coefficients: Tensor | None = None

    def __call__(self, x: Tensor) -> Tensor:
        """Return the values at x (m, D), (m,)."""
        assert self.features is not None
        if self.coefficients is None:
            found: Tensor = self.features(x).squeeze(-1)
            return found
        return self.features(x) @ self.coefficients.to(x)


@dataclass(frozen=True)
class LearnedEnergy:
    """Potential, interaction and temperature that :func:`~torch_wprox.learn_energy` found.

    Attributes:
        potential: V, points (m, D) to (m,); None: not sought.
        interaction: U, differences (m, D) to (m,); None: not sought.
        temperature: T of the entropy T int rho log rho; 0 without one.
        residual: Root mean square of the first-order condition over that of the velocity; with
            entropy of its projection on the features.
        partners: Others that a point of a large cloud meets.
        scheme: Whether the clouds were taken for implicit or for explicit steps.

    Example:
        >>> from torch_wprox import learn_energy
        >>> from torch_wprox.maps import polynomials
        >>> y = torch.randn(200, 2, dtype=torch.float64)
        >>> found = learn_energy([1.1 * y, y], 0.1, potential=polynomials(2, 2))  # V = |y|^2/2
        >>> found.temperature, found.residual < 1e-6
        (0.0, True)
    """

    potential: Term | None
    interaction: Term | None
    temperature: float
    residual: float
    partners: int = 64
    scheme: Literal["implicit", "explicit"] = "implicit"

    def potential_gradient(self, x: Tensor) -> Tensor:
        """Return grad V at x (m, D), (m, D).

        Raises:
            ValueError: No potential was sought.
        """
        if self.potential is None:
            raise ValueError("no potential was sought: give learn_energy potential=")
        return _gradient(self.potential, x)

    def interaction_gradient(self, z: Tensor) -> Tensor:
        """Return grad U at differences z (m, D), (m, D).

        Raises:
            ValueError: No interaction was sought.
        """
        if self.interaction is None:
            raise ValueError("no interaction was sought: give learn_energy interaction=")
        return _gradient(self.interaction, z)

    def energies(self) -> list[Energy]:
        """Return the energy as :class:`~torch_wprox.MapFlow` takes it."""
        found: list[Energy] = list(self._of_clouds())
        return [*found, Entropy(self.temperature)] if self.temperature > 0 else found

    def predict(
        self, cloud: Tensor, gamma: float, generator: torch.Generator | None = None
    ) -> Tensor:
        """Return the cloud (m, D) one step of length ``gamma`` later.

        The step is one of ``scheme``, every point by itself (no map); with a temperature T the
        points are then moved by normal numbers of variance 2 T gamma, from ``generator``.
        """
        m, D = cloud.shape

        def loss_and_grad(v: Tensor) -> tuple[Tensor, Tensor]:
            with torch.enable_grad():
                y = v.detach().view(m, D).requires_grad_()
                loss = torch.stack([energy(y) for energy in self._of_clouds()]).sum()
                (grad,) = torch.autograd.grad(loss, y)
            return loss.detach(), grad.reshape(-1)

        anchor = cloud.detach().reshape(-1)
        if self.scheme == "explicit":  # points have mass 1/m
            slope = loss_and_grad(anchor)[1]
            return self._stirred((anchor - gamma * m * slope).view(m, D), gamma, generator)
        distance = Frobenius().anchored(anchor.view(m, D), None)
        block = Block(0, m, D, float(gamma), 0.0, distance, is_cloud=True)
        objective = Objective(
            (block,), loss_and_grad, anchor, *loss_and_grad(anchor), _MOST_EVALUATIONS
        )
        LBFGS().minimize(objective, Stopping(1e-6))
        return self._stirred(objective.best.point.view(m, D).clone(), gamma, generator)

    def _stirred(self, y: Tensor, gamma: float, generator: torch.Generator | None) -> Tensor:
        """Return y moved by the noise of the temperature."""
        if self.temperature > 0:
            noise = torch.randn(y.shape, generator=generator, dtype=y.dtype).to(y.device)
            y = y + math.sqrt(2 * self.temperature * gamma) * noise
        return y

    def _of_clouds(self) -> list[CloudEnergy]:
        found: list[CloudEnergy] = []
        if self.potential is not None:
            found.append(Potential(self.potential))
        if self.interaction is not None:
            found.append(Interaction(self.interaction, self.partners))
        return found


def _gradient(term: Term, x: Tensor) -> Tensor:
    with torch.enable_grad():
        at = x.detach().requires_grad_()
        (found,) = torch.autograd.grad(term(at).sum(), at)
    return found
