"""The dual of the relaxed step, maximised over outputs: for particles that train their weight.

    D(z') = R(z') - <lam', z'> + sum_i min_v [<lam', psi(v)> + cost_i(v)],     lam' = grad R(z'),

is a lower bound of P at any z', and -inf where psi, 2-homogeneous like the price, outgrows it. Its
gradient is H (z_bar - z'), H = Hess R(z') and z_bar the output of the best responses. D is concave
in lam' with kinks; conditional gradient stalls on it, nonsmooth BFGS does not.
"""

from __future__ import annotations

import math
from contextlib import suppress

import torch
from torch import Tensor

from torch_wprox.certified.bound.mixture import Mixture, Relaxed
from torch_wprox.certified.bound.spread import Tell
from torch_wprox.certified.problem.batched_bfgs import batched_bfgs
from torch_wprox.certified.problem.particle_problem import Configuration, ParticleProblem, Risk
from torch_wprox.certified.problem.quadratic_model import QuadraticRisk, local_quadratic
from torch_wprox.certified.responses.best_response import BestResponse

# Configurations kept for rounding.
_POOL = 60


_NEWTON = 20
_ASCENTS = 4
_REACH = 0.1


class _Ended(Exception):
    """The search was told to end."""


class UnboundedDual(ValueError):
    """No output was found at which the dual is finite."""


def maximized_dual(
    problem: ParticleProblem,
    respond: BestResponse,
    risk: Risk,
    model: QuadraticRisk,
    *,
    tolerance: float,
    max_iter: int,
    precision: float,
    tell: Tell,
) -> Relaxed:
    """Maximise the dual by BFGS, then mix the best responses met into a solution of the step.

    Args:
        problem: The particles.
        respond: Their best responses.
        risk: R and its gradient; its own model if the loss is a quadratic.
        model: Second-order model of R at the output of the anchors.
        tolerance: Relative increase under which the search ends.
        max_iter: Evaluations of the dual.
        precision: Relative rounding error of the loss's gradient.
        tell: Called at every evaluation of the dual with NaN (no value of the step is known) and
            the bound; a true answer ends the search.
    """
    shape = model.centre.shape
    pool: list[Configuration] = []
    best: list[tuple[float, Tensor, Tensor]] = []

    def curved(z: Tensor, value: float, lam: Tensor, u: Tensor) -> Tensor:
        if model.is_exact:
            return model.hessian(u)
        size = float(u.abs().max())
        if size == 0.0:
            return u
        length = math.sqrt(precision) * (1.0 + float(z.abs().max())) / size
        return (risk(z + length * u)[1] - lam) / length

    def negative_dual(flat: Tensor) -> tuple[Tensor, Tensor]:
        z = flat.reshape(shape)
        value, lam = risk(z)
        answer = respond(lam)
        bound = value - float((lam * z).sum()) + answer.value
        if not math.isfinite(bound):
            return flat.new_tensor([math.inf]), torch.zeros_like(flat)
        if not best or bound > best[0][0]:
            best[:] = [(bound, lam, z)]
        x = answer.configuration
        pool.append(x)
        del pool[:-_POOL]
        if tell(math.nan, best[0][0]):
            raise _Ended
        ascent = curved(z, value, lam, problem.output(x.points, x.offset) - z)
        return flat.new_tensor([-bound]), -ascent.reshape(1, -1)

    scale = 1.0 / max(float(model.hessian.blocks.abs().max()), 1e-12)
    start = _admissible(respond, risk, model, precision)
    bound, multiplier, bound_output = -math.inf, model.grad, model.centre
    for _ in range(_ASCENTS):
        x = start.reshape(1, -1)
        # Near the edge of the domain the slope is steep, and where R is flat (a saturated logistic
        # loss) a long first step ends on a plateau of the dual: it is kept inside z's own size.
        rounds = max_iter
        with suppress(_Ended):
            steepness = float(negative_dual(x)[1].norm())
            reach = _REACH * (1.0 + float(x.norm())) / max(steepness, 1e-300)
            first = min(scale, reach)
            rounds = batched_bfgs(
                negative_dual, x, first, max_rounds=max_iter, tolerance=tolerance
            ).rounds
        if best:
            bound, multiplier, bound_output = best[0]
        mixture = Mixture(problem, [problem.start(), *pool])
        if not model.is_exact:
            value, lam = risk(bound_output)
            model = local_quadratic(risk, bound_output, value, lam, precision)
        mixture.weights = mixture.corrected(model)
        mixture.keep(mixture.weights > 0)
        total = risk(mixture.output)[0] + mixture.price
        # Searched responses that were missed once bend the dual; they are known afterwards.
        max_iter -= rounds
        if total - bound <= 1e-6 * abs(total) or max_iter <= 0:
            break
        best.clear()
        start = bound_output
        if not math.isfinite(respond(risk(start)[1]).value):
            start = _admissible(respond, risk, model, precision)
    z = mixture.output
    return Relaxed(
        mixture.atoms,
        torch.from_numpy(mixture.weights).to(z),
        z,
        total,
        bound,
        multiplier,
        bound_output,
        pool,
    )


def _admissible(
    respond: BestResponse, risk: Risk, model: QuadraticRisk, precision: float
) -> Tensor:
    """Return an output where the dual is finite: towards the minimiser of R, where lam' = 0."""
    z = model.centre
    if math.isfinite(respond(model.grad).value):
        return z
    for _ in range(_NEWTON):
        target = model.minimizer()
        share = 1.0
        if not model.is_exact:  # where R is nearly flat its minimiser is anywhere: not that far
            share = min(1.0, (1.0 + float(z.norm())) / max(float((target - z).norm()), 1e-300))
            while risk(z + share * (target - z))[0] > model.value and share > 1e-6:
                share *= 0.5
        target = z + share * (target - z)
        # Between z (not finite) and the target, the first point where the dual is finite.
        if math.isfinite(respond(risk(target)[1]).value):
            low, high = 0.0, 1.0
            for _ in range(12):
                middle = 0.5 * (low + high)
                finite = math.isfinite(respond(risk(z + middle * (target - z))[1]).value)
                low, high = (low, middle) if finite else (middle, high)
            return z + (high + 0.05 * (1.0 - high)) * (target - z)
        z = target
        value, lam = risk(z)
        model = local_quadratic(risk, z, value, lam, precision)
    raise UnboundedDual(
        "the dual bound is -inf at every output tried: gamma is too large for the curvature of "
        "this loss; take a smaller gamma"
    )
