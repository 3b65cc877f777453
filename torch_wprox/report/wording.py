"""Numbers as a reader meets them."""

from __future__ import annotations


def counted(number: int, noun: str) -> str:
    """Return the number with its noun, as in "1 evaluation" and "2 evaluations"."""
    return f"{number} {noun}" + "s" * (number != 1)


def share_of(gap: float, bound: float) -> str:
    """Return the gap in per cent of the bound's size, as in "0.125%"."""
    return f"{gap / max(abs(bound), 1e-300):.3%}"
