"""P as a solver sees it, with its budget."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from torch_wprox.closure.ranks import Agree, alone
from torch_wprox.closure.watch import Watch
from torch_wprox.objective.block import Block
from torch_wprox.objective.evaluation import Evaluation
from torch_wprox.objective.terms import Terms
from torch_wprox.particles.flat import joined
from torch_wprox.report import Bound

LossAndGrad = Callable[[Tensor], tuple[Tensor, Tensor]]
"""v (N,) -> loss (0-d) and gradient (N,) of the closure at v."""


class BudgetExhausted(Exception):
    """Raised by :meth:`Objective.evaluate` when ``max_eval`` is used up."""


class Objective:
    """P as a solver sees it, with its budget; remembers the best point evaluated.

    Args:
        blocks: The blocks, in the order of the flat vector.
        loss_and_grad: The closure as a function of the (projected) flat vector.
        anchor: W, (N,).
        loss: F at the anchor without weight decay (0-d), already evaluated.
        grad: Its gradient, (N,).
        budget: Evaluations that may still be made.
        agree: Makes the numbers that decide (residual, loss, distances) the same on all ranks.
        length: Step length of gradient descent on F that suited the last step; None: unknown.
        watch: Told of every evaluation; may end the step. None: nothing is told.

    Attributes:
        function: F, as given.
        agree: As given.
        start: The evaluation at the anchor.
        begin: Where a solver begins: the start, or the best point with its assignment renewed.
        best: The lowest finite evaluation so far; the step returns it.
        last: The evaluation at which the closure ran last, None if it ran elsewhere since.
        bound: What a global solver proved.
    """

    def __init__(
        self,
        blocks: tuple[Block, ...],
        loss_and_grad: LossAndGrad,
        anchor: Tensor,
        loss: Tensor,
        grad: Tensor,
        budget: int,
        agree: Agree = alone,
        length: float | None = None,
        watch: Watch | None = None,
    ) -> None:
        self.blocks = blocks
        self.length = length
        self.watch = Watch() if watch is None else watch
        self._budget = budget
        self.bound: Bound | None = None
        self.evaluations_left = budget
        self.curvature = min(block.curvature for block in blocks)
        self.function = loss_and_grad
        self.agree = agree
        self._rounding = 8 * torch.finfo(anchor.dtype).eps
        self._projects = not all(block.moves_freely for block in blocks)
        self._terms = Terms(blocks, anchor, agree)
        self.start = self.begin = self._terms.at_anchor(anchor, loss, grad)
        self.best = self.start
        self._lowest = self.start.value
        self.last: Evaluation | None = self.start

    @property
    def is_alone(self) -> bool:
        """Whether no other rank takes the same step."""
        return self.agree is alone

    @property
    def anchor(self) -> Tensor:
        """W, (N,)."""
        return self.start.point

    def count_evaluation(self) -> None:
        """Take one closure evaluation from the budget.

        Raises:
            BudgetExhausted: None is left.
        """
        if self.evaluations_left <= 0:
            raise BudgetExhausted
        self.evaluations_left -= 1
        self.last = None  # the closure is about to run elsewhere

    def project(self, v: Tensor) -> Tensor:
        """Return the points that ``v`` stands for: directions normalised, coarse types rounded."""
        if not self._projects:
            return v
        return joined([b.project(b.of(v)).reshape(-1) for b in self.blocks])

    def evaluate(
        self,
        v: Tensor,
        *,
        settled: bool = False,
        final: bool = False,
        monotone: bool = False,
    ) -> Evaluation:
        """Evaluate P at ``v`` (N,) by one run of the closure.

        Args:
            v: The point, (N,).
            settled: Whether the distances are those of fresh assignments, held ones being too long.
            final: Whether it is made even after the watch ended the step, for its answer.
            monotone: Whether every class of a cloud is the image of its anchors under the gradient
                of a convex function: then the identity is optimal, and nothing is assigned.

        Raises:
            BudgetExhausted: ``max_eval`` is used up, or the watch ended the step; nothing was
                evaluated.
        """
        if self.watch.has_ended and not final:
            raise BudgetExhausted
        self.count_evaluation()
        x = self.project(v)
        loss, grad = self.function(x)
        # A chart's projection of a gradient is no gradient.
        monotone = monotone and not self._projects
        evaluation = self._terms.assess(v, x, loss, grad, settled=settled, monotone=monotone)
        self.last = evaluation
        if self._is_better(evaluation):
            self.best = evaluation
        self._lowest = min(self._lowest, evaluation.value)
        if self.watch.is_needed:
            self.tell(evaluation.value, evaluation.residual)
        return evaluation

    def tell(
        self, value: float, residual: float = math.nan, lower_bound: float | None = None
    ) -> bool:
        """Tell the watch of a value of P; return whether the step has to end.

        Args:
            value: P at the last point, or at the last round of the global solver.
            residual: 2-norm of its gradient, NaN if it is not known.
            lower_bound: The bound so far; None: that of ``bound``.
        """
        if lower_bound is None and self.bound is not None:
            lower_bound = self.bound.lower_bound
        evaluation = self._budget - self.evaluations_left + 1  # the first was at the anchor
        return self.watch.note(evaluation, value, self.best.value, residual, lower_bound)

    def renew(self) -> bool:
        """Assign anew at the best point; return whether P is lower there, so that solving goes on.

        A solver that converged while an assignment was held has minimised an upper bound of P.
        """
        assigns = any(b.distance.assignment is not None for b in self.blocks)
        if self.best.monotone or self.evaluations_left < 2 or self.watch.has_ended or not assigns:
            return False
        x = self.project(self.best.point)
        distances = [b.distance.settle(b.of(x)).value.item() / (2 * b.gamma) for b in self.blocks]
        value = self.agree(
            torch.tensor(self.best.loss + sum(distances), dtype=torch.float64)
        ).item()
        if value >= self.best.value or self.equals(value, self.best.value):
            return False
        self.begin = self.evaluate(self.best.point)
        return True

    def stiffness(self) -> Tensor | None:
        """Return kappa = 1/(m gamma) of every number, (N,); None where it is the same for all."""
        if all(b.curvature == self.curvature for b in self.blocks):
            return None
        return joined([self.anchor.new_full((b.m * b.D,), b.curvature) for b in self.blocks])

    def distance_hessian(self) -> Tensor:
        """Return the diagonal of the distance term's Hessian, (N,): 1/(m gamma) if quadratic."""
        parts = [
            self.anchor.new_full((b.m * b.D,), b.curvature if b.distance.is_quadratic else 0.0)
            for b in self.blocks
        ]
        return joined(parts)

    def equals(self, a: float, b: float) -> bool:
        """Return whether two values of P differ by no more than their rounding."""
        return abs(a - b) <= self._rounding * max(abs(a), abs(b))

    def _is_better(self, e: Evaluation) -> bool:
        """Lower is better; between values that rounding cannot tell apart, the smaller residual.

        Near a minimum P is flat: at its lowest value to the last bit the point may still be off by
        the square root of the machine precision, which the residual sees.
        """
        if e.value < self._lowest and not self.equals(e.value, self._lowest):
            return True
        return (
            e.value <= self.start.value
            and self.equals(e.value, self._lowest)
            and e.residual < self.best.residual
        )

    def implicit_step(self, e: Evaluation, eta: float) -> Tensor:
        """Return argmin_u <grad F(v), u - v> + |u - v|^2/(2 eta) + d(u, W)/(2 gamma) + decay(u).

        Implicit in the distance and in the decay, so no ratio of eta and m gamma is stiff. For the
        assignment in force d/(2 gamma) is a quadratic with Hessian kappa I, kappa = 1/(m gamma),
        and (17)-(18) of the note, solved for the new point, is a damped gradient step on P,

            u = v - eta/(1 + eta (kappa + weight_decay)) grad P(v).

        A distance that is not quadratic (Sinkhorn, sliced) enters explicitly: without its kappa.
        """
        parts = []
        for b in self.blocks:
            stiffness = b.weight_decay + (b.curvature if b.distance.is_quadratic else 0.0)
            u = b.of(e.point) - (eta / (1.0 + eta * stiffness)) * b.of(e.grad)
            parts.append(b.project(u).reshape(-1))
        return joined(parts)
