"""P and F at one point."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Evaluation:
    """P and F at one point.

    Attributes:
        point: v, (N,).
        value: P(v); ``math.inf`` where loss or gradient is not finite.
        grad: Gradient of P, (N,).
        loss: F(v), weight decay included.
        loss_grad: Gradient of F, weight decay included, (N,).
        residual: 2-norm of ``grad``.
        monotone: Whether the identity is an optimal plan because the clouds moved by gradients of
            convex functions.
    """

    point: Tensor
    value: float
    grad: Tensor
    loss: float
    loss_grad: Tensor
    residual: float
    monotone: bool = False

    @property
    def is_finite(self) -> bool:
        """Whether the value can be compared."""
        return math.isfinite(self.value)
