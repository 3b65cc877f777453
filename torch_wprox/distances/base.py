"""Squared distances of a cloud to its anchor, with exact gradients: Frobenius and Wasserstein.

A distance object holds options only. ``anchored(W, classes)`` gives d(., W), which a step evaluates
at every inner iteration. Sinkhorn and sliced live in files of their own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from torch_wprox.closure.ranks import Agree, alone
from torch_wprox.report import TransportCounts


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


_DOT_UP_TO = 10_000


def mean_squared(V: Tensor, T: Tensor) -> DistanceValue:
    """Return (1/m) sum_i |V_i - T_i|^2 and its gradient (2/m)(V - T), both for (m, D)."""
    difference = V - T
    flat = difference.view(-1)
    # `dot` is one fast call, but adds up naively: float32 loses digits in millions of terms.
    total = torch.dot(flat, flat) if len(flat) <= _DOT_UP_TO else flat.square().sum()
    return DistanceValue(total / len(V), difference * (2.0 / len(V)))
