"""A convex loss lies above all its tangents: what shows that one is not, while it is solved."""

from __future__ import annotations

import math

import torch
from torch import Tensor

_REMEMBERED = 128
# Rounding errors are this many units in the last place of the largest term at most.
_ROUNDING = 1e3


class ConvexityWatch:
    """Compares every evaluation of R with the tangents at the last 128 points before it.

        R(z) >= R(z') + <grad R(z'), z - z'>    and the same with z and z' exchanged

    A violation above rounding proves that R is not convex. That none was met proves nothing: the
    certificate of a loss that is not convex where nobody looked is worth as much as the assumption.

    Args:
        precision: Relative rounding error of the numbers.
    """

    def __init__(self, precision: float) -> None:
        self._precision = precision
        self._lowest = math.inf
        self._points: list[Tensor] = []
        self._grads: list[Tensor] = []
        self._values: list[float] = []

    @property
    def tangents(self) -> tuple[Tensor, Tensor, Tensor]:
        """Points z (E, n, k), values (E,) and gradients (E, n, k) of the last evaluations."""
        return torch.stack(self._points), torch.tensor(self._values), torch.stack(self._grads)

    def lowest(self) -> float:
        """Return the lowest value met, ``inf`` before the first."""
        return self._lowest

    def suspects(self, most: int) -> list[Tensor]:
        """Return outputs (n, k) whose evaluation may show that R is not convex.

        Were R a sum over samples, each term's gradient would be monotone: <g_j - g'_j, z_j - z'_j>
        >= 0 for every sample j and every two points. Where it is not, R itself is suspected, for
        samples may be mixed: the point z' with its sample j alone replaced by that of z is worth a
        look, since two points that differ in one sample only must obey the same inequality.

        Args:
            most: Number of points, of different samples, the clearest first.
        """
        if len(self._points) < 2:
            return []
        Z, G = torch.stack(self._points), torch.stack(self._grads)
        moves, turns = Z.unsqueeze(1) - Z, G.unsqueeze(1) - G  # (E, E, n, k)
        rise = (moves * turns).sum(-1)
        size = moves.norm(dim=-1) * (G.norm(dim=-1).unsqueeze(1) + G.norm(dim=-1))
        share = torch.where(rise < -_ROUNDING * self._precision * size, rise / size, 0.0)
        worst, where = share.flatten(0, 1).min(0)  # over pairs, for each sample
        found = []
        for j in worst.argsort().tolist()[:most]:
            if not worst[j] < 0:
                break
            pair = int(where[j])
            z = Z[pair % len(Z)].clone()
            z[j] = Z[pair // len(Z), j]
            found.append(z)
        return found

    def add(self, z: Tensor, value: float, grad: Tensor) -> None:
        """Take in R(z) and grad R(z); numbers that are not finite are passed over.

        Raises:
            ValueError: R is not convex.
        """
        point, slope = z.detach().flatten(), grad.detach().flatten()
        here = point.new_tensor(value)
        if not bool(here.isfinite() & slope.isfinite().all()):
            return
        if self._points:
            moves = point - torch.stack(self._points).flatten(1)
            slopes = torch.stack(self._grads).flatten(1)
            values = here.new_tensor(self._values)
            rise = here - values
            forward, backward = (slopes * moves).sum(1), moves @ slope
            size = values.abs() + here.abs()
            # Slopes are rounded as well, and so are points, which move values by slope times that.
            size = size + slopes.norm(dim=1) * moves.norm(dim=1) + slope.norm() * moves.norm(dim=1)
            size = size + slope.norm() * point.norm() + slopes.norm(dim=1) * point.norm()
            slack = _ROUNDING * self._precision * size
            below = (rise < forward - slack) | (rise > backward + slack)
            if bool(below.any()):
                raise ValueError(
                    "the loss is not convex in the layer's output: it lies below its own tangent "
                    f"at an output {float(moves[below][0].norm()):.3g} away. "
                    'Use solver="bfgs" or "lbfgs" here'
                )
        self._lowest = min(self._lowest, value)
        self._points = [*self._points, z.detach()][-_REMEMBERED:]
        self._grads = [*self._grads, grad.detach()][-_REMEMBERED:]
        self._values = [*self._values, value][-_REMEMBERED:]


def refuse_nonconvex(bound: float, value: float, size: float, precision: float) -> None:
    """Check a dual bound against a value that is reached: for a convex loss it is not above.

    Args:
        bound: Lower bound that holds if R is convex.
        value: A value that is reached.
        size: Of the numbers that the bound is a difference of: a loss elsewhere.
        precision: Relative rounding error of the loss.

    Raises:
        ValueError: The bound is above the value by more than rounding.
    """
    if bound > value + _ROUNDING * precision * (abs(bound) + abs(value) + abs(size)):
        raise ValueError(
            f"the loss is not convex in the layer's output: the dual bound {bound:.6g} lies above "
            f'the value {value:.6g} that is reached. Use solver="bfgs" or "lbfgs" here'
        )
