"""Between the particles of a layer and the plain weights of its network."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from torch_wprox.layers import MeanFieldLayer


@torch.no_grad()
def set_neurons(
    layer: MeanFieldLayer,
    w: Tensor,
    alpha: Tensor,
    bias: Tensor | None,
    output_bias: Tensor | None,
) -> None:
    """See `MeanFieldLayer.set_neurons`."""
    m, d, k = layer.width, layer.in_features, layer.out_features
    factory = {"dtype": layer.particles.dtype, "device": layer.particles.device}
    w = _shaped("w", w, (m, d), **factory)
    alpha = torch.as_tensor(alpha)
    alpha = alpha.unsqueeze(1) if alpha.ndim == 1 and k == 1 else alpha
    alpha = _shaped("alpha", alpha, (m, k), **factory)
    for name, given, has in (
        ("bias", bias, layer.has_bias),
        ("output_bias", output_bias, layer.output_bias is not None),
    ):
        if (given is not None) != has:
            raise ValueError(
                f"{name} must {'be given' if has else 'be None'}: the layer was made with "
                f"{name}={has}"
            )
    if output_bias is not None:
        output_bias = _shaped("output_bias", output_bias, (k,), **factory)
    if bias is not None:
        w = torch.cat([w, _shaped("bias", bias, (m,), **factory).unsqueeze(1)], dim=1)
    if layer.alpha is not None and layer.output_index is not None:
        if bool((alpha != 0).sum(dim=1).gt(1).any()):
            raise ValueError(
                "alpha must have at most one entry per row that is not 0: frozen neurons feed "
                "one output; parameterization='joint' has no such limit"
            )
        index = alpha.abs().argmax(dim=1)
        weight = alpha.gather(1, index.unsqueeze(1)).squeeze(1)
        if layer.parameterization == "clouds":
            weight = torch.where(weight < 0, -1.0, 1.0)
        layer.output_index.copy_(index)
        layer.alpha.copy_(weight)
    layer.particles.copy_(layer.form.encode(w, alpha))
    if layer.output_bias is not None and output_bias is not None:
        layer.output_bias.copy_(output_bias)


@torch.no_grad()
def to_linear(layer: MeanFieldLayer) -> tuple[nn.Linear, nn.Linear]:
    """See `MeanFieldLayer.to_linear`."""
    w, a = layer.neurons()
    d, m, k = layer.in_features, layer.width, layer.out_features
    factory = {"device": w.device, "dtype": w.dtype}
    first = _linear(d, m, bias=layer.has_bias, **factory)
    second = _linear(m, k, bias=layer.output_bias is not None, **factory)
    first.weight.copy_(w[:, :d])
    second.weight.copy_((a * layer.scale).t())
    if layer.has_bias:
        first.bias.copy_(w[:, d])
    if layer.output_bias is not None:
        second.bias.copy_(layer.output_bias)
    return first, second


def checked_alpha(layer: MeanFieldLayer, value: Any) -> Tensor:
    """A new value of the frozen output weights, (m,), after its checks."""
    if layer.alpha is None:
        raise AttributeError(
            f"alpha trains in parameterization={layer.parameterization!r} as part of "
            "`particles`: use set_neurons(w, alpha)"
        )
    alpha = torch.as_tensor(value, dtype=layer.particles.dtype, device=layer.particles.device)
    if alpha.shape != (layer.width,):
        raise ValueError(
            f"alpha must have shape ({layer.width},), got {tuple(alpha.shape)}; output_index "
            "says which output each neuron feeds"
        )
    if layer.parameterization == "clouds" and bool((alpha.abs() != 1).any()):
        raise ValueError(
            "alpha must be 1 or -1 in parameterization='clouds', where particles are "
            "|alpha| w: use set_neurons(w, alpha), or parameterization='signed'"
        )
    return alpha.detach().clone()


def _shaped(name: str, value: Tensor, shape: tuple[int, ...], **factory: Any) -> Tensor:
    tensor = torch.as_tensor(value, **factory)
    if tensor.shape != shape:
        raise ValueError(f"{name} must have shape {shape}, got {tuple(tensor.shape)}")
    return tensor


def _linear(*sizes: int, **options: Any) -> nn.Linear:
    """A Linear with uninitialised weights: nothing is drawn from the global generator."""
    linear: nn.Linear = nn.utils.skip_init(nn.Linear, *sizes, **options)  # type: ignore[no-untyped-call]
    return linear
