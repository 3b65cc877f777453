"""Looks for what makes a bound false: a loss that is not convex where the solver did not go.

A bound is a proof if the loss is convex in the output, and no finite number of evaluations shows
that. Probes that pass prove nothing; one that fails withdraws the bound.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from torch_wprox.certified.problem.oracle import OutputOracle
from torch_wprox.certified.problem.particle_problem import ParticleProblem
from torch_wprox.certified.problem.quadratic_model import QuadraticRisk

# On the line from the best output to the minimiser of the model, and beyond it on both sides.
_ALONG = (0.5, 1.0, 2.0, -1.0)
# Scattered probes: every sample gets each sign and each of half as many distances once.
_SCATTERED = 16
# Their distances, relative to the largest move met; a shorter reach of the step ends them earlier.
_NEAREST, _FURTHEST = 0.05, 20.0
_SUSPECTS = 4

EVALUATIONS = len(_ALONG) + _SCATTERED + 2 * _SUSPECTS
"""Evaluations of the closure that a probe takes at most, those at the given outputs not counted."""


def probe(
    oracle: OutputOracle,
    problem: ParticleProblem,
    model: QuadraticRisk,
    outputs: Sequence[Tensor],
    bound: float,
) -> bool:
    """Evaluate the loss where a step could go; return whether the model holds there.

    All evaluations are compared with the tangents at all others. Then samples are looked at one by
    one (:meth:`ConvexityWatch.suspects`).

    Args:
        oracle: The loss as a function of the output.
        problem: The particles; they say how far outputs can move.
        model: Of the loss.
        outputs: Where the solver was, (n, k) each, the best first.
        bound: What it says that no step is below.

    Returns:
        False if the model was believed to be the loss itself and is not.

    Raises:
        ValueError: The loss is not convex.
    """
    reach = _reach(problem, bound - min(0.0, oracle.watch.lowest()))
    return probe_within(oracle, model, outputs, reach)


def probe_within(
    oracle: OutputOracle, model: QuadraticRisk, outputs: Sequence[Tensor], reach: Tensor
) -> bool:
    """Do the same where each sample's output can move by ``reach`` (n,)."""
    holds = True
    for z in _points(model, outputs, reach):
        value, grad = oracle(z)
        holds = holds and (not model.is_exact or model.agrees(z, value, grad, oracle.precision))
    for _ in range(2):
        for z in oracle.watch.suspects(_SUSPECTS):
            oracle(z)
    return holds


def _points(model: QuadraticRisk, outputs: Sequence[Tensor], reach: Tensor) -> Iterator[Tensor]:
    yield from outputs
    z, target = outputs[0], model.minimizer()
    for share in _ALONG:
        yield z + share * (target - z)
    moves = [float((z - other).abs().max()) for other in (target, *outputs[1:])]
    unit = max(moves, default=0.0) or 1.0 + float(z.abs().max())
    furthest = reach.clamp(2.0 * _NEAREST * unit, _FURTHEST * unit).unsqueeze(1)  # (n, 1)
    generator = torch.Generator().manual_seed(0)
    half = _SCATTERED // 2
    order = torch.stack([torch.randperm(_SCATTERED, generator=generator) for _ in range(z.numel())])
    jitter = torch.rand(_SCATTERED, z.numel(), generator=generator, dtype=torch.float64)
    level = ((order.T % half) + jitter) / half  # (T, n k), each stratum once per sign
    sign = 1.0 - 2.0 * (order.T // half).to(torch.float64)
    for t in range(_SCATTERED):
        log = level[t].to(z).view_as(z) * (furthest / (_NEAREST * unit)).log()
        base = outputs[t % len(outputs)]
        yield base + sign[t].to(z).view_as(z) * _NEAREST * unit * log.exp()


def _reach(problem: ParticleProblem, room: float) -> Tensor:
    """Return how far each sample's output (n,) can move at a price of at most ``room``.

    (kappa/2)|V - W|^2 <= room is a ball of radius r around W; there frozen coefficients a allow
    |z_j - z_j(W)| <= |x_j||a| r, and trained ones |x_j| scale (|W| r + r^2/2).
    """
    radius = math.sqrt(2.0 * max(room, 0.0) / problem.stiffness)
    lengths = problem.features.norm(dim=1)
    if problem.coefficients is not None:
        factor = float(problem.coefficients.norm()) * radius
    else:
        factor = problem.scale * (float(problem.anchors.norm()) * radius + 0.5 * radius**2)
    reach: Tensor = factor * lengths
    return reach
