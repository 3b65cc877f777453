"""The default solver: a dense inverse Hessian in training, limited memory elsewhere."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from torch_wprox.arguments import checked_count
from torch_wprox.objective import Evaluation, Objective
from torch_wprox.report import Status
from torch_wprox.solvers.bfgs import BFGS, DenseInverse
from torch_wprox.solvers.lbfgs import LBFGS, LimitedInverse, history_of
from torch_wprox.solvers.line_search import WeakWolfe
from torch_wprox.solvers.quasi_newton import descend
from torch_wprox.solvers.stopping import Stopping


@dataclass(frozen=True)
class Auto:
    r"""BFGS up to 1000 numbers; in long steps up to ``dense_up_to``; LBFGS above.

    A matrix saves time in training, where the distance hardly matters and the curvature is that of
    the loss: on a stiff regression with 2751 numbers it needs half the evaluations of 200 pairs.
    Where the distance holds the particles back, 50 pairs reach the same objective sooner. A step
    counts as long where m gamma \|grad F(W)\|, the way that the distance alone would allow, is more
    than 10^4 times \|W\|; so do the steps that go on from its memory. Shorter steps of more than
    1000 numbers are those of BFGS as long as this takes no matrix, N/16 iterations, and of LBFGS
    with 50 pairs from then on (``python -m benchmarks.dense_or_limited``). A closure that takes
    longer than a few milliseconds deserves ``solver="bfgs"`` whatever N is.

    Args:
        dense_up_to: Largest N for BFGS.
        remember: What BFGS carries over and saves, as in :class:`BFGS`: None for its whole matrix,
            k for k pairs, 0 for nothing.

    Example:
        >>> import torch
        >>> from torch_wprox import prox
        >>> solver = Auto(dense_up_to=100)
        >>> W, loss = torch.zeros(4, 1), lambda V: (V - 2).square().mean()
        >>> V, report = prox(loss, W, 1.0, solver=solver)
        >>> V[0], report.objective < report.loss_before
        (tensor([1.3333]), True)
    """

    dense_up_to: int = 3000
    remember: int | None = None

    name = "auto"

    def __post_init__(self) -> None:
        checked_count("dense_up_to", self.dense_up_to, least=0)
        if self.remember is not None:
            checked_count("remember", self.remember, least=0)

    def minimize(
        self, objective: Objective, stopping: Stopping, memory: dict[str, Any] | None = None
    ) -> tuple[Status, dict[str, Any] | None]:
        """Minimise by the solver of the problem's size and of the step's length."""
        numbers = objective.anchor.numel()
        is_long = bool(memory and memory.get(_LONG)) or _reach(objective) > _FAR
        if numbers > self.dense_up_to:
            pairs = history_of(numbers)
            solver = LBFGS(history=pairs if is_long else min(_PAIRS, pairs))
            status, state = solver.minimize(objective, stopping, memory)
        elif is_long or numbers <= _ALWAYS_DENSE:
            bfgs = BFGS(remember=self.remember)
            status, state = bfgs.minimize(objective, stopping, memory)
        else:
            inverse = _WithoutMatrix(self.remember, objective, memory)
            status, state = descend(objective, stopping, inverse, WeakWolfe(), memory)
        return status, None if state is None else {**state, _LONG: is_long}


class _WithoutMatrix:
    """The inverse Hessian of BFGS until it would become a matrix, then that of the last pairs.

    Args:
        remember: As in :class:`Auto`.
        objective: P of this step.
        memory: What :meth:`state` gave at the end of the last step.
    """

    def __init__(
        self, remember: int | None, objective: Objective, memory: dict[str, Any] | None
    ) -> None:
        self._remember, self._objective = remember, objective
        self._inner: DenseInverse | LimitedInverse
        if memory is not None and "steps" in memory:
            self._inner = LimitedInverse(_PAIRS, objective, memory)
        else:
            if memory is not None and "distance_hessian" in memory:
                more = objective.distance_hessian() - memory["distance_hessian"]
                if bool((more > 0).any()):  # carrying H over would take a matrix
                    memory = None
            self._inner = DenseInverse(True, remember, objective, memory)

    @property
    def is_empty(self) -> bool:
        """Whether nothing is known."""
        return self._inner.is_empty

    def times(self, g: Tensor) -> Tensor:
        """Return H g, (N,)."""
        return self._inner.times(g)

    def update(self, before: Evaluation, after: Evaluation, t: float) -> None:
        """Take in one accepted iteration of length t."""
        self._inner.update(before, after, t)
        if isinstance(self._inner, DenseInverse) and self._inner.is_matrix_next:
            self._limit(self._inner)

    def forget(self) -> None:
        """Become what the last pairs say; when that was of no use, empty."""
        if isinstance(self._inner, DenseInverse):
            self._limit(self._inner)
        else:
            self._inner.forget()

    def _limit(self, dense: DenseInverse) -> None:
        """Go on with the last pairs of this step."""
        memory = None
        if (pairs := dense.recent()) is not None:
            S, Y = pairs
            memory = {"steps": S, "differences": Y - self._objective.distance_hessian() * S}
        self._inner = LimitedInverse(_PAIRS, self._objective, memory)

    def state(self) -> dict[str, Any] | None:
        """Return what may carry over to the next step."""
        state = self._inner.state()
        if state is None or self._remember is None or "steps" not in state:
            return state
        if self._remember == 0:
            return None
        return {name: state[name][-self._remember :] for name in ("steps", "differences")}


def _reach(objective: Objective) -> float:
    r"""Return \|grad F(W)/kappa\|/\|W\|, kappa = 1/(m gamma): the step without curvature of F."""
    kappa = objective.stiffness()
    gradient = objective.start.loss_grad
    way = gradient / (objective.curvature if kappa is None else kappa)
    length = torch.linalg.vector_norm(objective.anchor).item()
    return torch.linalg.vector_norm(way).item() / length if length > 0 else float("inf")


# Whether the steps are long, in a state.
_LONG = "long"
# From which reach on.
_FAR = 1e4
# Up to so many numbers a matrix costs next to nothing.
_ALWAYS_DENSE = 1000
# What L-BFGS keeps in short steps.
_PAIRS = 50
