"""Conditional gradient in the space of measures, fully corrective: the step, solved globally.

An atom is a configuration: all particles' best responses to one loss gradient. Mixing atoms with
weights w spreads every particle over several positions; outputs and prices mix linearly, so

    min over w in the simplex   R(sum_j w_j z_j) + sum_j w_j c_j

is convex, and so is the limit over all atoms, whose value is a lower bound of P.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from torch_wprox.certified.bound.mixture import Mixture, Relaxed
from torch_wprox.certified.problem.particle_problem import Configuration, ParticleProblem, Risk
from torch_wprox.certified.problem.quadratic_model import QuadraticRisk
from torch_wprox.certified.responses.best_response import BestResponse
from torch_wprox.objective import BudgetExhausted

# Configurations kept for rounding.
_POOL = 60


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
        max_iter: Iterations.
        tell: Called at every iteration with value and bound; a true answer ends it.

    Returns:
        The mixture with its bound.
    """
    mixture = Mixture(problem, atoms)
    z = mixture.output
    value, lam = risk(z)
    best = -float("inf")
    multiplier, bound_output = lam, z
    pool: list[Configuration] = []
    for _ in range(max_iter):
        response = respond(lam)
        bound = value - float((lam * z).sum()) + response.value
        if bound > best:
            best, multiplier, bound_output = bound, lam, z
        total = value + mixture.price
        if tell(total, best) or total - best <= tolerance * abs(total):
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
    total = value + mixture.price
    return Relaxed(
        mixture.atoms,
        torch.from_numpy(mixture.weights).to(z),
        z,
        total,
        best,
        multiplier,
        bound_output,
        pool[-_POOL:],
    )


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
