"""A squared distance of a cloud to its anchor: what a new one must say, and what it may.

A distance object holds options only. ``anchored(W, classes)`` gives d(., W), which a step evaluates
at every inner iteration.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

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

    Example:
        >>> from torch_wprox import Frobenius
        >>> V, W = torch.ones(4, 2), torch.zeros(4, 2)
        >>> found = Frobenius().anchored(W, None).evaluate(V)
        >>> found.value, found.gradient[0]  # (1/m)|V - W|^2 and (2/m)(V - W)
        (tensor(2.), tensor([0.5000, 0.5000]))
    """

    value: Tensor
    gradient: Tensor


class AnchoredDistance(ABC):
    """d(., W) for one anchor. Only :meth:`evaluate` has to be written.

    A class with all these names need not inherit from this one.

    Example:
        >>> from torch_wprox import EMD
        >>> d = EMD().anchored(torch.tensor([[0.0], [1.0]]), None)
        >>> isinstance(d, AnchoredDistance), d.settle(torch.tensor([[1.0], [0.0]])).value
        (True, tensor(0.))
    """

    @abstractmethod
    def evaluate(self, V: Tensor) -> DistanceValue:
        """Return d(V, W) and its gradient at ``V`` (m, D), a point that a solver tries."""

    def settle(self, V: Tensor) -> DistanceValue:
        """Return d(V, W) at the accepted ``V`` with nothing held back (an optimal assignment)."""
        return self.evaluate(V)

    def monotone(self, V: Tensor) -> DistanceValue:
        """Return d(V, W) where, in every class, ``V`` is a convex function's gradient at W."""
        return self.evaluate(V)

    @property
    def is_quadratic(self) -> bool:
        """Whether d is |V - T|^2 / m, T = W_sigma, while the assignment in force stays."""
        return False

    def target(self, V: Tensor, *, settled: bool) -> Tensor:
        """Return T (m, D) at ``V``, the same object while it stays, of a d that is quadratic.

        An objective of such distances alone asks for their targets instead of their values.

        Args:
            V: (m, D).
            settled: Whether T is that of :meth:`settle`, else that of :meth:`evaluate`.
        """
        raise NotImplementedError(f"{type(self).__name__} has no target")

    @property
    def assignment(self) -> Tensor | None:
        """Sigma in force, (m,), None if the distance has none."""
        return None

    @property
    def is_proved(self) -> bool:
        """Whether the assignment in force is proved optimal for the last V."""
        return False

    @property
    def counts(self) -> TransportCounts:
        """How the assignments were found."""
        return TransportCounts()


class Distance(ABC):
    """Options of a squared distance. Only :meth:`anchored` has to be written.

    A class with all these names need not inherit from this one.

    Example:
        >>> from torch_wprox import Frobenius
        >>> isinstance(Frobenius(), Distance), Frobenius().name
        (True, 'frobenius')
    """

    @property
    def name(self) -> str:
        """The name under which a checkpoint remembers it."""
        return type(self).__name__.lower()

    @abstractmethod
    def anchored(self, W: Tensor, classes: Tensor | None, agree: Agree = alone) -> AnchoredDistance:
        """Return d(., W).

        Args:
            W: The anchor, (m, D).
            classes: Labels (m,): particles of equal label are exchangeable; None: all are.
            agree: Makes a tensor the same on all ranks; what ranks might round differently and a
                decision reads goes through it.
        """

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint must keep (a generator's state, say): nothing."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned: there is nothing to restore."""
        del state


class Stateless(Distance):
    """A distance whose options are all there is, as those of :class:`Distance` are by default."""


_DOT_UP_TO = 10_000


def squared_norm(flat: Tensor) -> Tensor:
    """Return the sum of squares of a vector (N,), 0-d."""
    # `dot` is one fast call, but adds up naively: float32 loses digits in millions of terms.
    return torch.dot(flat, flat) if flat.numel() <= _DOT_UP_TO else flat.square().sum()


def mean_squared(V: Tensor, T: Tensor) -> DistanceValue:
    """Return (1/m) sum_i |V_i - T_i|^2 and its gradient (2/m)(V - T), both for (m, D)."""
    difference = V - T
    total = squared_norm(difference.view(-1))
    return DistanceValue(total / len(V), difference * (2.0 / len(V)))
