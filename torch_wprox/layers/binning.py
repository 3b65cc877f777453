"""From a density on a grid to points, and back: pure functions."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def shares(masses: Tensor, m: int) -> list[int]:
    """Divide m particles over blocks by their masses, largest remainders first.

    Example:
        >>> shares(torch.tensor([0.5, 0.3, 0.2]), 4)
        [2, 1, 1]
    """
    exact = masses / masses.sum() * m
    counts = exact.floor().long()
    left = m - int(counts.sum())
    counts[torch.argsort(exact - counts, descending=True, stable=True)[:left]] += 1
    return [int(c) for c in counts]


def place(
    method: str,
    mass: Tensor,
    cells: Tensor,
    spacing: Tensor,
    count: int,
    generator: torch.Generator | None,
) -> Tensor:
    """Represent a density by points of equal mass.

    Args:
        method: "quantize" or "sample".
        mass: (G,) of the cells, >= 0.
        cells: (G, D) positions.
        spacing: (D,) sides of a cell.
        count: Number of points.
        generator: For "sample".

    Returns:
        (count, D)

    Raises:
        ValueError: Another method.
    """
    if method not in ("quantize", "sample"):
        raise ValueError(f"method must be 'quantize' or 'sample', got {method!r}")
    if count == 0:
        return cells[:0]
    if method == "sample":
        where = None if generator is None else generator.device
        index = torch.multinomial(mass.to(where), count, replacement=True, generator=generator)
        offset = torch.rand(
            count, cells.shape[1], generator=generator, dtype=cells.dtype, device=where
        )
        return cells[index.cpu()] + (offset.cpu() - 0.5) * spacing
    held = mass > 0
    return torch.stack(_halved(mass[held] / mass.sum(), cells[held], count))


def _halved(mass: Tensor, cells: Tensor, count: int) -> list[Tensor]:
    """Split by mass in the direction of the largest variance until one point is left for each part.

    A cell on the cut gives each side its share, so that all parts have equal mass.
    """
    total = mass.sum()
    mean = (mass @ cells) / total
    if count == 1:
        return [mean]
    spread = (mass @ (cells - mean).square()) / total
    order = torch.argsort(cells[:, int(spread.argmax())], stable=True)
    mass, cells = mass[order], cells[order]
    first = count // 2
    upto = (mass.cumsum(0)).clamp(max=total * first / count)
    left = upto.diff(prepend=upto.new_zeros(1))
    right = mass - left
    found: list[Tensor] = []
    for part, number in ((left, first), (right, count - first)):
        held = part > 1e-12 * total  # rounding of the cumulated mass is no mass
        found += _halved(part[held], cells[held], number)
    return found


def deposit(
    points: Tensor,
    masses: Tensor,
    lower: Sequence[float],
    spacing: Sequence[float],
    shape: Sequence[int],
) -> Tensor:
    """Spread points over the corners of their cells, keeping mass and mean.

    Args:
        points: (m, D)
        masses: (m, blocks)
        lower: First position of every axis.
        spacing: Of every axis.
        shape: Cells of every axis.

    Returns:
        (blocks, *shape)

    Raises:
        ValueError: A point lies outside of the grid.
    """
    low = points.new_tensor(lower)
    steps = points.new_tensor([dx if dx > 0 else 1.0 for dx in spacing])
    at = (points - low) / steps
    last = points.new_tensor([n - 1 for n in shape])
    outside = ((at < -1e-9) | (at > last + 1e-9)).any(1)
    if bool(outside.any()):
        raise ValueError(
            f"axes must contain every particle, {int(outside.sum())} of {len(points)} lie outside, "
            f"as far as {points.abs().amax(0).tolist()}: widen the axes"
        )
    at = torch.minimum(at.clamp(min=0), last)
    corner = torch.minimum(at.floor(), (last - 1).clamp(min=0))
    over = at - corner
    strides = [1] * len(shape)
    for k in reversed(range(len(shape) - 1)):
        strides[k] = strides[k + 1] * shape[k + 1]
    index = torch.zeros(len(points), 1, dtype=torch.long)
    share = points.new_ones(len(points), 1)
    for k, n in enumerate(shape):
        step = strides[k] if n > 1 else 0
        index = index + corner[:, k : k + 1].long() * strides[k]
        index = torch.cat([index, index + step], dim=1)
        share = torch.cat([share * (1 - over[:, k : k + 1]), share * over[:, k : k + 1]], dim=1)
    density = points.new_zeros(masses.shape[1], strides[0] * shape[0])
    given = masses.t().unsqueeze(-1) * share
    density.index_add_(1, index.flatten(), given.flatten(1))
    return density.view(-1, *shape)
