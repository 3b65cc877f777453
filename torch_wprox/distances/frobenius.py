"""Mean squared distance particle by particle."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from torch_wprox.closure.ranks import Agree, alone
from torch_wprox.distances.base import AnchoredDistance, Distance, DistanceValue, mean_squared


class _AnchoredFrobenius(AnchoredDistance):
    """d(V, W) = (1/m) sum_i |V_i - W_i|^2."""

    is_quadratic = True

    def __init__(self, W: Tensor) -> None:
        self._W = W

    def evaluate(self, V: Tensor) -> DistanceValue:
        return mean_squared(V, self._W)

    def target(self, V: Tensor, *, settled: bool) -> Tensor:
        return self._W


@dataclass(frozen=True)
class Frobenius(Distance):
    """Mean squared distance particle by particle: d(V, W) = (1/m) sum_i |V_i - W_i|^2.

    Example:
        >>> import torch
        >>> W = torch.tensor([[0.0], [1.0]])
        >>> Frobenius().anchored(W, None).evaluate(W.flip(0)).value  # both particles moved by 1
        tensor(1.)

    Source: the note (Mercklé 2024), equation (15).
    """

    name = "frobenius"

    def anchored(self, W: Tensor, classes: Tensor | None, agree: Agree = alone) -> AnchoredDistance:
        """Return d(., W); ``classes`` do not matter, nothing is exchanged."""
        return _AnchoredFrobenius(W)
