"""A proved bound of the step beside the estimate, where best responses are searched.

Any affine function below the loss gives one. Where the proof is loose, smaller multiples of the
estimate's gradient give a higher bound than the gradient itself: several are tried at once.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from torch_wprox.certified.bound.minorant import Minorant, rounding
from torch_wprox.certified.bound.output_bias import BiasedQuadratic
from torch_wprox.certified.bound.relaxation import Bounded
from torch_wprox.certified.problem.particle_problem import ParticleProblem, Risk
from torch_wprox.certified.problem.quadratic_model import QuadraticRisk
from torch_wprox.certified.responses.best_response import BestResponse

# Multiples of the loss gradient; the list is cut where the particles are many.
SHARES = (1.0, 0.98, 0.93, 0.8, 0.6, 0.4, 0.25)
_ANCHORS = 1200


def proved(
    problem: ParticleProblem,
    risk: Risk,
    bounded: Bounded,
    *,
    seconds: float,
    tolerance: float,
    precision: float,
    exact_cells: int,
    evaluations: int = 100,
) -> Bounded:
    """Return the step with a proved bound, if branch and bound finds one; else as it was.

    Args:
        problem: The particles.
        risk: The loss itself.
        bounded: The relaxed step with its estimate.
        seconds: Time for the proof.
        tolerance: Of the best responses' radii, at which the proof stops.
        precision: Relative rounding error of the loss.
        exact_cells: See :class:`BestResponse`.
        evaluations: Of the loss that may be used.
    """
    if bounded.certified or seconds <= 0:
        return bounded
    respond = BestResponse(problem, exact_cells)
    count = max(1, min(len(SHARES), _ANCHORS // problem.width, evaluations))
    below = tangents(risk, bounded.model, bounded.relaxed.bound_output, SHARES[:count])
    values = respond.proved([b.slope for b in below], seconds=seconds, tolerance=tolerance)
    if values is None:
        return bounded
    # Responses to smaller multiples are shorter, and so are their rounding errors.
    longest = respond(below[0].slope).configuration
    bounds = [
        b.intercept + value - rounding(problem, b, longest, precision)
        for b, value in zip(below, values, strict=True)
    ]
    best = max(range(len(bounds)), key=bounds.__getitem__)
    if not bounds[best] > -torch.inf:
        return bounded
    return replace(bounded, lower_bound=bounds[best], certified=True, below=below[best])


def tangents(
    risk: Risk, model: QuadraticRisk | BiasedQuadratic, z: Tensor, shares: tuple[float, ...]
) -> list[Minorant]:
    """Return affine functions below R whose slopes are about these shares of grad R(z).

    For a quadratic they are tangents on the way from z to its minimiser; for other losses the
    tangent at z and that at the model's minimiser are mixed.
    """
    bottom = model.minimizer()
    at_z = Minorant.tangent(z, *risk(z))
    if model.is_exact:
        points = [z + (1.0 - share) * (bottom - z) for share in shares[1:]]
        return [at_z, *(Minorant.tangent(point, *risk(point)) for point in points)]
    at_bottom = Minorant.tangent(bottom, *risk(bottom))
    return [
        Minorant(
            share * at_z.intercept + (1.0 - share) * at_bottom.intercept,
            share * at_z.slope + (1.0 - share) * at_bottom.slope,
            at_z.size + at_bottom.size,
        )
        for share in shares
    ]
