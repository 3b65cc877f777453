"""Where the particles of a layer start: pure functions (m, D) -> Tensor."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

Initializer = str | Callable[[Tensor], Tensor | None]
INITIALIZERS = ("normal", "uniform", "grid")


def grid(count: int, dim: int, *, dtype: torch.dtype | None = None) -> Tensor:
    """``count`` points of a regular grid on [-1, 1]^dim, spread evenly over it.

    The grid has side^dim points with side = ceil(count^(1/dim)) >= 2; if count is smaller than
    that, points are left out at even intervals.

    Args:
        count: Number of points, at least 2^dim.
        dim: Number of coordinates.
        dtype: Of the result.

    Returns:
        (count, dim) points, in lexicographic order.

    Raises:
        ValueError: If a grid with two points per axis would already be larger.

    Example:
        >>> grid(4, 2).tolist()
        [[-1.0, -1.0], [-1.0, 1.0], [1.0, -1.0], [1.0, 1.0]]
    """
    if count < 2**dim:
        raise ValueError(
            f"init='grid' needs at least 2^{dim} particles per class for {dim} coordinates, got "
            f"{count}: enlarge width or take init='normal'"
        )
    side = 2
    while side**dim < count:
        side += 1
    # round(linspace(0, side^dim - 1, count)) in exact integer arithmetic.
    last, steps = side**dim - 1, max(count - 1, 1)
    index = (torch.arange(count) * last * 2 + steps) // (2 * steps)
    digits = [(index // side**power) % side for power in reversed(range(dim))]
    axis = torch.linspace(-1, 1, side, dtype=dtype)
    return axis[torch.stack(digits, dim=1)]


def draw(
    init: Initializer,
    class_sizes: Sequence[int],
    dim: int,
    *,
    generator: torch.Generator | None,
    device: torch.device,
    dtype: torch.dtype,
) -> Tensor:
    """The starting particles, at scale 1.

    Args:
        init: "normal" (standard), "uniform" (on [-1, 1]), "grid" (on [-1, 1]^dim, one grid per
            class), or a function that fills a (m, dim) tensor in place, as those of
            ``torch.nn.init`` do (or returns another one).
        class_sizes: Sizes of the classes, which lie one after the other; they sum to m.
        dim: Number of coordinates.
        generator: Of the random numbers; they are drawn on its device.
        device: Of the random numbers when ``generator`` is None.
        dtype: Of the result.

    Returns:
        (m, dim) tensor.
    """
    where = device if generator is None else generator.device
    particles = torch.empty(sum(class_sizes), dim, device=where, dtype=dtype)
    if callable(init):
        filled = init(particles)
        filled = particles if filled is None else filled
        if filled.shape != particles.shape:
            raise ValueError(
                f"init must fill (or return) a tensor of shape {tuple(particles.shape)}, got "
                f"{tuple(filled.shape)}"
            )
        return filled
    if init == "normal":
        return particles.normal_(generator=generator)
    if init == "uniform":
        return particles.uniform_(-1, 1, generator=generator)
    if init == "grid":
        return torch.cat([grid(size, dim, dtype=dtype) for size in class_sizes if size])
    raise ValueError(f"init must be one of {INITIALIZERS} or a function, got {init!r}")


def balanced_classes(width: int, outputs: int) -> tuple[Tensor, Tensor, list[int]]:
    """Signs (m,), outputs fed (m,) and sizes of the classes (output 0, +), (output 0, -), ..."""
    signs, index, sizes = [], [], []
    for c in range(outputs):
        count = width // outputs + (c < width % outputs)
        plus = (count + 1) // 2
        sizes += [plus, count - plus]
        signs += [1.0] * plus + [-1.0] * (count - plus)
        index += [c] * count
    return torch.tensor(signs), torch.tensor(index), sizes
