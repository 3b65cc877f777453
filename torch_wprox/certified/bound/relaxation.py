"""The step with its particles spread over several positions: solved, with its bound."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass

import torch
from torch import Tensor

from torch_wprox.certified.bound.bundle import bundled
from torch_wprox.certified.bound.conditional_gradient import conditional_gradient
from torch_wprox.certified.bound.dual import UnboundedDual, maximized_dual
from torch_wprox.certified.bound.minorant import Minorant, linear_value, lower_bound
from torch_wprox.certified.bound.mixture import Relaxed
from torch_wprox.certified.bound.spread import Spread, Tell, spread_over_rays
from torch_wprox.certified.problem.batched_bfgs import Ends, unlimited
from torch_wprox.certified.problem.convexity import refuse_nonconvex
from torch_wprox.certified.problem.local_descent import bfgs_descent
from torch_wprox.certified.problem.particle_problem import (
    Configuration,
    ParticleProblem,
    Risk,
    has_cells,
)
from torch_wprox.certified.problem.quadratic_model import (
    QuadraticRisk,
    has_kink,
    learn_quadratic,
    local_quadratic,
)
from torch_wprox.certified.responses.best_response import BestResponse
from torch_wprox.report import Bound


@dataclass(frozen=True)
class Bounded:
    """What the relaxed step proves, before any rounding.

    Attributes:
        relaxed: Its solution.
        lower_bound: Bound of P, by the loss itself.
        certified: Whether every best response was exact.
        model: Second-order model of the loss.
        below: The affine function below the loss that gave the bound.
        local: A local minimum of the model of P, where one was computed on the way.
    """

    relaxed: Relaxed | Spread
    lower_bound: float
    certified: bool
    model: QuadraticRisk
    below: Minorant
    local: Configuration | None = None


def never(value: float, bound: float) -> bool:
    """Never end early."""
    return False


def relax(
    problem: ParticleProblem,
    risk: Risk,
    *,
    tolerance: float,
    max_iter: int,
    precision: float,
    exact_cells: int,
    may_be_quadratic: bool = True,
    tell: Tell = never,
    ends: Ends = unlimited,
) -> Bounded:
    """Solve the relaxed step and return its bound.

    Particles in the plane answer a loss gradient exactly and at once, and a few tens of whole
    configurations are enough: one weight for each, little arithmetic. In more dimensions that
    stalls, and every particle gets weights of its own, over rays.

    Args:
        problem: The particles.
        risk: The loss as a function of the output; every call is one closure evaluation.
        tolerance: Gap of the relaxed problem, relative.
        max_iter: Iterations of conditional gradient; the dual may use ten times as many.
        precision: Relative rounding error of the loss's gradient.
        exact_cells: See :class:`BestResponse`.
        may_be_quadratic: False where a model was believed to be the loss itself, and was not.
        tell: Called every round with the value of the relaxed step and the bound so far; a true
            answer ends it.
        ends: Whether time is up, asked in between: the best so far is then bounded.

    Raises:
        ValueError: R is not convex.
        UnboundedDual: No bound was found.
    """

    def told(value: float, bound: float) -> bool:
        return tell(value, bound) or ends()

    respond = BestResponse(problem, exact_cells)
    start = problem.start()
    z = problem.output(start.points, start.offset)
    if may_be_quadratic:
        model = learn_quadratic(risk, z, precision)
    else:
        model = local_quadratic(risk, z, *risk(z), precision)
    if not model.is_exact and has_kink(risk, model):
        return _relaxed_by_cuts(problem, respond, risk, model, max_iter, precision, told)
    inner: Risk = model if model.is_exact else risk
    reached = max(tolerance, _EXACT if respond.is_exact else _SEARCHED)
    local: Configuration | None = None
    relaxed: Relaxed | Spread
    if problem.trains_output:
        relaxed = maximized_dual(
            problem,
            respond,
            inner,
            model,
            tolerance=1e-3 * tolerance,
            max_iter=10 * max_iter,
            precision=precision,
            tell=told,
        )
    else:

        def relearn(z: Tensor, value: float, lam: Tensor) -> QuadraticRisk:
            return local_quadratic(risk, z, value, lam, precision)

        if not has_cells(problem):
            descend = bfgs_descent(problem, _WARM, torch.Generator().manual_seed(0), ends)
            (local,) = descend([start], model)
        if local is None or problem.labels is not None:
            relaxed = conditional_gradient(
                problem,
                respond,
                inner,
                model,
                relearn,
                [start if local is None else local],
                tolerance=tolerance if respond.is_exact else reached,
                max_iter=max_iter,
                tell=told,
            )
        else:
            relaxed = spread_over_rays(
                problem,
                respond,
                inner,
                model,
                relearn,
                [local],
                tolerance=reached,
                tell=tell,
                ends=ends,
            )
    if model.is_exact and not model.agrees(relaxed.output, *risk(relaxed.output), precision):
        return relax(
            problem,
            risk,
            tolerance=tolerance,
            max_iter=max_iter,
            precision=precision,
            exact_cells=exact_cells,
            may_be_quadratic=False,
            tell=tell,
            ends=ends,
        )
    below, bound = _settled(problem, respond, risk, model, relaxed, local, precision)
    highest = model.value + problem.price(start)
    if respond.is_exact or isinstance(relaxed, Relaxed):
        # The pieces of a spread solution are not among the known configurations, so that a search
        # may miss what they show: nothing about R follows from a bound above their value.
        highest = min(highest, relaxed.value)
    size = abs(model.value) + problem.stiffness * float(problem.anchors.square().sum())
    refuse_nonconvex(bound, highest, size, precision)
    return Bounded(relaxed, bound, respond.is_exact, model, below, local)


def _relaxed_by_cuts(
    problem: ParticleProblem,
    respond: BestResponse,
    risk: Risk,
    model: QuadraticRisk,
    max_iter: int,
    precision: float,
    tell: Tell,
) -> Bounded:
    """Solve the relaxed step of a loss with kinks, which has no second-order model."""
    start = Minorant.tangent(model.centre, model.value, model.grad)
    found = bundled(
        problem,
        respond,
        risk,
        [start],
        [],
        tolerance=_BUNDLED,
        max_rounds=min(max_iter, _ROUNDS),
        precision=precision,
        tell=tell,
    )
    if not math.isfinite(found.lower_bound):
        raise UnboundedDual(
            "the dual bound is -inf at every combination of the gradients met: take a smaller gamma"
        )
    known = [problem.start(), *found.relaxed.atoms]
    bound = lower_bound(problem, respond, found.below, precision, known)
    size = abs(model.value) + problem.stiffness * float(problem.anchors.square().sum())
    refuse_nonconvex(bound, found.relaxed.value, size + found.below.size, precision)
    return Bounded(found.relaxed, bound, respond.is_exact, model, found.below, None)


def _settled(
    problem: ParticleProblem,
    respond: BestResponse,
    risk: Risk,
    model: QuadraticRisk,
    relaxed: Relaxed | Spread,
    local: Configuration | None,
    precision: float,
) -> tuple[Minorant, float]:
    """Return a tangent of the loss itself, not of a model of it, with its bound.

    It touches at the output of the relaxed problem's bound, or just inside.

    Where the dual is finite only for small gradients its best point is near the edge of its domain,
    and rounding may put it outside: then it is taken nearer to the minimiser of R.
    """
    z, known = relaxed.bound_output, [problem.start()]
    if local is not None:
        known.append(local)
    if isinstance(relaxed, Relaxed):
        known.extend(relaxed.atoms)
    inside, share = model.minimizer() - z, 0.0
    for _ in range(_RETREATS):
        at = z + share * inside
        below = Minorant.tangent(at, *risk(at))
        bound = lower_bound(problem, respond, below, precision, known)
        if math.isfinite(bound):
            break
        share = max(4.0 * share, 16.0 * precision)
    if model.is_exact and bound < model(model.minimizer())[0]:
        # The relaxed step ended early: smaller gradients, down to 0, say more.
        for share in _SMALLER:
            at = z + share * inside
            other = Minorant.tangent(at, *risk(at))
            higher = lower_bound(problem, respond, other, precision, known)
            if higher > bound:
                below, bound = other, higher
    return below, bound


def held_against(
    bounded: Bounded, problem: ParticleProblem, x: Configuration, value: float, precision: float
) -> Bound:
    """Return the bound, held against a value of P that was evaluated.

    Args:
        bounded: The relaxed step.
        problem: The particles.
        x: A configuration: a searched best response is never worse than it.
        value: P there, or at a better point.
        precision: Relative rounding error of the loss.

    Raises:
        ValueError: The bound is above the value by more than rounding: the loss is not convex.
    """
    below, bound = bounded.below, bounded.lower_bound
    if not bounded.certified:
        bound = min(bound, below.intercept + linear_value(problem, below.slope, x))
    size = below.size + problem.stiffness * float(problem.anchors.square().sum())
    refuse_nonconvex(bound, value, size, precision)
    excess = bound - value
    if not excess > 0:
        return Bound(bound, bounded.certified)
    # Within what rounding explains, but a bound above a value is none.
    warnings.warn(
        f"the lower bound {bound:.9g} lies {excess:.2g} above the objective that was evaluated: "
        "the closure rounds more than the bound allows for, so it is called an estimate. Use "
        "float64 for certificates of this loss",
        stacklevel=2,
    )
    return Bound(value - excess, False)


# Evaluations of the model for the local minimum where the relaxed step starts.
_WARM = 1500
# Steps from the edge of the dual's domain into it, each 4 times longer than the one before.
_RETREATS = 8
# Ways to the minimiser of the loss where the bound is below even its least value.
_SMALLER = (0.5, 0.75, 0.9, 1.0)
# Gap at which a loss with kinks counts as solved, and rounds after which it has to do.
_BUNDLED, _ROUNDS = 1e-5, 80
# Tolerances of the relaxed step over rays, and where best responses are searched: directions are
# continuous, the last digits cost many.
_EXACT, _SEARCHED = 1e-4, 5e-3
