"""The squared 2-Wasserstein distance of a cloud to its anchor, by exact assignment."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from torch_wprox.closure.ranks import Agree, alone
from torch_wprox.distances.base import AnchoredDistance, Distance, DistanceValue, mean_squared
from torch_wprox.distances.emd.assignment import Assignment
from torch_wprox.report import TransportCounts


class _AnchoredEMD(AnchoredDistance):
    """W2^2(V, W) = min_sigma (1/m) sum_i |V_i - W_sigma(i)|^2 inside the classes.

    Only sigma is needed: by the envelope theorem (Danskin) the gradient is (2/m)(V - W_sigma)
    wherever the optimal sigma is unique, and an element of the Clarke subdifferential elsewhere.
    """

    is_quadratic = True

    def __init__(self, W: Tensor, classes: Tensor | None, agree: Agree) -> None:
        self._W = W
        self._agree = agree
        self._transport = Assignment(W, classes)
        self._sigma = self._transport.sigma
        self._target = W

    @property
    def assignment(self) -> Tensor:
        return self._sigma

    @property
    def is_proved(self) -> bool:
        return self._transport.is_proved

    @property
    def counts(self) -> TransportCounts:
        return self._transport.counts

    def evaluate(self, V: Tensor) -> DistanceValue:
        return mean_squared(V, self.target(V, settled=False))

    def settle(self, V: Tensor) -> DistanceValue:
        return mean_squared(V, self.target(V, settled=True))

    def monotone(self, V: Tensor) -> DistanceValue:
        # For V = grad psi(W) the prices p_j = psi(W_j) prove the identity optimal: s_ij >= 0 says
        # that psi is convex.
        return mean_squared(V, self._W)

    def target(self, V: Tensor, *, settled: bool) -> Tensor:
        """Return W_sigma; the gather is skipped while the assignment stays."""
        sigma = self._transport.settle(V) if settled else self._transport.trial(V)
        sigma = self._agree(sigma)
        if sigma is not self._sigma:
            self._sigma = sigma
            self._target = self._W[sigma.to(self._W.device)]
        return self._target


@dataclass(frozen=True)
class EMD(Distance):
    """Squared 2-Wasserstein distance by exact assignment.

    d(V, W) = min_sigma (1/m) sum_i |V_i - W_sigma(i)|^2 over the permutations inside the classes.

    Example:
        >>> import torch
        >>> W = torch.tensor([[0.0], [1.0]])
        >>> EMD().anchored(W, None).evaluate(W.flip(0)).value  # the same cloud: nothing moved
        tensor(0.)

    Source: the note (Mercklé 2024), equation (22).
    """

    name = "emd"

    def anchored(self, W: Tensor, classes: Tensor | None, agree: Agree = alone) -> AnchoredDistance:
        """Return W2^2(., W), exchanging only particles of equal label."""
        return _AnchoredEMD(W, classes, agree)
