"""Between the particles of a layer and the plain weights of its network, on bare tensors."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


def checked_neurons(
    w: Tensor,
    alpha: Tensor,
    bias: Tensor | None,
    output_bias: Tensor | None,
    *,
    sizes: tuple[int, int, int],
    has_bias: bool,
    has_output_bias: bool,
    like: Tensor,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Return the weights of a two-layer network in the shapes in which a layer encodes them.

    Args:
        w: (m, d) weights of the neurons.
        alpha: (m,) or (m, k) output weights.
        bias: (m,) biases of the neurons, or None.
        output_bias: (k,) bias of the output, or None.
        sizes: m, d, k.
        has_bias: Whether neurons have a bias.
        has_output_bias: Whether the output has one.
        like: A tensor of the dtype and device wanted.

    Returns:
        w with the bias as last column (m, d + has_bias), alpha (m, k), output bias (k,) or None.

    Raises:
        ValueError: A shape does not fit, a number is not finite, or a bias is
            missing or not wanted.
    """
    m, d, k = sizes
    factory = {"dtype": like.dtype, "device": like.device}
    w = _shaped("w", w, (m, d), **factory)
    alpha = torch.as_tensor(alpha)
    alpha = alpha.unsqueeze(1) if alpha.ndim == 1 and k == 1 else alpha
    alpha = _shaped("alpha", alpha, (m, k), **factory)
    for name, given, has in (
        ("bias", bias, has_bias),
        ("output_bias", output_bias, has_output_bias),
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
    return w, alpha, output_bias


def one_output_each(alpha: Tensor, *, unit: bool) -> tuple[Tensor, Tensor]:
    """Return the output that each neuron feeds (m,) and its weight there (m,).

    Args:
        alpha: (m, k) output weights.
        unit: Whether only the signs are kept, 1 or -1.

    Raises:
        ValueError: A neuron feeds several outputs.
    """
    if bool((alpha != 0).sum(dim=1).gt(1).any()):
        raise ValueError(
            "alpha must have at most one entry per row that is not 0: frozen neurons feed "
            "one output; parameterization='joint' has no such limit"
        )
    index = alpha.abs().argmax(dim=1)
    weight = alpha.gather(1, index.unsqueeze(1)).squeeze(1)
    return index, torch.where(weight < 0, -1.0, 1.0) if unit else weight


@torch.no_grad()
def linear_layers(
    w: Tensor, alpha: Tensor, *, has_bias: bool, output_bias: Tensor | None
) -> tuple[nn.Linear, nn.Linear]:
    """Return two new layers with second(relu(first(x))) = sum_i alpha_i relu(<w_i, x>) + c.

    Args:
        w: (m, d + has_bias) weights, the bias last.
        alpha: (m, k) output weights.
        has_bias: Whether the last column of ``w`` is a bias.
        output_bias: c, (k,), or None.
    """
    (m, columns), k = w.shape, alpha.shape[1]
    d = columns - has_bias
    factory = {"device": w.device, "dtype": w.dtype}
    first = _linear(d, m, bias=has_bias, **factory)
    second = _linear(m, k, bias=output_bias is not None, **factory)
    first.weight.copy_(w[:, :d])
    second.weight.copy_(alpha.t())
    if has_bias:
        first.bias.copy_(w[:, d])
    if output_bias is not None:
        second.bias.copy_(output_bias)
    return first, second


def checked_alpha(value: Any, *, width: int, like: Tensor, unit: bool) -> Tensor:
    """Return a new value of the frozen output weights, (m,), after its checks.

    Args:
        value: What was assigned.
        width: m.
        like: A tensor of the dtype and device wanted.
        unit: Whether only 1 and -1 are allowed.

    Raises:
        ValueError: The shape or a value does not fit.
    """
    alpha = torch.as_tensor(value, dtype=like.dtype, device=like.device)
    if alpha.shape != (width,):
        raise ValueError(
            f"alpha must have shape ({width},), got {tuple(alpha.shape)}; output_index "
            "says which output each neuron feeds"
        )
    if unit and bool((alpha.abs() != 1).any()):
        raise ValueError(
            "alpha must be 1 or -1 in parameterization='clouds', where particles are "
            "|alpha| w: use set_neurons(w, alpha), or parameterization='signed'"
        )
    return alpha.detach().clone()


def _shaped(name: str, value: Tensor, shape: tuple[int, ...], **factory: Any) -> Tensor:
    tensor = torch.as_tensor(value, **factory)
    if tensor.shape != shape:
        raise ValueError(f"{name} must have shape {shape}, got {tuple(tensor.shape)}")
    if not bool(tensor.isfinite().all()):
        raise ValueError(f"{name} must be finite, got NaN or infinity in it")
    return tensor


def _linear(*sizes: int, **options: Any) -> nn.Linear:
    """A Linear with uninitialised weights: nothing is drawn from the global generator."""
    linear: nn.Linear = nn.utils.skip_init(nn.Linear, *sizes, **options)  # type: ignore[no-untyped-call]
    return linear
