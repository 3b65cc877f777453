"""Sliced squared Wasserstein distance by sorting, with a gradient that is finite everywhere."""

from __future__ import annotations

from typing import Any, final

import torch
from torch import Tensor

from torch_wprox.arguments import checked_count
from torch_wprox.closure.ranks import Agree, alone
from torch_wprox.distances.base import AnchoredDistance, Distance, DistanceValue
from torch_wprox.distances.clouds import class_rows

# Projections are sorted in pieces of about this many numbers, so that memory stays O(m D).
_PIECE = 8_000_000


@final
class Sliced(Distance):
    r"""Mean over directions of the squared Wasserstein distance of the projections.

    .. math:: d(V, W) = \frac1L \sum_l \frac1m \sum_i
        \left(\langle V, t_l\rangle_{(i)} - \langle W, t_l\rangle_{(i)}\right)^2

    with t_l uniform on the sphere and x_(i) the i-th smallest inside a class. In expectation it is
    W2^2/D for a translation, and never above W2^2: an equal gamma moves particles further.

    The directions are drawn once per step, so that the inner problem is one function, from a
    generator of its own, whose state is part of the optimizer's state.

    Args:
        projections: L, directions per step.
        seed: Of the generator.

    Raises:
        ValueError: ``projections`` is no integer >= 1, or ``seed`` no integer.

    Example:
        >>> W = torch.zeros(3, 2, dtype=torch.float64)
        >>> d = Sliced(projections=5).anchored(W, None)
        >>> d.evaluate(W).value, d.evaluate(W).gradient.abs().max()
        (tensor(0., dtype=torch.float64), tensor(0., dtype=torch.float64))

    Source: Bonneel et al., Sliced and Radon Wasserstein barycenters of measures, 2015.
    """

    name = "sliced"

    def __init__(self, projections: int = 50, seed: int = 0) -> None:
        self.projections = checked_count("projections", projections)
        self.seed = checked_count("seed", seed, least=-(2**63))
        self._generator = torch.Generator().manual_seed(self.seed)

    def __repr__(self) -> str:
        return f"Sliced(projections={self.projections}, seed={self.seed})"

    def __getstate__(self) -> dict[str, Any]:
        return {"projections": self.projections, "seed": self.seed, **self.state_dict()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["projections"], state["seed"])
        self.load_state_dict(state)

    def anchored(self, W: Tensor, classes: Tensor | None, agree: Agree = alone) -> AnchoredDistance:
        """Return d(., W) along newly drawn directions, the same on all ranks."""
        t = torch.randn(
            W.shape[1], self.projections, dtype=torch.float64, generator=self._generator
        )
        t = agree(t / torch.linalg.vector_norm(t, dim=0).clamp_min(1e-300))
        return _AnchoredSliced(W, classes, t.to(W), agree)

    def state_dict(self) -> dict[str, Any]:
        """Return the generator's state."""
        return {"generator": self._generator.get_state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the generator's state."""
        if "generator" in state:
            self._generator.set_state(state["generator"].cpu())


class _AnchoredSliced(AnchoredDistance):
    def __init__(self, W: Tensor, classes: Tensor | None, directions: Tensor, agree: Agree) -> None:
        self._W = W
        self._agree = agree
        self._directions = directions  # (D, L)
        self._rows = [
            rows if isinstance(rows, slice) else torch.from_numpy(rows).to(W.device)
            for rows in class_rows(classes, len(W))
        ]
        self._step = max(1, _PIECE // max(len(W), 1))
        fits = directions.shape[1] <= self._step
        # Sorted anchors are kept where they fit into one piece, else sorted again each time.
        self._sorted = [self._project(rows, directions) for rows in self._rows] if fits else None

    def _project(self, rows: slice | Tensor, directions: Tensor) -> Tensor:
        return (self._W[rows] @ directions).sort(dim=0).values

    def evaluate(self, V: Tensor) -> DistanceValue:
        value, gradient = V.new_zeros(()), torch.zeros_like(V)
        m, L = len(V), self._directions.shape[1]
        for k, rows in enumerate(self._rows):
            points = V[rows]
            for first in range(0, L, self._step):
                t = self._directions[:, first : first + self._step]
                anchors = self._project(rows, t) if self._sorted is None else self._sorted[k]
                projected, order = (points @ t).sort(dim=0)
                difference = projected - anchors
                value += difference.square().sum()
                moved = torch.empty_like(difference).scatter_(0, order, difference)
                gradient[rows] += moved @ t.T
        # Ranks that round a projection differently may sort near ties differently.
        return DistanceValue(value / (m * L), self._agree(gradient * (2.0 / (m * L))))
