"""What the ranks of a process group agree on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch.distributed as dist
from torch import Tensor

Agree = Callable[[Tensor], Tensor]
"""Makes a tensor the same on all ranks of a process group (identity on one)."""


def alone(tensor: Tensor) -> Tensor:
    """Return ``tensor``: the :data:`Agree` of a single process."""
    return tensor


def process_group_of(choice: Any) -> dist.ProcessGroup | None:
    """Return the group that ``process_group`` means: "auto", None or a group.

    Raises:
        ValueError: ``choice`` is something else.
    """
    if isinstance(choice, str):
        if choice != "auto":
            raise ValueError(f'process_group must be "auto", None or a group, got {choice!r}')
        if not (dist.is_available() and dist.is_initialized()):
            return None
        choice = dist.group.WORLD
    if choice is not None and not _is_group(choice):
        raise ValueError(f'process_group must be "auto", None or a group, got {choice!r}')
    if choice is None or dist.get_world_size(choice) == 1:
        return None
    return choice  # type: ignore[no-any-return]


def _is_group(choice: Any) -> bool:
    return dist.is_available() and isinstance(choice, dist.ProcessGroup)
