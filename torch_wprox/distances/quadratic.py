"""Several squared distances as one quadratic on a flat vector."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from torch_wprox.distances.base import AnchoredDistance, squared_norm


@dataclass(frozen=True)
class Term:
    """d(V, W)/(2 gamma) = kappa/2 |V - T|^2 of the rows ``start : start + m*D``.

    Attributes:
        start: Offset in the flat vector.
        m: Number of particles.
        D: Numbers per particle.
        kappa: 1/(m gamma).
        distance: d(., W), with a ``target``.
    """

    start: int
    m: int
    D: int
    kappa: float
    distance: AnchoredDistance

    @property
    def rows(self) -> slice:
        """Where it is in the flat vector."""
        return slice(self.start, self.start + self.m * self.D)


class FlatQuadratic:
    """sum_b kappa_b/2 |V_b - T_b|^2 with few tensor operations, however many terms there are.

    Args:
        terms: In the order of the flat vector, without gaps.
        anchor: W, (N,): the targets at first.
    """

    def __init__(self, terms: Sequence[Term], anchor: Tensor) -> None:
        self._terms = terms
        kappas = {term.kappa for term in terms}
        self._kappa: float | Tensor = kappas.pop()
        if kappas:
            sizes = torch.tensor([term.m * term.D for term in terms])
            each = torch.tensor([term.kappa for term in terms], dtype=anchor.dtype)
            self._kappa = each.repeat_interleave(sizes).to(anchor.device)
        self._flat = anchor
        self._targets = [anchor[term.rows].view(term.m, term.D) for term in terms]
        self._owns = False
        self._is_one = len(terms) == 1

    def added(self, grad: Tensor, x: Tensor, *, settled: bool) -> tuple[float, Tensor, Tensor]:
        """Return the quadratic at ``x`` (N,), and its gradient there plus ``grad``, (N,).

        The quadratic is the product of a number and a 0-d tensor, not yet multiplied.

        Args:
            grad: What the gradient is added to, (N,).
            x: The point.
            settled: Whether targets are those of optimal assignments, held ones being too long.
        """
        for k, term in enumerate(self._terms):
            V = x if self._is_one else x[term.rows]
            target = term.distance.target(V.view(term.m, term.D), settled=settled)
            if target is not self._targets[k]:
                self._put(k, target)
        difference = x - self._flat
        if isinstance(self._kappa, float):
            total = torch.add(grad, difference, alpha=self._kappa)
            return 0.5 * self._kappa, squared_norm(difference), total
        pull = self._kappa * difference
        return 0.5, (pull * difference).sum(), grad + pull

    def _put(self, k: int, target: Tensor) -> None:
        """Put a new target in the place of the last one."""
        self._targets[k] = target
        if self._is_one:
            self._flat = target.reshape(-1)
            return
        if not self._owns:
            self._flat, self._owns = self._flat.clone(), True
        self._flat[self._terms[k].rows] = target.reshape(-1)
