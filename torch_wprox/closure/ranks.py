"""What the ranks of a process group agree on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
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


@dataclass(frozen=True)
class Ranks:
    """The ranks that take one step together, and what each of them holds or does of it.

    Attributes:
        group: Their process group; None: this process alone, and every method is the identity.
        device: Where collectives run.
    """

    group: dist.ProcessGroup | None = None
    device: torch.device | str = "cpu"

    @property
    def count(self) -> int:
        """How many they are."""
        return 1 if self.group is None else dist.get_world_size(self.group)

    def sizes(self, rows: int) -> tuple[int, ...]:
        """Return how many rows each rank holds, from the ``rows`` of this one."""
        if self.group is None:
            return (rows,)
        held = [torch.zeros(1, dtype=torch.long, device=self.device) for _ in range(self.count)]
        dist.all_gather(held, torch.tensor([rows], device=self.device), group=self.group)
        return tuple(int(h.item()) for h in held)

    def joined(self, mine: Tensor, sizes: tuple[int, ...]) -> Tensor:
        """Return the rows of all ranks, those of the first rank first, from the own ones."""
        if self.group is None:
            return mine
        most = max(sizes)
        sent = torch.zeros(most, *mine.shape[1:], dtype=mine.dtype, device=self.device)
        sent[: len(mine)] = mine
        parts = [torch.empty_like(sent) for _ in sizes]
        dist.all_gather(parts, sent, group=self.group)
        rows = [part[:n] for part, n in zip(parts, sizes, strict=True)]
        return torch.cat(rows).to(mine.device)

    def own(self, rows: Tensor, sizes: tuple[int, ...]) -> Tensor:
        """Return the part of ``rows`` that this rank holds."""
        if self.group is None:
            return rows
        me = dist.get_rank(self.group)
        start = sum(sizes[:me])
        return rows[start : start + sizes[me]]

    def shared(
        self, rows: Tensor, work: Callable[[Tensor], tuple[Tensor, ...]]
    ) -> tuple[Tensor, ...]:
        """Return ``work(rows)``, tensors of as many rows, of which every rank does a part."""
        if self.group is None:
            return work(rows)
        portions = tuple((len(rows) + i) // self.count for i in range(self.count))
        mine = self.own(rows, portions)
        done = work(mine if len(mine) else rows[:1])  # no work is no case of its own
        return tuple(self.joined(t[: len(mine)], portions) for t in done)

    def raise_together(self, error: ValueError | None) -> None:
        """Raise an error that one rank has found on all of them.

        Raises:
            ValueError: A rank has an error: its own there, one that points to it elsewhere.
        """
        if self.group is not None:
            flag = torch.tensor([float(error is not None)], device=self.device)
            dist.all_reduce(flag, op=dist.ReduceOp.MAX, group=self.group)
            if error is None and flag.item() > 0:
                error = ValueError("another rank refused the closure: its message says why")
        if error is not None:
            raise error


ALONE = Ranks()
"""A single process."""
