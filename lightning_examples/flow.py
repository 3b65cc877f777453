"""The gradient flow W' = -m grad F, by a Runge-Kutta method of fixed step."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from torch_wprox import MeanFieldLayer


def gradient_flow(
    layer: MeanFieldLayer, loss: Callable[[], Tensor], time: float, steps: int
) -> list[Tensor]:
    """Move the layer's particles along W' = -m grad F; return them at every step, steps + 1.

    The classical method of fourth order. Its step is fixed: a neuron crosses kinks of F, where
    methods that adapt their step come to a halt.

    Args:
        layer: The layer, at W(0); afterwards at W(time).
        loss: F at the layer's present parameters, 0-d.
        time: Length of the flow.
        steps: Number of steps.
    """

    def velocity(W: Tensor) -> Tensor:
        with torch.no_grad():
            layer.particles.copy_(W)
        return -layer.width * torch.autograd.grad(loss(), layer.particles)[0]

    W, h = layer.particles.detach().clone(), time / steps
    way = [W]
    for _ in range(steps):
        k1 = velocity(W)
        k2 = velocity(W + h / 2 * k1)
        k3 = velocity(W + h / 2 * k2)
        W = W + h / 6 * (k1 + 2 * (k2 + k3) + velocity(W + h * k3))
        way.append(W)
    with torch.no_grad():
        layer.particles.copy_(W)
    return way
