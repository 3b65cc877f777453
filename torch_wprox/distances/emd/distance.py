"""The squared 2-Wasserstein distance of a cloud to its anchor, by exact assignment."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from torch_wprox.closure.ranks import Agree, alone
from torch_wprox.distances.base import AnchoredDistance, DistanceValue, Stateless, mean_squared
from torch_wprox.distances.emd import assignment
from torch_wprox.report import TransportCounts


class _AnchoredEMD:
    """W2^2(V, W) = min_sigma (1/m) sum_i |V_i - W_sigma(i)|^2 inside the classes.

    Only sigma is needed: by the envelope theorem (Danskin) the gradient is (2/m)(V - W_sigma)
    wherever the optimal sigma is unique, and an element of the Clarke subdifferential elsewhere.
    """

    is_quadratic = True

    def __init__(self, W: Tensor, classes: Tensor | None, agree: Agree) -> None:
        self._W = W
        self._agree = agree
        self._state = assignment.start(W, classes)
        self._sigma = self._state.sigma
        self._target = W

    @property
    def assignment(self) -> Tensor:
        return self._sigma

    @property
    def is_certified(self) -> bool:
        return self._state.certified

    @property
    def counts(self) -> TransportCounts:
        return self._state.counts

    def evaluate(self, V: Tensor) -> DistanceValue:
        return self._assigned(V, force=False)

    def settle(self, V: Tensor) -> DistanceValue:
        return self._assigned(V, force=True)

    def _assigned(self, V: Tensor, *, force: bool) -> DistanceValue:
        sigma, self._state = assignment.assign(V, self._state, force=force)
        self._hold(sigma)
        return mean_squared(V, self._target)

    def _hold(self, sigma: Tensor) -> None:
        sigma = self._agree(sigma)
        if sigma is not self._sigma:  # the gather is skipped while the assignment stays
            self._sigma = sigma
            self._target = self._W[sigma.to(self._W.device)]


@dataclass(frozen=True)
class EMD(Stateless):
    """Squared 2-Wasserstein distance by exact assignment.

    d(V, W) = min_sigma (1/m) sum_i |V_i - W_sigma(i)|^2 over the permutations inside the classes.
    Source: the note (Mercklé 2024), equation (22).
    """

    name = "emd"

    def anchored(self, W: Tensor, classes: Tensor | None, agree: Agree = alone) -> AnchoredDistance:
        """Return W2^2(., W), exchanging only particles of equal label."""
        return _AnchoredEMD(W, classes, agree)
