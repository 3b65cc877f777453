"""Local search over who is paid from which anchor, where that changes the network.

Where particles of different output coefficients may exchange anchors (no classes), an exchange
changes the output at no cost of transport. A pair of particles swaps anchors, each going to its
best response there; all pairs are compared at once on the second-order model of the loss.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from torch_wprox.certified.problem.particle_problem import Configuration, ParticleProblem
from torch_wprox.certified.problem.quadratic_model import QuadraticRisk
from torch_wprox.certified.responses.best_response import BestResponse


def exchanged(
    problem: ParticleProblem, respond: BestResponse, x: Configuration, model: QuadraticRisk
) -> Configuration:
    """Return x after the best exchanges of anchors inside the labels, x itself if none helps.

    Args:
        problem: The particles; their labels are not None.
        respond: Their best responses.
        x: Where to start.
        model: Of the loss.
    """
    p = problem
    assert p.labels is not None
    z = p.output(x.points, x.offset)
    at = respond.everywhere(model(z)[1])
    group = respond.groups
    allowed = (p.labels.unsqueeze(1) == p.labels) & (group.unsqueeze(1) != group)
    current = x
    for _ in range(p.width):
        z = p.output(current.points, current.offset)
        value = float(model.values(z))
        own = p.responses(current.points)  # (m, n k)
        prices = p.prices(current.points, current.sigma)
        # Particle i at the anchor of particle j: position, change of output, change of price.
        moved = at[group.unsqueeze(1), current.sigma.unsqueeze(0)]  # (m, m, D)
        outputs = _responses(p, moved) - own.unsqueeze(1)  # (m, m, n k)
        cost = p.prices(moved, current.sigma.unsqueeze(0)) - prices.unsqueeze(1)  # (m, m)
        step = outputs + outputs.transpose(0, 1)
        change = model.values(z + step.view(*step.shape[:2], *z.shape)) - value + cost + cost.T
        change = torch.where(allowed, change, torch.inf)
        best = int(change.argmin())
        i, j = best // p.width, best % p.width
        if not change[i, j] < -1e-12 * abs(value + p.price(current)):
            break
        points, sigma = current.points.clone(), current.sigma.clone()
        points[i], points[j] = moved[i, j], moved[j, i]
        sigma[i], sigma[j] = current.sigma[j], current.sigma[i]
        current = replace(current, points=points, sigma=sigma)
    return current


def _responses(p: ParticleProblem, points: Tensor) -> Tensor:
    """Return psi_i (m, b, n k) of particle i at each of its points (m, b, D)."""
    assert p.coefficients is not None
    hidden = (points @ p.features.T).clamp_min(0.0)  # (m, b, n)
    return (hidden.unsqueeze(3) * p.coefficients.view(p.width, 1, 1, p.outputs)).flatten(2)
