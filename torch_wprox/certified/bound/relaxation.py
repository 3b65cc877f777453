"""The step with its particles spread over several positions: solved, with its bound."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from torch_wprox.certified.bound.conditional_gradient import conditional_gradient
from torch_wprox.certified.bound.dual import maximized_dual
from torch_wprox.certified.bound.mixture import Relaxed
from torch_wprox.certified.problem.convexity import refuse_nonconvex
from torch_wprox.certified.problem.local_descent import bfgs_descent
from torch_wprox.certified.problem.particle_problem import ParticleProblem, Risk, has_cells
from torch_wprox.certified.problem.quadratic_model import (
    QuadraticRisk,
    learn_quadratic,
    local_quadratic,
)
from torch_wprox.certified.responses.best_response import BestResponse


@dataclass(frozen=True)
class Bounded:
    """What the relaxed step proves, before any rounding.

    Attributes:
        relaxed: Its solution.
        lower_bound: Bound of P, by the loss itself.
        certified: Whether every best response was exact.
        model: Second-order model of the loss.
    """

    relaxed: Relaxed
    lower_bound: float
    certified: bool
    model: QuadraticRisk


def relax(
    problem: ParticleProblem,
    risk: Risk,
    *,
    tolerance: float,
    max_iter: int,
    precision: float,
    exact_cells: int,
) -> Bounded:
    """Solve the relaxed step and return its bound.

    Args:
        problem: The particles.
        risk: The loss as a function of the output; every call is one closure evaluation.
        tolerance: Gap of the relaxed problem, relative.
        max_iter: Iterations of conditional gradient; the dual may use ten times as many.
        precision: Relative rounding error of the loss's gradient.
        exact_cells: See :class:`BestResponse`.

    Raises:
        ValueError: R is not convex.
    """
    respond = BestResponse(problem, exact_cells)
    start = problem.start()
    model = learn_quadratic(risk, problem.output(start.points, start.offset), precision)
    inner: Risk = model if model.is_exact else risk
    if problem.trains_output:
        relaxed = maximized_dual(
            problem,
            respond,
            inner,
            model,
            tolerance=1e-3 * tolerance,
            max_iter=10 * max_iter,
            precision=precision,
        )
    else:

        def relearn(z: Tensor, value: float, lam: Tensor) -> QuadraticRisk:
            return local_quadratic(risk, z, value, lam, precision)

        atoms = [start]
        if not has_cells(problem):
            # Whole configurations are coarse atoms: from a local minimum of the model conditional
            # gradient has little left to do, from the anchors it stalls with many samples.
            descend = bfgs_descent(problem, _WARM, torch.Generator().manual_seed(0))
            atoms = descend(atoms, model)
        relaxed = conditional_gradient(
            problem, respond, inner, model, relearn, atoms, tolerance=tolerance, max_iter=max_iter
        )
    bound = relaxed.lower_bound
    highest = min(relaxed.value, model.value + problem.price(start))
    if model.is_exact:  # the bound by the loss itself, not by the model of it
        z = relaxed.bound_output
        value, lam = risk(z)
        bound = value - float((lam * z).sum()) + respond(lam).value
    refuse_nonconvex(bound, highest, model.value, precision)
    return Bounded(relaxed, bound, respond.is_exact, model)


# Evaluations of the model for the local minimum that conditional gradient starts from.
_WARM = 1500
