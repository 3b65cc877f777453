"""What an optimizer refuses or warns about: options of a group, gradients that others touched."""

from __future__ import annotations

import math
import sys
import weakref
from collections.abc import Iterable
from types import TracebackType
from typing import Any

import torch
from torch import Tensor

from torch_wprox.arguments import as_number, checked_number

FOREIGN_GRADIENTS = (
    "parameters have gradients from before the step. A proximal step evaluates its closure several "
    "times and clears the gradients each time, so gradient accumulation (accumulate_grad_batches > "
    "1) solves another problem: compute the whole batch inside the closure. If backward() ran "
    "outside it, or for another optimizer, clear the gradients with zero_grad() before the step"
)

NO_GRADIENTS = "no gradients"
"""Key of the warning of a closure that leaves none."""


def checked_step_size(name: str, value: Any) -> float | Tensor:
    """Return ``value`` if it is a step size: a number or a 0-d tensor, finite and >= 0.

    Raises:
        TypeError: It is not a number.
        ValueError: It is negative, infinite or NaN, or a tensor of several elements.
    """
    if isinstance(value, Tensor) and value.numel() != 1:
        raise ValueError(f"Tensor {name} must be 1-element, got shape {tuple(value.shape)}")
    number = as_number(value)
    if number is None:
        raise TypeError(f"{name} must be a number >= 0, got {value!r}")
    if not (math.isfinite(number) and number >= 0):
        raise ValueError(f"{name} must be > 0 (or 0: no move), got {number!r}")
    return value if isinstance(value, Tensor) else number


def is_no_step(gamma: float, dtype: torch.dtype) -> bool:
    """Whether a step of size ``gamma`` moves nothing that ``dtype`` can store: 1/gamma overflows.

    Example:
        >>> is_no_step(1e-39, torch.float32), is_no_step(1e-39, torch.float64)
        (True, False)
    """
    return gamma == 0 or not 1.0 / gamma < torch.finfo(dtype).max


def chosen_step_size(gamma: float | None, lr: float | Tensor | None) -> float | Tensor:
    """Return the step size that the two names mean: ``gamma`` wins, then ``lr``, then 1.

    "Not given" is None and no special number: tools that write the arguments of an optimizer into a
    configuration file and read them back (LightningCLI) keep it.
    """
    if gamma is None and lr is not None:
        return checked_step_size("lr", lr)
    return checked_step_size("gamma", 1.0 if gamma is None else gamma)


def group_step_size(group: dict[str, Any]) -> dict[str, Any]:
    """Return a group whose dict may say ``gamma`` as one that says ``lr``.

    Raises:
        TypeError: ``gamma`` is not a number.
        ValueError: ``gamma`` is out of range, or ``lr`` is given as well and differs.
    """
    if "gamma" not in group:
        return group
    group = dict(group)
    gamma = checked_step_size("gamma", group.pop("gamma"))
    lr = checked_step_size("lr", group.setdefault("lr", gamma))
    if float(lr) != float(gamma):
        raise ValueError(
            f"a parameter group has gamma={gamma!r} and lr={lr!r}: they are two names of one step "
            "size, give one of them"
        )
    return group


def checked_weight_decay(value: Any) -> float:
    """Return ``value`` as a float if it is a finite number >= 0.

    Raises:
        TypeError: It is not a number.
        ValueError: It is out of range.
    """
    return checked_number(
        "weight_decay", value, "a finite number >= 0", lambda w: math.isfinite(w) and w >= 0
    )


def checked_groups(groups: Iterable[dict[str, Any]]) -> None:
    """Check what users and schedulers may have written into the groups since the last step.

    Raises:
        TypeError: A group's step size or weight decay is not a number.
        ValueError: A group has a key ``gamma``, or a step size or weight decay out of range.
    """
    for group in groups:
        if "gamma" in group:
            raise ValueError(
                f"a parameter group has gamma={group['gamma']!r} written into it: the step size is "
                'stored as group["lr"], write that one'
            )
        checked_step_size('gamma (stored as group["lr"])', group["lr"])
        if "weight_decay" in group:
            checked_weight_decay(group["weight_decay"])


def coarse_types_warning(parameters: Iterable[Tensor]) -> str | None:
    """Return a warning of parameters too coarse to store small moves: bfloat16 and float16.

    A step computes in float32, but what it accepts is rounded to the parameter's type.
    """
    coarse = {p.dtype for p in parameters if p.dtype.to_real().itemsize < 4}
    if not coarse:
        return None
    kinds = ", ".join(f"{d} (resolution {torch.finfo(d).eps / 2:.2g} of a weight)" for d in coarse)
    return (
        f"parameters are {kinds}: moves below that are lost when a step is stored, so small steps "
        'move nothing. Keep the weights in float32 and compute in bfloat16: precision="bf16-mixed" '
        "in Lightning, torch.autocast in plain torch"
    )


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

    def sees_foreign(self, parameters: Iterable[Tensor]) -> bool:
        """Whether a gradient is neither None nor zero nor the one that a step left."""
        return any(p.grad is not None and self._is_foreign(p.grad) for p in parameters)

    def _is_foreign(self, grad: Tensor) -> bool:
        left, version = self._left.get(id(grad), (None, -1))
        if left is not None and left() is grad and grad._version == version:
            return False
        return bool(grad.coalesce().values().any() if grad.is_sparse else grad.any())


class BackwardWatch:
    """Tells what a closure did to the gradients after backward() had made them.

    While it is entered a hook on every parameter notes the gradient that backward() leaves. One
    that is gone, another tensor or written to when the closure has returned is not the gradient of
    the loss any more: ``zero_grad()`` came last, or something clipped it.

    Args:
        parameters: Whose gradients are watched.
    """

    def __init__(self, parameters: Iterable[Tensor]) -> None:
        self._parameters = list(parameters)
        self._made: dict[int, tuple[Tensor, int]] = {}

    def __enter__(self) -> BackwardWatch:
        self._handles = [
            p.register_post_accumulate_grad_hook(self._note)  # type: ignore[no-untyped-call]
            for p in self._parameters
            if p.requires_grad
        ]
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for handle in self._handles:
            handle.remove()

    def _note(self, parameter: Tensor) -> None:
        if parameter.grad is not None:
            self._made[id(parameter)] = (parameter.grad, parameter.grad._version)

    def objection(self) -> tuple[str, str] | None:
        """Return the key and the text of a warning, None if all is as it should be."""
        if not any(p.requires_grad for p in self._parameters):
            return None
        if all(p.grad is None for p in self._parameters):
            how = (
                "clears the gradients after backward()" if self._made else "never calls backward()"
            )
            return NO_GRADIENTS, (
                f"the closure {how}, so no parameter has a gradient and nothing moves: it must "
                "clear the gradients first, then call loss.backward(), and return the loss"
            )
        touched = [p for p in self._parameters if self._is_touched(p)]
        if not touched:
            return None
        if not any(p.grad is not None and bool(p.grad.any()) for p in self._parameters):
            return NO_GRADIENTS, (
                "the closure sets the gradients to zero after backward(), so nothing moves: call "
                "zero_grad() before loss.backward()"
            )
        return "changed gradients", (
            f"the closure changes the gradients of {len(touched)} parameters after backward() "
            "(gradient clipping, gradient_clip_val in Lightning?). The inner solver of a proximal "
            "step needs the gradients of the loss as they are; changed ones belong to no function. "
            "No step size can diverge here: switch clipping off, a smaller gamma shortens the step"
        )

    def _is_touched(self, parameter: Tensor) -> bool:
        made, version = self._made.get(id(parameter), (None, -1))
        return made is not None and (parameter.grad is not made or made._version != version)


def callers_level() -> int:
    """The stacklevel of the first frame outside torch and this package: the user's line."""
    level, frame = 1, sys._getframe(1)
    while frame.f_back is not None:
        if frame.f_globals.get("__name__", "").split(".")[0] not in ("torch", "torch_wprox"):
            break
        level, frame = level + 1, frame.f_back
    return level
