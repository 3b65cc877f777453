"""From an affine function below the loss to a number below the step: the bound, rounding included.

    R(z) >= r + <lam, z>   =>   P(V) >= r + min over V of [<lam, z(V)> + price(V)]

A tangent of R is such a function, and so is every convex combination of tangents.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from torch_wprox.certified.problem.particle_problem import Configuration, ParticleProblem
from torch_wprox.certified.responses.best_response import BestResponse

# Sums of rounded terms err by a few units in the last place of the sum of their sizes: the closure
# makes 0.7 of them in what was measured (float32, 9 losses, up to 14 samples).
_ULPS = 8.0


@dataclass(frozen=True)
class Minorant:
    """z -> intercept + <slope, z>, below R everywhere if R is convex.

    Attributes:
        intercept: r.
        slope: lam, (n, k).
        size: Sum of the sizes of the numbers that r is a difference of.
    """

    intercept: float
    slope: Tensor
    size: float

    @classmethod
    def tangent(cls, z: Tensor, value: float, lam: Tensor) -> Minorant:
        """Return the tangent of R at z, from R(z) and its gradient there."""
        parts = lam * z
        return cls(value - float(parts.sum()), lam, abs(value) + float(parts.abs().sum()))

    @classmethod
    def combined(cls, weights: Sequence[float], parts: Sequence[Minorant]) -> Minorant:
        """Return the convex combination of functions below R."""
        pairs = list(zip(weights, parts, strict=True))
        slope = torch.stack([w * p.slope for w, p in pairs]).sum(0)
        sizes = sum(w * p.size for w, p in pairs)
        return cls(sum(w * p.intercept for w, p in pairs), slope, sizes)


def lower_bound(
    problem: ParticleProblem,
    respond: BestResponse,
    below: Minorant,
    precision: float,
    known: Sequence[Configuration] = (),
) -> float:
    """Return a number below P, less what rounding can have added to it.

    The rounding term is 8 units in the last place of the closure's numbers times their sizes,
    |R| + sum |lam| (|z| + sum_i |psi_i|), and 8 of float64 times those of the prices: a best
    response is chosen among values that are differences of (kappa/2)|W|^2 and (kappa/2)|b|^2.

    Args:
        problem: The particles.
        respond: Their best responses.
        below: Affine function below R.
        precision: Relative rounding error of the closure's numbers.
        known: Configurations met: a searched response is never worse than these, so that a bound
            above what they attain shows that R is not convex, not that the search missed.
    """
    answer = respond(below.slope)
    if not answer.value > -torch.inf:
        return -torch.inf
    lowest = min([answer.value, *(linear_value(problem, below.slope, x) for x in known)])
    return below.intercept + lowest - rounding(problem, below, answer.configuration, precision)


def rounding(
    problem: ParticleProblem, below: Minorant, b: Configuration, precision: float
) -> float:
    """Return what rounding can have added to the bound of best responses b."""
    hidden = problem.responses(b.points).abs().sum(0)  # (n k,)
    outputs = float(below.slope.abs().flatten() @ hidden)
    outputs += float(below.slope.abs().sum(0) @ b.offset.abs())
    squares = float(problem.anchors.square().sum() + b.points.square().sum())
    prices = problem.stiffness * squares + abs(problem.price(b))
    found = _ULPS * precision * (below.size + outputs)
    return found + _ULPS * torch.finfo(torch.float64).eps * prices


def linear_value(problem: ParticleProblem, lam: Tensor, x: Configuration) -> float:
    """Return <lam, z(x)> + price(x)."""
    return float((lam * problem.output(x.points, x.offset)).sum()) + problem.price(x)
