"""All particle views of an optimizer as one flat vector."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from torch_wprox.distances import Agree, Distance, Frobenius, alone
from torch_wprox.objective import Block, joined
from torch_wprox.particles import CurvedView, View


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
        for view, V in self._parts(x):
            view.write(V)

    def read_grad(self, x: Tensor) -> Tensor:
        """Return the gradient (N,) that the closure left, like ``x`` (N,)."""
        return joined([view.read_grad().to(x).reshape(-1) for view in self.views])

    def blocks(
        self,
        anchor: Tensor,
        groups: Sequence[dict[str, Any]],
        distance: Distance,
        agree: Agree = alone,
    ) -> tuple[Block, ...]:
        """Return the blocks of the prox objective.

        Args:
            anchor: W, (N,).
            groups: One parameter group per view: ``lr`` is gamma, and ``weight_decay``.
            distance: For the clouds; plain tensors have the Frobenius distance.
            agree: Makes a tensor the same on all ranks.
        """
        return tuple(
            Block(
                start=start,
                m=view.m,
                D=view.D,
                gamma=float(group["lr"]),
                weight_decay=float(group["weight_decay"]),
                distance=(distance if view.is_cloud else Frobenius()).anchored(
                    W, view.classes, agree
                ),
                is_cloud=view.is_cloud,
                classes=view.classes,
                chart=view if isinstance(view, CurvedView) else None,
            )
            for (view, W), start, group in zip(
                self._parts(anchor), self.starts, groups, strict=True
            )
        )

    def _parts(self, x: Tensor) -> list[tuple[View, Tensor]]:
        return [
            (view, x[start : start + view.m * view.D].view(view.m, view.D))
            for view, start in zip(self.views, self.starts, strict=True)
        ]
