"""P as a sum: decay and distances added to the loss and the gradient of the closure."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from torch_wprox.closure.ranks import Agree, alone
from torch_wprox.distances.quadratic import FlatQuadratic, Term
from torch_wprox.objective.block import Block
from torch_wprox.objective.evaluation import Evaluation
from torch_wprox.particles.flat import joined


class Terms:
    """The terms of P beside the closure's loss.

    Args:
        blocks: The blocks, in the order of the flat vector.
        anchor: W, (N,).
        agree: Makes the numbers that decide the same on all ranks.
    """

    def __init__(self, blocks: tuple[Block, ...], anchor: Tensor, agree: Agree) -> None:
        self._blocks, self._agree = blocks, agree
        # Squares of smaller numbers lose digits, or all of them.
        self._least_norm = torch.finfo(anchor.dtype).tiny ** 0.5 / torch.finfo(anchor.dtype).eps
        charted = any(block.chart is not None for block in blocks)
        self._quadratic = None if charted else _quadratic_of(blocks, anchor)
        self._decays = any(block.weight_decay for block in blocks)

    def at_anchor(self, anchor: Tensor, loss: Tensor, grad: Tensor) -> Evaluation:
        """Return P = F at the anchor, where quadratic distances and their gradients are 0."""
        if self._quadratic is None or self._decays:
            return self.assess(anchor, anchor, loss, grad)
        residual, value = self._numbers(grad, loss)
        return Evaluation(anchor, _comparable(value, residual), grad, value, grad, residual)

    def assess(
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
        if self._quadratic is not None and not self._decays and not monotone:
            weight, squares, full_grad = self._quadratic.added(grad, x, settled=settled)
            residual, total, distance = self._numbers(full_grad, loss, squares)
            value = _comparable(total + weight * distance, residual)
            return Evaluation(v, value, full_grad, total, grad, residual)
        # (weight, 0-d tensor): F is the sum of the first kind, P of both.
        loss_terms, distance_terms = [(1.0, loss)], []
        loss_parts, grad_parts = [], []
        for b in self._blocks:
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
        terms = loss_terms + distance_terms
        residual, *numbers = self._numbers(full_grad, *(t for _, t in terms))
        products = [weight * n for (weight, _), n in zip(terms, numbers, strict=True)]
        total = sum(products[: len(loss_terms)])
        value = _comparable(total + sum(products[len(loss_terms) :]), residual)
        return Evaluation(v, value, full_grad, total, loss_grad, residual, monotone)

    def _numbers(self, grad: Tensor, *terms: Tensor) -> list[float]:
        """Return |grad| and the 0-d ``terms``, with one device synchronisation for all of them."""
        norm = torch.linalg.vector_norm(grad)
        if grad.device.type == "cpu":  # reading one by one is cheaper than gathering
            numbers = [norm.item(), *[t.item() for t in terms]]
        else:
            gathered = [t.to(grad.device, torch.float64) for t in (norm, *terms)]
            numbers = torch.stack(gathered).tolist()
        if self._agree is not alone:
            # Equal inputs give equal numbers on equal hardware only; one bit may end the loop of
            # one rank and leave the others waiting for it.
            numbers = self._agree(torch.tensor(numbers, dtype=torch.float64)).tolist()
        if not self._least_norm < numbers[0] < math.inf:
            numbers[0] = scaled_norm(grad)
        return numbers


def _comparable(value: float, residual: float) -> float:
    """Return ``value``, infinity where it or the residual is not finite."""
    return value if math.isfinite(value) and math.isfinite(residual) else math.inf


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
