"""How many evaluations a step may take where the user does not say."""

from __future__ import annotations

from torch_wprox.solvers.base import Solver

FULL = 100
"""Evaluations while the loss is one function: a step is solved well, and curvature carries over."""
BRIEF = 5
"""Evaluations on a minibatch: more would cost more and fit the minibatch, not the loss."""


def allowed(max_eval: int | None, is_same_loss: bool | None, solver: Solver) -> int:
    """Return how many closure evaluations a step may take.

    Args:
        max_eval: What the user said; None: follow the loss.
        is_same_loss: Whether the loss is the function of the last step; None: there was none.
        solver: One that does not work step by step on the loss (``is_local`` False: certified
            steps, convex maps) gets the full number always.

    Example:
        >>> from torch_wprox.solvers import LBFGS
        >>> [allowed(None, is_same, LBFGS()) for is_same in (None, True, False)]
        [100, 100, 5]
        >>> allowed(30, False, LBFGS())
        30
    """
    if max_eval is not None:
        return max_eval
    follows = getattr(solver, "is_local", True)
    return BRIEF if follows and is_same_loss is False else FULL
