"""All particle views of an optimizer as one flat vector."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from torch_wprox.particles.views import View


class FlatParameters:
    """Reads and writes the clouds and plain tensors behind ``views`` as one vector of N numbers.

    The vector has the widest compute dtype of the views and lives on the device of the first.

    Args:
        views: Particle views of disjoint parameters, at least one.
    """

    def __init__(self, views: Sequence[View]) -> None:
        self.views = tuple(views)
        sizes = [view.m * view.D for view in views]
        self.starts = tuple(sum(sizes[:i]) for i in range(len(sizes)))

    def read(self) -> Tensor:
        """Return the positions, (N,), a copy."""
        clouds = [view.read() for view in self.views]
        dtype = max((V.dtype for V in clouds), key=lambda t: torch.finfo(t).bits)
        return torch.cat([V.to(clouds[0].device, dtype).reshape(-1) for V in clouds])

    def write(self, x: Tensor) -> None:
        """Move the parameters to ``x`` (N,)."""
        for view, V in self.parts(x):
            view.write(V)

    def read_grad(self, x: Tensor) -> Tensor:
        """Return the gradient (N,) that the closure left, like ``x`` (N,)."""
        return joined([view.read_grad().to(x).reshape(-1) for view in self.views])

    def parts(self, x: Tensor) -> list[tuple[View, Tensor]]:
        """Return every view with its (m, D) block of ``x`` (N,)."""
        return [
            (view, x[start : start + view.m * view.D].view(view.m, view.D))
            for view, start in zip(self.views, self.starts, strict=True)
        ]


def joined(parts: list[Tensor]) -> Tensor:
    """Concatenate flat vectors, without a copy where there is one."""
    return parts[0] if len(parts) == 1 else torch.cat(parts)
