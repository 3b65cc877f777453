"""The blocks of the prox objective that belong to the parameters of an optimizer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from torch_wprox.closure.ranks import Agree, alone
from torch_wprox.distances.base import Distance
from torch_wprox.distances.frobenius import Frobenius
from torch_wprox.objective import Block
from torch_wprox.particles.flat import FlatParameters
from torch_wprox.particles.views import CurvedView


def blocks_of(
    flat: FlatParameters,
    anchor: Tensor,
    groups: Sequence[dict[str, Any]],
    distance: Distance,
    agree: Agree = alone,
) -> tuple[Block, ...]:
    """Return the blocks of the prox objective.

    Args:
        flat: The parameters, N numbers.
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
            distance=(distance if view.is_cloud else Frobenius()).anchored(W, view.classes, agree),
            is_cloud=view.is_cloud,
            classes=view.classes,
            chart=view if isinstance(view, CurvedView) else None,
        )
        for (view, W), start, group in zip(flat.parts(anchor), flat.starts, groups, strict=True)
    )
