"""Two Linear layers with a ReLU between them, seen as one MeanFieldLayer while a closure runs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from torch_wprox.layers.mean_field import MeanFieldLayer

Network = MeanFieldLayer | nn.Sequential | tuple[nn.Linear, nn.Linear]
"""What a certificate can be made of."""


def linear_pair(network: object) -> tuple[nn.Linear, nn.Linear]:
    """Return the two Linear layers of a network.

    Args:
        network: ``nn.Sequential(Linear, ReLU, Linear)``, or the two Linear layers.

    Raises:
        TypeError: It is neither.
    """
    if isinstance(network, nn.Sequential):
        parts = list(network)
        if len(parts) == 3 and isinstance(parts[1], nn.ReLU):
            network = (parts[0], parts[2])
    if isinstance(network, list | tuple) and len(network) == 2:
        first, second = network
        if isinstance(first, nn.Linear) and isinstance(second, nn.Linear):
            return first, second
    raise TypeError(
        "layer must be a MeanFieldLayer, nn.Sequential(Linear, ReLU, Linear) or a pair of Linear "
        f"layers, got {type(network).__name__}: take those layers out of a larger network, as "
        "(first, second), or make one by MeanFieldLayer.from_linear(first, second)"
    )


@contextmanager
def as_layer(network: object) -> Iterator[MeanFieldLayer]:
    """Let a MeanFieldLayer answer in the place of two Linear layers.

    Inside the context whatever calls the second Linear gets the layer's output on the input that
    the first one had; the modules' own weights and gradients are not touched.

    Raises:
        TypeError: See :func:`linear_pair`.
        ValueError: Between the two layers is something else than a ReLU, or the loss depends on
            their weights by another way than their output.
    """
    first, second = linear_pair(network)
    layer = MeanFieldLayer.from_linear(first, second)
    if layer.output_bias is not None:
        layer.output_bias.requires_grad_(second.bias.requires_grad)
    parameters = [p for module in (first, second) for p in module.parameters()]
    gradients = [p.grad for p in parameters]
    for p in parameters:
        p.grad = None
    inputs: list[Tensor] = []

    def remember(module: nn.Module, arguments: tuple[Any, ...]) -> None:
        inputs[:] = [arguments[0]]

    def answer(module: nn.Module, arguments: tuple[Any, ...], output: Tensor) -> Tensor:
        (x,) = inputs
        with torch.no_grad():
            expected = torch.relu(first.forward(x))
            if not torch.allclose(arguments[0], expected):
                raise ValueError(
                    "the second Linear layer must see the ReLU of the first one: other "
                    "activations, dropout (call .eval() first) and layers between have no bound"
                )
        found: Tensor = layer(x)
        return found

    handles = [
        first.register_forward_pre_hook(remember),
        second.register_forward_hook(answer),
    ]
    try:
        yield layer
        if any(p.grad is not None and bool(p.grad.count_nonzero() > 0) for p in parameters):
            raise ValueError(
                "the loss depends on the weights in another way than through the network's "
                "output (a penalty inside the closure?): give weight_decay or beta instead"
            )
    finally:
        for handle in handles:
            handle.remove()
        for p, gradient in zip(parameters, gradients, strict=True):
            p.grad = gradient
