"""Gradient descent on the prox objective, implicit in the distance, as in the note."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from torch_wprox.arguments import checked_number
from torch_wprox.objective import BudgetExhausted, Evaluation, Objective
from torch_wprox.report import Status
from torch_wprox.solvers.stopping import Stopping

# A step shorter than this times the longest useful one (m gamma) cannot change the point.
_SHORTEST = 1e-18


@dataclass(frozen=True)
class GradientDescent:
    """Inner gradient descent from V = W, with backtracking on P.

    One iteration is ``Objective.implicit_step``: (17)-(18) of the note solved for the new point.
    The step eta is halved until ``P(u) <= P(v) - decrease * <grad P(v), v - u>`` (Armijo) and grows
    after each success, so nothing has to be tuned.

    Args:
        step: First eta in units of m gamma (the implicit step saturates there), if that is shorter
            than the length that the last step saw, or in the first step than a move of length 1.
        growth: Factor of eta after an accepted step, >= 1.
        decrease: Armijo constant in (0, 1). A quadratic of curvature L accepts steps up to
            2 (1 - decrease)/L, so a constant near 0 would admit steps that only oscillate.

    Raises:
        ValueError: An option is out of its range.

    Example:
        >>> import torch
        >>> from torch_wprox import prox
        >>> solver = GradientDescent(growth=2.0)
        >>> W, loss = torch.zeros(4, 1), lambda V: (V - 2).square().mean()
        >>> V, report = prox(loss, W, 1.0, solver=solver)
        >>> V[0], report.objective < report.loss_before
        (tensor([1.3333]), True)
    """

    step: float = 1.0
    growth: float = 1.25
    decrease: float = 0.3

    name = "gd"

    def __post_init__(self) -> None:
        checked_number(
            "step",
            self.step,
            "a finite number > 0 (in units of m gamma)",
            lambda s: 0 < s < math.inf,
        )
        checked_number("growth", self.growth, "a finite number >= 1", lambda g: 1 <= g < math.inf)
        checked_number("decrease", self.decrease, "between 0 and 1", lambda c: 0 < c < 1)

    def minimize(
        self, objective: Objective, stopping: Stopping, memory: dict[str, Any] | None = None
    ) -> tuple[Status, dict[str, Any] | None]:
        """Descend until a rule of ``stopping`` holds, the budget ends or no step lowers P."""
        scale = 1.0 / objective.curvature
        eta = self.step * scale
        if memory is not None:
            eta = float(memory["eta"])
        else:
            eta = min(eta, objective.length or 1.0 / max(objective.start.residual, 1e-300))
        current = objective.begin
        try:
            while (status := stopping.check(objective, current)) is None:
                found = self._backtrack(objective, current, eta, _SHORTEST * scale)
                if found is None:
                    return Status.STALLED, None
                current, eta = found
                eta *= self.growth
        except BudgetExhausted:
            status = Status.MAX_EVAL
        return status, None if current is objective.begin else {"eta": eta}

    def _backtrack(
        self, objective: Objective, current: Evaluation, eta: float, shortest: float
    ) -> tuple[Evaluation, float] | None:
        """Return the first point of sufficient decrease and its eta, None below ``shortest``."""
        while eta > shortest:
            u = objective.implicit_step(current, eta)
            slope = (current.grad @ (current.point - u)).item()
            if slope <= 0.0:  # the point no longer moves at this precision
                return None
            trial = objective.evaluate(u)
            if objective.equals(trial.value, current.value):
                # At the floating-point floor of P only the residual can still tell progress.
                accepted = trial.residual <= 0.9 * current.residual
            else:
                accepted = trial.value <= current.value - self.decrease * slope
            if accepted:
                return trial, eta
            eta *= 0.5
        return None
