"""The assignment of a moving cloud V to its anchor W, cheap enough for every evaluation.

Both clouds have m particles of mass 1/m; a particle may take any anchor of its class. An optimal
assignment sigma maximises sum <V_i, W_sigma(i)>. A step asks for one in two ways: at the points
that its solver tries, where a good one will do (it gives an upper bound on W2^2, and holding it is
majorise-minimise), and at its end, where an optimal one is wanted. Everything is float64 on the
CPU, whatever the parameters are.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from torch_wprox.distances.clouds import Integers, class_rows, on_cpu
from torch_wprox.distances.emd.exchangeable import Held
from torch_wprox.distances.emd.small import SMALL, Pack, SmallClasses, packs_of, size_of
from torch_wprox.report import TransportCounts


class Assignment:
    """The assignment of a cloud V to its anchors W: the identity at first, optimal at V = W.

    Args:
        W: Anchors, (m, D).
        classes: Labels (m,), particles of equal label are exchangeable; None: all are.

    Attributes:
        sigma: The assignment in force, (m,) on the CPU; the same object while it stays the same.

    Example:
        >>> W = torch.tensor([[0.0, 0.0], [1.0, 0.0]])
        >>> Assignment(W, None).settle(torch.tensor([[3.0, 0.0], [2.0, 1.0]]))
        tensor([1, 0])
    """

    def __init__(self, W: Tensor, classes: Tensor | None) -> None:
        points = on_cpu(W)
        self.sigma = torch.arange(len(points))
        packs, large = _parts_of(classes, len(points))
        self._parts: list[Held | SmallClasses] = [
            *(SmallClasses(points, pack) for pack in packs),
            *(Held(points, rows) for rows in large),
        ]

    @property
    def is_proved(self) -> bool:
        """Whether sigma is known to be optimal for the last V."""
        return all(part.is_proved for part in self._parts)

    @property
    def counts(self) -> TransportCounts:
        """How the assignments were found so far."""
        return sum((part.counts for part in self._parts), TransportCounts())

    def trial(self, V: Tensor) -> Tensor:
        """Return an assignment (m,) for a trial point V (m, D), optimal if :attr:`is_proved`."""
        due = [part for part in self._parts if not part.holds()]
        if not due:
            return self.sigma  # and V stays on its device
        points = on_cpu(V)
        return self._with([part for part in due if part.trial(points)])

    def settle(self, V: Tensor) -> Tensor:
        """Return an optimal assignment (m,) for V (m, D), for classes up to LARGEST_EXACT.

        A class keeps the identity where nothing is better.
        """
        points = on_cpu(V)
        return self._with([part for part in self._parts if part.settle(points)])

    def proves_identity(self, V: Tensor) -> bool:
        """Return whether the first prices prove the identity optimal for V, (m, D)."""
        points = on_cpu(V)
        return all(part.proves_identity(points) for part in self._parts)

    def _with(self, changed: list[Held | SmallClasses]) -> Tensor:
        """Put the new assignments of classes into sigma."""
        if not changed:
            return self.sigma
        if isinstance(changed[0], SmallClasses) and changed[0].is_whole:
            self.sigma = torch.from_numpy(changed[0].sigma)
            return self.sigma
        indices = self.sigma.numpy().copy()
        every = np.arange(len(indices))
        for part in changed:
            indices[part.rows] = every[part.rows][part.sigma]
        self.sigma = torch.from_numpy(indices)
        return self.sigma


# Up to this many labels the same ones are recognised from step to step.
_KNOWN_UP_TO = 20_000

_Parts = tuple[list[Pack], list[slice | Integers]]


def _parts_of(classes: Tensor | None, m: int) -> _Parts:
    """Return small classes in packs, and the rows of each large one."""
    if classes is None:
        return _divided(None, m)
    labels = classes.detach().to("cpu", torch.int64).numpy().tobytes()
    return _divided(labels, m) if m <= _KNOWN_UP_TO else _divided.__wrapped__(labels, m)


@lru_cache(maxsize=16)
def _divided(labels: bytes | None, m: int) -> _Parts:
    classes = None if labels is None else torch.frombuffer(bytearray(labels), dtype=torch.int64)
    members = class_rows(classes, m) if m else []
    small = [rows for rows in members if size_of(rows) <= SMALL]
    return packs_of(small, m), [rows for rows in members if size_of(rows) > SMALL]
