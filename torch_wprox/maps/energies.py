"""Energies of measures that are given by samples: what a flow of maps descends."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import final

import torch
from torch import Tensor

from torch_wprox.maps.log_det import LogDet

# Up to so many points an interaction is summed over all pairs.
_ALL_PAIRS_UP_TO = 1000


class CloudEnergy(ABC):
    """A function of a cloud of points of mass 1/m, differentiable by autograd."""

    @abstractmethod
    def __call__(self, points: Tensor) -> Tensor:
        """Return the energy of points (m, D), 0-d."""


@final
@dataclass(frozen=True)
class Potential(CloudEnergy):
    """E(rho) = int V d rho.

    Args:
        function: V, points (m, D) to values (m,).

    Example:
        >>> Potential(lambda x: x.square().sum(1) / 2)(torch.ones(3, 2))
        tensor(1.)
    """

    function: Callable[[Tensor], Tensor]

    def __call__(self, points: Tensor) -> Tensor:
        """Return the mean of V over points (m, D)."""
        return self.function(points).mean()


@final
@dataclass(frozen=True)
class Interaction(CloudEnergy):
    """E(rho) = (1/2) int U(x - y) d rho(x) d rho(y), U even.

    Up to 1000 points all pairs are summed; above, every point meets ``partners`` others, the same
    ones at every evaluation. A point never meets itself.

    Args:
        function: U, differences (k, D) to values (k,).
        partners: Others that each point of a large cloud meets.
        seed: Of the choice.

    Raises:
        ValueError: partners < 1.

    Example:
        >>> points = torch.tensor([[0.0], [2.0]])
        >>> Interaction(lambda z: z.square().sum(1))(points)  # half of |0 - 2|^2
        tensor(2.)
    """

    function: Callable[[Tensor], Tensor]
    partners: int = 64
    seed: int = 0

    def __post_init__(self) -> None:
        if self.partners < 1:
            raise ValueError(f"partners must be >= 1, got {self.partners!r}")

    def __call__(self, points: Tensor) -> Tensor:
        """Return half the mean of U over the pairs of points (m, D)."""
        m = len(points)
        if m < 2:
            return points.sum() * 0.0
        if m <= _ALL_PAIRS_UP_TO:
            i, j = torch.triu_indices(m, m, 1, device=points.device)
            return 0.5 * self.function(points[i] - points[j]).mean()
        random = torch.Generator().manual_seed(self.seed)
        shifts = (torch.randperm(m - 1, generator=random)[: self.partners] + 1).tolist()
        values = [self.function(points - points.roll(shift, 0)).mean() for shift in shifts]
        return 0.5 * torch.stack(values).mean()


@final
@dataclass(frozen=True)
class CloudFunction(CloudEnergy):
    """Any function of the cloud, such as the loss of the network whose neurons are the points.

    Args:
        function: Points (m, D) to a 0-d tensor.

    Example:
        >>> CloudFunction(lambda points: points.var())(torch.tensor([[0.0], [2.0]]))
        tensor(2.)
    """

    function: Callable[[Tensor], Tensor]

    def __call__(self, points: Tensor) -> Tensor:
        """Return the function at points (m, D)."""
        return self.function(points)


@final
@dataclass(frozen=True)
class Entropy:
    r"""E(rho) = T int rho log rho: the flow of a potential V with it is the Fokker-Planck equation.

    .. math:: \partial_t \rho = \nabla\cdot(\rho \nabla V) + T \Delta \rho

    A map changes it by :math:`-T\, E[\log\det D T]`; the entropy of the first measure is a constant
    that is left out.

    Args:
        temperature: T > 0; the noise of the particles is sqrt(2 T) dB.
        log_det: How the log determinant is computed.

    Raises:
        ValueError: temperature <= 0.

    Example:
        >>> from torch_wprox import MapFlow
        >>> well = Potential(lambda x: x.square().sum(1) / 2)
        >>> flow = MapFlow(torch.randn(100, 2), [well, Entropy(0.5)], gamma=0.1)
        >>> flow.step().objective < 1e3
        True
    """

    temperature: float = 1.0
    log_det: LogDet = field(default_factory=LogDet)

    def __post_init__(self) -> None:
        if not self.temperature > 0:
            raise ValueError(f"temperature must be > 0, got {self.temperature!r}")


Energy = CloudEnergy | Entropy
