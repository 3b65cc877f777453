"""Conditional gradient in the space of measures, fully corrective: the step, solved globally.

An atom is a configuration: all particles' best responses to one loss gradient. Mixing atoms with
weights w spreads every particle over several positions; outputs and prices mix linearly, so

    min over w in the simplex   R(sum_j w_j z_j) + sum_j w_j c_j

is convex, and so is the limit over all atoms, whose value is a lower bound of P.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from torch_wprox.certified.bound.mixture import Mixture, Relaxed
from torch_wprox.certified.problem.particle_problem import Configuration, ParticleProblem, Risk
from torch_wprox.certified.problem.quadratic_model import QuadraticRisk
from torch_wprox.certified.responses.best_response import BestResponse, Response
from torch_wprox.objective import BudgetExhausted

# Configurations kept for rounding.
_POOL = 60
# Where best responses are searched: rounds without a gap this much smaller before the bound is
# confirmed, and how often it is.
_NEARER, _PATIENCE, _CONFIRMATIONS = 0.9, 10, 8
# Rounds of searches, at least; more while features x particles x coefficients are fewer than so.
_ROUNDS, _NUMBERS = 20, 300_000_000


def conditional_gradient(
    problem: ParticleProblem,
    respond: BestResponse,
    risk: Risk,
    model: QuadraticRisk,
    relearn: Callable[[Tensor, float, Tensor], QuadraticRisk],
    atoms: list[Configuration],
    *,
    tolerance: float,
    max_iter: int,
    tell: Callable[[float, float], bool],
) -> Relaxed:
    """Solve the relaxed step by fully corrective conditional gradient.

    With z, lam = grad R(z), price c and best responses b at hand,

        gap = <lam, z> + c - sum_i [<lam, psi_i(b_i)> + cost_i(b_i)] >= 0,

    and R(z) + c - gap is a lower bound of the relaxed value, hence of P.

    Args:
        problem: The particles.
        respond: Their best responses.
        risk: R and its gradient; its own model if the loss is a quadratic.
        model: Second-order model of R.
        relearn: (z, R(z), grad R(z)) -> a new model, for losses that are not quadratics.
        atoms: Where to start; the first has all the weight.
        tolerance: Gap at which to stop, relative to the value.
        max_iter: Iterations; fewer where answers are searched for many particles and samples.
        tell: Called at every iteration with value and bound; a true answer ends it.

    Returns:
        The mixture with its bound.
    """
    mixture = Mixture(problem, atoms)
    z = mixture.output
    value, lam = risk(z)
    bounds = _Bounds(respond, tolerance, lam, z)
    pool: list[Configuration] = []
    rounds = max_iter if respond.is_exact else min(max_iter, _rounds(problem))
    for left in reversed(range(rounds)):
        total = value + mixture.price
        response = bounds.response(total, value, lam, z, is_last=not left)
        if tell(total, bounds.best) or bounds.are_final(total):
            break
        mixture.add(response.configuration)
        pool.append(response.configuration)
        if model.is_exact:
            mixture.weights = mixture.corrected(model)
            value, lam = risk(mixture.output)
        else:
            before = mixture.weights
            try:
                value, lam, model = _corrected(mixture, risk, model, relearn, value, lam)
            except BudgetExhausted:
                mixture.weights = before
                break
        mixture.keep(mixture.weights > 0)
        z = mixture.output
    return Relaxed(
        mixture.atoms,
        torch.from_numpy(mixture.weights).to(z),
        z,
        value + mixture.price,
        bounds.best,
        bounds.multiplier,
        bounds.output,
        pool[-_POOL:],
    )


def _rounds(problem: ParticleProblem) -> int:
    """Return how many rounds are worth their time where every answer is a search."""
    assert problem.coefficients is not None
    classes = 1 if problem.labels is None else len(torch.unique(problem.coefficients, dim=0))
    return max(_ROUNDS, _NUMBERS // (problem.features.numel() * problem.width * classes))


class _Bounds:
    """Best responses and the best bound they gave.

    A search that stops early calls bounds what is too high. Where best responses are searched, most
    rounds make do with such quick ones; a thorough one confirms the bound when it seems tight or
    has come no nearer for some rounds, and only confirmed bounds count.
    """

    def __init__(
        self, respond: BestResponse, tolerance: float, multiplier: Tensor, output: Tensor
    ) -> None:
        self._respond, self._tolerance = respond, tolerance
        self.best = -math.inf
        self.multiplier, self.output = multiplier, output
        self._hoped, self._nearest = -math.inf, math.inf
        self._waiting = self._confirmations = 0

    def response(
        self, total: float, value: float, lam: Tensor, z: Tensor, *, is_last: bool
    ) -> Response:
        """Return an answer to lam = grad R(z); P of the mixture is ``total``, R(z) ``value``."""
        free = value - float((lam * z).sum())
        response = self._respond.quick(lam)
        hoped = free + response.value
        if not self._respond.is_exact:
            if hoped > self._hoped:
                self._hoped = hoped
                if not math.isfinite(self.best):  # to be bounded there, should time be up
                    self.multiplier, self.output = lam, z
            gap = total - self._hoped
            is_nearer = gap < _NEARER * self._nearest
            self._nearest = gap if is_nearer else self._nearest
            self._waiting = 0 if is_nearer else self._waiting + 1
            settles = gap <= self._tolerance * abs(total) or self._waiting >= _PATIENCE
            if not (settles or is_last):
                return response
            response = self._respond(lam)
            self._confirmations += 1
            self._waiting, self._nearest = 0, math.inf
        bound = free + response.value
        if bound > self.best:
            self.best, self.multiplier, self.output = bound, lam, z
        self._hoped = self.best
        return response

    def are_final(self, total: float) -> bool:
        """Whether the bound is tight, or was confirmed often enough."""
        is_tight = total - self.best <= self._tolerance * abs(total)
        return is_tight or self._confirmations == _CONFIRMATIONS


def _corrected(
    mixture: Mixture,
    risk: Risk,
    model: QuadraticRisk,
    relearn: Callable[[Tensor, float, Tensor], QuadraticRisk],
    value: float,
    lam: Tensor,
) -> tuple[float, Tensor, QuadraticRisk]:
    """Reweigh by one Newton step with backtracking on the loss itself; return R, lam, model."""
    before, z = mixture.weights, mixture.output
    total = value + mixture.price
    after = mixture.corrected(model)
    change = torch.from_numpy(after - before).to(z)
    step = torch.einsum("j,jnk->nk", change, mixture.outputs)
    slope = float((lam * step).sum()) + float(mixture.prices @ change)
    promised = slope + 0.5 * float((step * model.hessian(step)).sum())
    share = 1.0
    while True:
        mixture.weights = before + share * (after - before)
        z = mixture.output
        value, lam = risk(z)
        gained = value + mixture.price - total
        if gained <= 1e-4 * share * slope or share < 1e-6:
            break
        share *= 0.5
    if share < 1.0 or gained > 0.7 * promised:
        return value, lam, relearn(z, value, lam)
    return value, lam, QuadraticRisk(z, value, lam, model.hessian, False)
