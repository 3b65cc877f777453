"""Squared distances of a cloud to its anchor, with exact gradients: Frobenius and Wasserstein.

A distance object holds options only. ``anchored(W, classes)`` gives d(., W), which a step evaluates
at every inner iteration. Sinkhorn and sliced live in files of their own.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from torch_wprox import transport
from torch_wprox.report import TransportCounts

Agree = Callable[[Tensor], Tensor]
"""Makes a tensor the same on all ranks of a process group (identity on one)."""


def alone(tensor: Tensor) -> Tensor:
    """Return ``tensor``: the :data:`Agree` of a single process."""
    return tensor


@dataclass(frozen=True)
class DistanceValue:
    """d(V, W) and its gradient.

    Attributes:
        value: d(V, W), 0-d.
        gradient: Gradient of d in V, (m, D).
    """

    value: Tensor
    gradient: Tensor


class AnchoredDistance(Protocol):
    """d(., W) for one anchor."""

    @property
    def is_quadratic(self) -> bool:
        """Whether d is |V - T|^2 / m, T = W_sigma, while the assignment in force stays."""

    @property
    def assignment(self) -> Tensor | None:
        """Sigma in force, (m,), None if the distance has none."""

    @property
    def is_certified(self) -> bool:
        """Whether the assignment in force is proved optimal for the last V."""

    @property
    def counts(self) -> TransportCounts:
        """How the assignments were found."""

    def evaluate(self, V: Tensor) -> DistanceValue:
        """Return d(V, W) and its gradient at ``V`` (m, D)."""

    def settle(self, V: Tensor) -> DistanceValue:
        """Return d(V, W) at the accepted ``V`` with nothing held back (a fresh assignment)."""


@runtime_checkable
class Distance(Protocol):
    """Options of a squared distance; see :class:`Frobenius`, :class:`EMD`."""

    @property
    def name(self) -> str:
        """The name under which a checkpoint remembers it."""

    def anchored(self, W: Tensor, classes: Tensor | None, agree: Agree = alone) -> AnchoredDistance:
        """Return d(., W) for the anchor ``W`` (m, D) with class labels ``classes`` (m,) or None."""

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint must keep (a generator's state, say)."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned."""


class Stateless:
    """A distance whose options are all there is."""

    def state_dict(self) -> dict[str, Any]:
        """Return nothing: the distance has no state."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Accept the empty state."""


class _AnchoredFrobenius:
    """d(V, W) = (1/m) sum_i |V_i - W_i|^2."""

    is_quadratic = True

    def __init__(self, W: Tensor) -> None:
        self._W = W
        self.assignment: Tensor | None = None
        self.is_certified = False
        self.counts = TransportCounts()

    def evaluate(self, V: Tensor) -> DistanceValue:
        return mean_squared(V, self._W)

    def settle(self, V: Tensor) -> DistanceValue:
        return self.evaluate(V)


class _AnchoredEMD:
    """W2^2(V, W) = min_sigma (1/m) sum_i |V_i - W_sigma(i)|^2 inside the classes.

    Only sigma is needed: by the envelope theorem (Danskin) the gradient is (2/m)(V - W_sigma)
    wherever the optimal sigma is unique, and an element of the Clarke subdifferential elsewhere.
    """

    is_quadratic = True

    def __init__(self, W: Tensor, classes: Tensor | None, agree: Agree) -> None:
        self._W = W
        self._agree = agree
        self._state = transport.start(W, classes)
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
        sigma, self._state = transport.assign(V, self._state, force=force)
        self._hold(sigma)
        return mean_squared(V, self._target)

    def _hold(self, sigma: Tensor) -> None:
        sigma = self._agree(sigma)
        if sigma is not self._sigma:  # the gather is skipped while the assignment stays
            self._sigma = sigma
            self._target = self._W[sigma.to(self._W.device)]


@dataclass(frozen=True)
class Frobenius(Stateless):
    """Mean squared distance particle by particle: d(V, W) = (1/m) sum_i |V_i - W_i|^2.

    Source: the note (Mercklé 2024), equation (15).
    """

    name = "frobenius"

    def anchored(self, W: Tensor, classes: Tensor | None, agree: Agree = alone) -> AnchoredDistance:
        """Return d(., W); ``classes`` do not matter, nothing is exchanged."""
        return _AnchoredFrobenius(W)


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


_DOT_UP_TO = 10_000


def mean_squared(V: Tensor, T: Tensor) -> DistanceValue:
    """Return (1/m) sum_i |V_i - T_i|^2 and its gradient (2/m)(V - T), both for (m, D)."""
    difference = V - T
    flat = difference.view(-1)
    # `dot` is one fast call, but adds up naively: float32 loses digits in millions of terms.
    total = torch.dot(flat, flat) if len(flat) <= _DOT_UP_TO else flat.square().sum()
    return DistanceValue(total / len(V), difference * (2.0 / len(V)))
