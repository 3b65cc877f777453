"""Any optimizer of torch.optim as the inner solver, as Adam in the note."""

from __future__ import annotations

from typing import Any, final

import torch
from torch.optim import Optimizer

from torch_wprox.objective import BudgetExhausted, Objective
from torch_wprox.report import Status
from torch_wprox.solvers.stopping import Stopping


@final
class FirstOrder:
    """Inner iterations of a ``torch.optim`` optimizer on P from V = W, the step size decaying to 0.

    For comparison with the note, which ran 1e6 such iterations for each step. On a function with
    kinks it needs many more evaluations than the quasi-Newton solvers and ends higher.

    Args:
        optimizer: A class of torch.optim that steps without a closure.
        decay: Whether ``lr`` decays linearly to 0 over the evaluations of the step: at a kink a
            constant step size only oscillates.
        capped: Whether ``lr`` is at most ``max |grad F(W)| / curvature``, with the curvature of
            the distance term: no minimiser of a convex P is further away. For classes that move
            each number by about ``lr``, as Adam does.
        options: Options of the class, ``lr`` among them.

    Example:
        >>> FirstOrder(torch.optim.Adam, lr=1e-2).name
        'adam'
    """

    def __init__(
        self,
        optimizer: type[Optimizer],
        *,
        decay: bool = True,
        capped: bool = False,
        **options: Any,
    ) -> None:
        if not (isinstance(optimizer, type) and issubclass(optimizer, Optimizer)):
            raise ValueError(f"optimizer must be a class of torch.optim, got {optimizer!r}")
        self.optimizer = optimizer
        self.decay = decay
        self.capped = capped
        self.options = options
        self.name = optimizer.__name__.lower()

    def __repr__(self) -> str:
        flags = f"decay={self.decay}, capped={self.capped}"
        return f"FirstOrder({self.optimizer.__name__}, {flags}, **{self.options})"

    def minimize(
        self, objective: Objective, stopping: Stopping, memory: dict[str, Any] | None = None
    ) -> tuple[Status, dict[str, Any] | None]:
        """Iterate until a rule of ``stopping`` holds, the budget ends or P is not finite."""
        v = objective.begin.point.clone().requires_grad_()
        inner = self.optimizer([v], **self.options)
        first, budget = inner.param_groups[0]["lr"], objective.evaluations_left
        current = objective.begin
        if self.capped:
            first = min(first, float(current.grad.abs().max()) / objective.curvature)
        try:
            while (status := stopping.check(objective, current)) is None:
                if self.decay:
                    inner.param_groups[0]["lr"] = first * objective.evaluations_left / budget
                v.grad = current.grad.clone()
                inner.step()
                current = objective.evaluate(v.detach().clone())
                if not current.is_finite:
                    return Status.STALLED, None
        except BudgetExhausted:
            status = Status.MAX_EVAL
        return status, None


def adam() -> FirstOrder:
    """Return Adam as the note used it, with the better of the two step sizes measured."""
    return FirstOrder(torch.optim.Adam, lr=3e-2, capped=True)
