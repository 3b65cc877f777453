"""What an optimizer refuses or warns about before a step: step sizes, gradients left by others."""

from __future__ import annotations

import math
import warnings
import weakref
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor


def checked_step_size(name: str, value: Any) -> float | Tensor:
    """Return ``value`` if it is a step size: a number or a 0-d tensor, finite and >= 0.

    Raises:
        TypeError: It is not a number.
        ValueError: It is negative, infinite or NaN, or a tensor of several elements.
    """
    if isinstance(value, Tensor) and value.numel() != 1:
        raise ValueError(f"Tensor {name} must be 1-element, got shape {tuple(value.shape)}")
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise TypeError(f"{name} must be a number >= 0, got {value!r}") from None
    if not (math.isfinite(number) and number >= 0):
        raise ValueError(f"{name} must be > 0 (or 0: no move), got {number!r}")
    return value if isinstance(value, Tensor) else number


def chosen_step_size(gamma: float | None, lr: float | Tensor | None) -> float | Tensor:
    """Return the step size that the two names mean: ``gamma`` wins, then ``lr``, then 1.

    "Not given" is None and no special number: tools that write the arguments of an optimizer into a
    configuration file and read them back (LightningCLI) keep it.
    """
    if gamma is None and lr is not None:
        return checked_step_size("lr", lr)
    return checked_step_size("gamma", 1.0 if gamma is None else gamma)


def checked_weight_decay(value: Any) -> float:
    """Return ``value`` if it is a finite number >= 0.

    Raises:
        ValueError: It is not.
    """
    if not (isinstance(value, int | float) and math.isfinite(value) and value >= 0):
        raise ValueError(f"weight_decay must be a finite number >= 0, got {value!r}")
    return float(value)


def checked_groups(groups: Iterable[dict[str, Any]]) -> None:
    """Check what users and schedulers may have written into the groups since the last step.

    Raises:
        ValueError: A group has a key ``gamma`` or a step size that is none.
    """
    for group in groups:
        if "gamma" in group:
            raise ValueError(
                f"a parameter group has gamma={group['gamma']!r} written into it: the step size is "
                'stored as group["lr"], write that one'
            )
        checked_step_size('gamma (stored as group["lr"])', group["lr"])


def warn_if_coarse(parameters: Iterable[Tensor]) -> bool:
    """Warn of parameters whose type is too coarse to store small moves: bfloat16 and float16.

    A step computes in float32, but what it accepts is rounded to the parameter's type.
    """
    coarse = {p.dtype for p in parameters if p.dtype.to_real().itemsize < 4}
    for dtype in coarse:
        warnings.warn(
            f"parameters are {dtype}: moves below its resolution, {torch.finfo(dtype).eps / 2:.2g} "
            "of a weight, are lost when a step is stored, so small steps move nothing. Keep the "
            'weights in float32 and compute in bfloat16: precision="bf16-mixed" in Lightning, '
            "torch.autocast in plain torch",
            stacklevel=5,
        )
    return bool(coarse)


class GradientWatch:
    """Tells gradients that a step left behind from those that someone added since."""

    def __init__(self) -> None:
        self._left: dict[int, tuple[weakref.ref[Tensor], int]] = {}

    def remember(self, parameters: Iterable[Tensor]) -> None:
        """Note the gradients that a step leaves on ``parameters``."""
        self._left = {
            id(p.grad): (weakref.ref(p.grad), p.grad._version)
            for p in parameters
            if p.grad is not None
        }

    def warn_if_foreign(self, parameters: Iterable[Tensor]) -> bool:
        """Warn of a gradient that is neither None nor zero nor the one that a step left."""
        foreign = any(p.grad is not None and self._is_foreign(p.grad) for p in parameters)
        if foreign:
            warnings.warn(
                "parameters have gradients from before the step. A proximal step evaluates its "
                "closure several times and clears the gradients each time, so gradient "
                "accumulation (accumulate_grad_batches > 1) solves another problem: compute the "
                "whole batch inside the closure. If backward() ran outside it, or for "
                "another optimizer, clear the gradients with zero_grad() before the step",
                stacklevel=5,
            )
        return foreign

    def _is_foreign(self, grad: Tensor) -> bool:
        left, version = self._left.get(id(grad), (None, -1))
        if left is not None and left() is grad and grad._version == version:
            return False
        return bool(grad.coalesce().values().any() if grad.is_sparse else grad.any())
