"""The prox objective P(V) = F(V) + sum_c d_c(V, W)/(2 gamma_c) on one flat vector.

Everything that an optimizer or :func:`torch_wprox.prox` moves is one vector ``v`` of ``N`` numbers,
cut into blocks: a cloud of m particles in R^D, or a plain tensor, which is a cloud of one particle.
A solver sees only :class:`Objective`; it knows neither the closure nor the distance.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from torch_wprox.closure.ranks import Agree, alone
from torch_wprox.closure.watch import Watch
from torch_wprox.distances.base import AnchoredDistance
from torch_wprox.distances.quadratic import FlatQuadratic, Term
from torch_wprox.particles.flat import joined
from torch_wprox.report import Bound

LossAndGrad = Callable[[Tensor], tuple[Tensor, Tensor]]
"""v (N,) -> loss (0-d) and gradient (N,) of the closure at v."""


class BudgetExhausted(Exception):
    """Raised by :meth:`Objective.evaluate` when ``max_eval`` is used up."""


class Chart(Protocol):
    """Coordinates in which a block is a manifold, as directions on a sphere."""

    def project(self, V: Tensor) -> Tensor:
        """Return the point (m, D) of the manifold that ``V`` (m, D) stands for."""

    def cotangent(self, V: Tensor, g: Tensor) -> Tensor:
        """Return the gradient (m, D) at ``V`` of f(project(V)) where f has the gradient ``g``."""


@dataclass(frozen=True)
class Block:
    """A cloud or a plain tensor: rows ``start : start + m*D`` of the flat vector.

    Attributes:
        start: Offset in the flat vector.
        m: Number of particles, each of mass 1/m.
        D: Numbers per particle.
        gamma: Step size; d/(2 gamma) enters P.
        weight_decay: F gets (weight_decay/2)|V|^2.
        distance: d(., W) with the anchor inside.
        is_cloud: False for a plain tensor, which is never exchanged nor counted as a particle.
        classes: (m,) labels, equal labels are exchangeable; None: all are.
        chart: Coordinates on a manifold, None in a Euclidean space.
        stored_as: Type of the parameters where it is coarser than that of the computation: the
            closure sees rounded positions, so that d must be measured at these.
    """

    start: int
    m: int
    D: int
    gamma: float
    weight_decay: float
    distance: AnchoredDistance
    is_cloud: bool
    classes: Tensor | None = None
    chart: Chart | None = None
    stored_as: torch.dtype | None = None

    @property
    def curvature(self) -> float:
        """1/(m gamma), the Hessian scale of d/(2 gamma)."""
        return 1.0 / (self.m * self.gamma)

    def of(self, v: Tensor) -> Tensor:
        """Return the block's (m, D) view of a flat vector (N,)."""
        size = self.m * self.D
        if v.numel() != size:
            v = v[self.start : self.start + size]
        return v.view(self.m, self.D)

    def project(self, V: Tensor) -> Tensor:
        """Return the point (m, D) that ``V`` (m, D) stands for."""
        if self.chart is not None:
            V = self.chart.project(V)
        return V if self.stored_as is None else V.to(self.stored_as).to(V.dtype)

    @property
    def moves_freely(self) -> bool:
        """Whether every V stands for itself."""
        return self.chart is None and self.stored_as is None


@dataclass(frozen=True)
class Evaluation:
    """P and F at one point.

    Attributes:
        point: v, (N,).
        value: P(v); ``math.inf`` where loss or gradient is not finite.
        grad: Gradient of P, (N,).
        loss: F(v), weight decay included.
        loss_grad: Gradient of F, weight decay included, (N,).
        residual: 2-norm of ``grad``.
        monotone: Whether the identity is an optimal plan because the clouds moved by gradients of
            convex functions.
    """

    point: Tensor
    value: float
    grad: Tensor
    loss: float
    loss_grad: Tensor
    residual: float
    monotone: bool = False

    @property
    def is_finite(self) -> bool:
        """Whether the value can be compared."""
        return math.isfinite(self.value)


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
        # Squares of smaller numbers lose digits, or all of them.
        self._least_norm = torch.finfo(anchor.dtype).tiny ** 0.5 / torch.finfo(anchor.dtype).eps
        self._projects = not all(block.moves_freely for block in blocks)
        charted = any(block.chart is not None for block in blocks)
        self._quadratic = None if charted else _quadratic_of(blocks, anchor)
        self._decays = any(block.weight_decay for block in blocks)
        self.start = self.begin = self._assess(anchor, anchor, loss, grad)
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
        evaluation = self._assess(v, x, loss, grad, settled=settled, monotone=monotone)
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

    def _assess(
        self,
        v: Tensor,
        x: Tensor,
        loss: Tensor,
        grad: Tensor,
        *,
        settled: bool = False,
        monotone: bool = False,
    ) -> Evaluation:
        """Add decay and distances to the closure's loss and gradient at ``x = project(v)``."""
        # (weight, 0-d tensor): F is the sum of the first kind, P of both.
        if self._quadratic is not None and not self._decays and not monotone:
            d_value, full_grad = self._quadratic.added(grad, x, settled=settled)
            residual, total, value = self._numbers(full_grad, [(1.0, loss)], [(1.0, d_value)])
            return Evaluation(v, value, full_grad, total, grad, residual)
        loss_terms, distance_terms = [(1.0, loss)], []
        loss_parts, grad_parts = [], []
        for b in self.blocks:
            V, g = b.of(x), b.of(grad)
            if b.weight_decay:
                g = g + b.weight_decay * V
                loss_terms.append((0.5 * b.weight_decay, (V * V).sum()))
            if monotone:
                d = b.distance.monotone(V)
            else:
                d = b.distance.settle(V) if settled else b.distance.evaluate(V)
            distance_terms.append((0.5 / b.gamma, d.value))
            p = torch.add(g, d.gradient, alpha=0.5 / b.gamma)
            if b.chart is not None:
                raw = b.of(v)
                g, p = b.chart.cotangent(raw, g), b.chart.cotangent(raw, p)
            loss_parts.append(g.reshape(-1))
            grad_parts.append(p.reshape(-1))
        loss_grad, full_grad = joined(loss_parts), joined(grad_parts)
        residual, total, value = self._numbers(full_grad, loss_terms, distance_terms)
        return Evaluation(v, value, full_grad, total, loss_grad, residual, monotone)

    def _numbers(
        self,
        grad: Tensor,
        loss_terms: list[tuple[float, Tensor]],
        distance_terms: list[tuple[float, Tensor]],
    ) -> tuple[float, float, float]:
        """Return |grad P|, F and P, with one device synchronisation for all of them."""
        terms = loss_terms + distance_terms
        tensors = [torch.linalg.vector_norm(grad), *(t for _, t in terms)]
        if grad.device.type == "cpu":  # reading one by one is cheaper than gathering
            residual, *numbers = [t.item() for t in tensors]
        else:
            residual, *numbers = torch.stack([t.double() for t in tensors]).tolist()
        if self.agree is not alone:
            # Equal inputs give equal numbers on equal hardware only; one bit may end the loop of
            # one rank and leave the others waiting for it.
            local = torch.tensor([residual, *numbers], dtype=torch.float64)
            residual, *numbers = self.agree(local).tolist()
        if not self._least_norm < residual < math.inf:
            residual = scaled_norm(grad)
        products = [weight * n for (weight, _), n in zip(terms, numbers, strict=True)]
        loss = sum(products[: len(loss_terms)])
        value = loss + sum(products[len(loss_terms) :])
        if not (math.isfinite(value) and math.isfinite(residual)):
            value = math.inf
        return residual, loss, value


def _quadratic_of(blocks: tuple[Block, ...], anchor: Tensor) -> FlatQuadratic | None:
    """Return the distance term as one quadratic, None if a distance is none or has no target."""
    if not all(b.distance.is_quadratic and hasattr(b.distance, "target") for b in blocks):
        return None
    return FlatQuadratic([Term(b.start, b.m, b.D, b.curvature, b.distance) for b in blocks], anchor)


def scaled_norm(grad: Tensor) -> float:
    """Return the 2-norm of a gradient whose squares overflow or vanish."""
    largest = grad.abs().max().item()
    if not 0 < largest < math.inf:
        return float(largest)
    return float(largest * torch.linalg.vector_norm(grad / largest).item())
