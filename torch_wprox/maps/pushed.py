"""A cloud moved by a convex map, and gradients in theta, in memory O(m D)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from torch_wprox.maps.log_det import LogDet
from torch_wprox.maps.transport_map import TransportMap

# Numbers that a graph over one chunk may hold per stored activation: 2^21 doubles are 16 MiB.
_CHUNK_NUMBERS = 1 << 21


@dataclass(frozen=True)
class Pushed:
    """T(x) for a cloud x, with the means to differentiate in theta.

    Attributes:
        points: T(x), (m, D), detached.
        log_det: log det of the Jacobian of T at x, (m,), detached; None if not asked for.
    """

    points: Tensor
    log_det: Tensor | None
    _graph: tuple[Tensor, ...] | None
    _map: TransportMap
    _x: Tensor
    _how: LogDet | None

    def pull_back(self, points: Tensor, log_det: Tensor | None = None) -> Tensor:
        """Return the gradient in theta of <points, T(x)> + <log_det, log det>.

        Args:
            points: Gradient in the moved points, (m, D).
            log_det: Gradient in the log determinants, (m,).
        """
        if self._graph is not None:
            return _pulled(self._map.theta, self._graph, (points, log_det))
        total = torch.zeros_like(self._map.theta)
        for rows in _chunks(self._x, self._map, self._how):
            part = (points[rows], None if log_det is None else log_det[rows])
            with torch.enable_grad():
                graph = _forward(self._map, self._x[rows], self._how)
            total += _pulled(self._map.theta, graph, part)
        return total


def push(map_: TransportMap, x: Tensor, how: LogDet | None = None) -> Pushed:
    """Move a cloud.

    A cloud that is large is moved in chunks; each is moved again when gradients are asked for, so
    that memory beyond the cloud does not grow with it.

    Args:
        map_: The map; its theta must require a gradient.
        x: Points, (m, D), without a gradient.
        how: How to compute log det; None: not at all.
    """
    chunks = _chunks(x, map_, how)
    if len(chunks) == 1:
        with torch.enable_grad():
            graph = _forward(map_, x, how)
        return Pushed(*_detached(graph), graph, map_, x, how)
    with torch.no_grad():
        parts = [_forward(map_, x[rows], how) for rows in chunks]
    moved = tuple(torch.cat(column) for column in zip(*parts, strict=True))
    return Pushed(*_detached(moved), None, map_, x, how)


def _forward(map_: TransportMap, x: Tensor, how: LogDet | None) -> tuple[Tensor, ...]:
    return (map_(x),) if how is None else (map_(x), how.of(map_, x))


def _detached(graph: tuple[Tensor, ...]) -> tuple[Tensor, Tensor | None]:
    return graph[0].detach(), graph[1].detach() if len(graph) > 1 else None


def _pulled(
    theta: Tensor, graph: tuple[Tensor, ...], gradients: tuple[Tensor, Tensor | None]
) -> Tensor:
    pairs = [(out, g) for out, g in zip(graph, gradients, strict=False) if g is not None]
    outputs, weights = zip(*pairs, strict=True)
    (found,) = torch.autograd.grad(outputs, theta, weights, retain_graph=True)
    return found


def _chunks(x: Tensor, map_: TransportMap, how: LogDet | None) -> list[slice]:
    per_point = max(map_.network.width, map_.network.dim)
    if how is not None:
        per_point *= map_.network.dim
    rows = max(1, _CHUNK_NUMBERS // per_point)
    return [slice(start, start + rows) for start in range(0, max(len(x), 1), rows)]
