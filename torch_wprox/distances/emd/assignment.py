"""The assignment of a moving cloud V to its anchor W, cheap enough for every evaluation.

Both clouds have m particles of mass 1/m; a particle may take any anchor of its class. An optimal
assignment sigma maximises sum <V_i, W_sigma(i)>. A step asks for one in two ways: at the points
that its solver tries, where a good one will do (it gives an upper bound on W2^2, and holding it is
majorise-minimise), and at its end, where an optimal one is wanted. Everything is float64 on the
CPU, whatever the parameters are.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from torch_wprox.distances.clouds import class_rows, on_cpu
from torch_wprox.distances.emd.exchangeable import Exchangeable, Held, Solved
from torch_wprox.report import TransportCounts

# A class of this many particles is solved in the time of a few tensor operations.
_SMALL = 64


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
        self._parts: list[Exchangeable] = []
        for rows in class_rows(classes, len(points)):
            size = rows.stop - rows.start if isinstance(rows, slice) else len(rows)
            self._parts.append((Solved if size <= _SMALL else Held)(points, rows))

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

    def _with(self, changed: list[Exchangeable]) -> Tensor:
        """Put the new assignments of classes into sigma."""
        if changed:
            indices = self.sigma.numpy().copy()
            every = np.arange(len(indices))
            for part in changed:
                indices[part.rows] = every[part.rows][part.sigma]
            self.sigma = torch.from_numpy(indices)
        return self.sigma
