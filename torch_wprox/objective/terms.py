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
        # (weight, 0-d tensor): F is the sum of the first kind, P of both.
        if self._quadratic is not None and not self._decays and not monotone:
            d_value, full_grad = self._quadratic.added(grad, x, settled=settled)
            residual, total, value = self._numbers(full_grad, [(1.0, loss)], [(1.0, d_value)])
            return Evaluation(v, value, full_grad, total, grad, residual)
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
        if self._agree is not alone:
            # Equal inputs give equal numbers on equal hardware only; one bit may end the loop of
            # one rank and leave the others waiting for it.
            local = torch.tensor([residual, *numbers], dtype=torch.float64)
            residual, *numbers = self._agree(local).tolist()
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
