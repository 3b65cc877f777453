"""A lower bound of what training a two-layer ReLU network can reach, whoever trains it.

    F = R(z) + beta sum_i |w_i||a_i|,        z = sum_i relu(X w_i) a_i^T + c

is convex in the measure of neurons (Bach 2017; Pilanci & Ergen 2020). Its dual: for any output z'
with lam' = grad R(z') and max over |u| = 1 of |lam'^T relu(X u)| <= beta,

    R(z') - <lam', z' - c>  <=  min F,

because <lam', z - c> >= -beta sum_i |w_i||a_i| for every network, and R is convex. Where the output
bias c trains, R minimised over it takes the place of R, and 0 that of c.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from torch_wprox.certified.bound.output_bias import BiasedQuadratic, BiasedRisk
from torch_wprox.certified.bound.proof import tangents
from torch_wprox.certified.bound.relaxation import never
from torch_wprox.certified.bound.simplex_qp import Array, simplex_qp
from torch_wprox.certified.bound.spread import Tell
from torch_wprox.certified.problem.particle_problem import Risk
from torch_wprox.certified.problem.quadratic_model import (
    QuadraticRisk,
    has_kink,
    learn_quadratic,
    local_quadratic,
)
from torch_wprox.certified.responses.steepest import Steepest

_BISECTIONS = 30
_TIGHT = 1e-6
# Shares of the admissible multiple of a gradient: what is left is for its rounding, or for a
# minimiser of the loss that is only approximate.
_SMALLER = (1.0 - 1e-12, 1.0 - 1e-6, 0.99, 0.9, 0.5)

Model = QuadraticRisk | BiasedQuadratic
"""What stands for the loss between two evaluations."""


@dataclass(frozen=True)
class TrainingBound:
    """A bound of min F.

    Attributes:
        lower_bound: The bound.
        value: The lowest F of a network (of any width) met on the way.
        is_exact: Whether the bound is a proof.
        estimate: What the bound was estimated at before it was proved; None where directions are
            exact or nothing was proved.
    """

    lower_bound: float
    value: float
    is_exact: bool
    estimate: float | None = None


def training_bound(
    features: Tensor,
    offset: Tensor,
    risk: Risk,
    beta: float,
    start: Tensor,
    *,
    tolerance: float,
    max_iter: int,
    precision: float,
    exact_cells: int,
    proof_seconds: float = 0.0,
    tolerance_proof: float = 0.01,
    offset_stiffness: float | None = None,
    neurons: Tensor | None = None,
    tell: Tell = never,
) -> TrainingBound:
    """Bound min F by fully corrective conditional gradient on the path norm ball.

    Args:
        features: X (n, d).
        offset: c (k,), held; where it trains, where its search begins.
        risk: R and its gradient.
        beta: Weight of the path norm.
        start: Output (n, k) of the trained network, where the bound starts.
        tolerance: Gap at which to stop, relative.
        max_iter: Directions added at most.
        precision: Relative rounding error of the loss's gradient.
        exact_cells: See :class:`Steepest`.
        proof_seconds: Time for a proof where directions are searched; 0: keep the estimate.
        tolerance_proof: The proof stops when the steepest direction is known up to this share.
        offset_stiffness: mu, the bias trains at the price (mu/2)|c|^2; None: it is held.
        neurons: Input weights (m, d) of the trained network: no estimate is above its F.
        tell: Called every round with the lowest F so far and the bound; a true answer ends it.
    """
    steepest = Steepest(features, len(offset), exact_cells, neurons)
    biased: BiasedRisk | None = None
    model: Model
    if offset_stiffness is None:
        model = learn_quadratic(risk, start, precision)
    else:
        biased = BiasedRisk(risk, offset_stiffness, offset, precision)
        start, offset = start - offset, torch.zeros_like(offset)
        model = biased.learned(start)
        if not model.is_exact and has_kink(risk, model.model):
            return TrainingBound(-math.inf, math.inf, False)
        biased(start)
        biased.require_settled()
        risk = biased
    inner: Risk = model if model.is_exact else risk
    best, point = _feasible_bound(inner, model, steepest, beta, start, offset)
    empty = offset.expand_as(start)
    z = empty
    value, lam = inner(z)
    total = value
    # For the algorithm only, the bound does not use it: a loss that is never negative is minimised
    # by a network of path norm at most F/beta.
    radius = 2.0 * (abs(total) + abs(model.value)) / beta
    atoms = torch.zeros_like(empty).unsqueeze(0)
    prices = atoms.new_zeros(1)
    weights = np.ones(1)
    for _ in range(max_iter):
        if biased is not None and not model.is_exact:
            model = biased.modelled(z)
        elif not model.is_exact:
            model = local_quadratic(risk, z, value, lam, precision)
        bound, where = _feasible_bound(inner, model, steepest, beta, z, offset)
        if bound > best:
            best, point = bound, where
        if tell(total, best) or total - best <= tolerance * abs(total):
            break
        direction, _ = steepest(lam)
        steepest.know(direction)
        hidden = (features @ direction).clamp_min(0.0)
        q = hidden @ lam
        atom = -radius * hidden.unsqueeze(1) * (q / q.norm().clamp_min(1e-300))
        atoms = torch.cat([atoms, atom.unsqueeze(0)])
        prices = torch.cat([prices, prices.new_tensor([beta * radius])])
        before = np.append(weights, 0.0)
        target = _corrected(atoms + empty, prices, model, before)
        share, previous = 1.0, total
        while True:
            weights = before + share * (target - before)
            mixed = torch.from_numpy(weights).to(atoms)
            z = torch.einsum("j,jnk->nk", mixed, atoms) + empty
            value, lam = inner(z)
            total = value + float(mixed @ prices)
            if model.is_exact or total <= previous or share < 1e-6:
                break
            share *= 0.5
        kept = weights > 0
        kept[0] = True  # the empty network
        index = torch.from_numpy(kept).to(atoms.device)
        atoms, prices, weights = atoms[index], prices[index], weights[kept]
    if not steepest.is_exact and math.isfinite(best):
        # Directions found since may refute a bound of an early round: look with all of them.
        found = [_feasible_bound(inner, model, steepest, beta, at, offset) for at in (point, z)]
        best, point = max(found, key=lambda pair: pair[0])
    if biased is not None and not math.isfinite(best):
        biased.require_settled()
    if model.is_exact and math.isfinite(best):  # by the loss itself, not by the model of it
        value, lam = risk(point)
        best = value - float((lam * (point - offset)).sum())
        if biased is not None:
            biased.require_settled()
    if steepest.is_exact or proof_seconds <= 0:
        return TrainingBound(best, total, steepest.is_exact and math.isfinite(best))
    _, lam = risk(point)
    steepness = steepest.proved(lam, seconds=proof_seconds, tolerance=tolerance_proof)
    proved = _proved_bound(risk, model, features, beta, point, steepness, offset)
    return TrainingBound(proved, total, True, best)


def _proved_bound(
    risk: Risk,
    model: Model,
    features: Tensor,
    beta: float,
    z: Tensor,
    steepness: float,
    offset: Tensor,
) -> float:
    """Return a bound by a multiple of lam = grad R(z) that is proved to be admissible.

    A tangent of R with the slope lam' bounds F if max over |u| = 1 of |lam'^T relu(X u)| <= beta,
    and that maximum is at most s ``steepness`` + sum_t |lam' - s lam|_t |x_t|.
    """
    _, lam = risk(z)
    lengths = features.norm(dim=1)
    share = min(1.0, beta / max(steepness, 1e-300))
    best = -math.inf
    for smaller in _SMALLER:
        s = share * smaller
        below = tangents(risk, model, z, (1.0, s))[1]
        rest = float((below.slope - s * lam).norm(dim=1) @ lengths)
        if s * steepness + rest <= beta and _is_settled(risk):
            bound = below.intercept + float((below.slope * offset).sum())
            best = max(best, bound)
    return best


def _is_settled(risk: Risk) -> bool:
    """Whether the last multipliers of a risk with an output bias sum to what they must."""
    return not isinstance(risk, BiasedRisk) or risk.is_settled


def _corrected(outputs: Tensor, prices: Tensor, model: Model, weights: Array) -> Array:
    """Return the weights (J,) in the simplex that minimise the model plus the price."""
    moved = outputs - model.centre
    flat = moved.reshape(len(outputs), -1)
    Q = (flat @ model.hessian(moved).reshape(len(outputs), -1).T).cpu().numpy()
    c = (flat @ model.grad.reshape(-1) + prices).cpu().numpy()
    return simplex_qp(0.5 * (Q + Q.T), c, weights)


def _feasible_bound(
    risk: Risk,
    model: Model,
    steepest: Steepest,
    beta: float,
    z: Tensor,
    offset: Tensor,
) -> tuple[float, Tensor]:
    """Return R(z') - <lam', z' - c> and z' between z and the minimiser of the model.

    Towards the minimiser lam' shrinks (for a quadratic in proportion to the distance left), so that
    a feasible one exists on the way; the first is the best, up to the bisection. -inf without one.
    """
    target = model.minimizer()

    def at(share: float) -> tuple[float, float, Tensor]:
        point = z + share * (target - z)
        value, lam = risk(point)
        bound = value - float((lam * (point - offset)).sum())
        return steepest(lam)[1], bound if _is_settled(risk) else -math.inf, point

    size, bound, point = at(0.0)
    if size <= beta:
        return bound, point
    best: tuple[float, Tensor] = (-math.inf, z)
    low, high, share = 0.0, 1.0, 1.0 - beta / size * (1.0 - 1e-12)
    for _ in range(_BISECTIONS):
        size, bound, point = at(share)
        if size <= beta:
            high, best = share, (bound, point)
            if size >= beta * (1.0 - _TIGHT):
                break
        else:
            low = share
        share = 0.5 * (low + high)
    return best
