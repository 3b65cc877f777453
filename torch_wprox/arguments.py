"""Arguments that are numbers, checked alike everywhere: an error names argument and value."""

from __future__ import annotations

from collections.abc import Callable
from numbers import Integral, Real
from typing import Any, SupportsFloat

import torch
from torch import Tensor


def checked_count(name: str, value: Any, least: int = 1) -> int:
    """Return ``value`` as an int if it is an integer >= ``least``, NumPy's included.

    Raises:
        ValueError: It is not.

    Example:
        >>> checked_count("max_eval", 5)
        5
    """
    if isinstance(value, bool) or not isinstance(value, Integral) or value < least:
        raise ValueError(f"{name} must be an integer >= {least}, got {value!r}")
    return int(value)


def checked_number(name: str, value: Any, needs: str, holds: Callable[[float], bool]) -> float:
    """Return ``value`` as a float if it is one real number, NumPy's or a tensor's included.

    Args:
        name: Of the argument.
        value: What was given.
        needs: What it must be, in words: "a number > 0".
        holds: Whether a number is that; no NaN may be.

    Raises:
        TypeError: It is not one real number.
        ValueError: It is out of range.

    Example:
        >>> checked_number("blur", 0.05, "a number > 0", lambda blur: blur > 0)
        0.05
    """
    number = as_number(value)
    if number is None:
        raise TypeError(f"{name} must be {needs}, got {value!r}")
    if not holds(number):
        raise ValueError(f"{name} must be {needs}, got {number!r}")
    return number


def checked_flag(name: str, value: Any) -> bool:
    """Return ``value`` as a bool if it is True or False, NumPy's and 0 and 1 included.

    Raises:
        TypeError: It is something else, true or not.

    Example:
        >>> checked_flag("bias", True)
        True
    """
    if isinstance(value, bool) or (isinstance(value, Integral) and value in (0, 1)):
        return bool(value)
    if getattr(getattr(value, "dtype", None), "kind", "") == "b" and value.shape == ():
        return bool(value)
    raise TypeError(f"{name} must be True or False, got {value!r}")


def as_number(value: Any) -> float | None:
    """Return ``value`` as a float, None if it is not one real number (strings and bools are not).

    Example:
        >>> as_number(torch.tensor(0.5)), as_number("0.5"), as_number(True)
        (0.5, None, None)
    """
    if isinstance(value, Tensor):
        real = value.numel() == 1 and not value.is_complex() and value.dtype != torch.bool
        return float(value) if real else None
    if isinstance(value, bool) or not isinstance(value, Real | SupportsFloat):
        return None
    if isinstance(value, Real):
        return float(value)
    # NumPy's arrays are no numbers by their type: one without axes is.
    return float(value) if getattr(value, "shape", None) == () and _is_real(value) else None


def _is_real(array: Any) -> bool:
    return getattr(getattr(array, "dtype", None), "kind", "") in "iuf"
