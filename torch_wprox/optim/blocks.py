"""The blocks of the prox objective that belong to the parameters of an optimizer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from torch_wprox.closure.ranks import Agree, alone
from torch_wprox.distances.base import Distance
from torch_wprox.distances.frobenius import Frobenius
from torch_wprox.objective import Block
from torch_wprox.particles.flat import FlatParameters
from torch_wprox.particles.views import CurvedView, View


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
            stored_as=_coarse_type(view),
        )
        for (view, W), start, group in zip(flat.parts(anchor), flat.starts, groups, strict=True)
    )


def _coarse_type(view: View) -> torch.dtype | None:
    """Return the type in which all of a view is stored if it is coarser than the computation."""
    types = {p.dtype.to_real() for p in view.parameters}
    (stored, *others) = types
    return stored if not others and stored.itemsize < view.dtype.itemsize else None
