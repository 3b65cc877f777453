"""Local search from a rounding: over cells or by nonsmooth BFGS, then exchange of anchors."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from torch_wprox.solvers.best_response import BestResponse
from torch_wprox.solvers.cell_search import CellSearch
from torch_wprox.solvers.exchange import exchanged
from torch_wprox.solvers.particle_problem import Configuration, ParticleProblem
from torch_wprox.solvers.polish import polished
from torch_wprox.solvers.risk_model import QuadraticRisk
from torch_wprox.solvers.sectors import Sectors
from torch_wprox.transport import solve

# Best responses lie on kinks, where one gradient is no guide: starts of a descent are moved off.
_OFF_KINKS = 1e-6
# Rounds of (choose the anchors that particles are paid from, descend).
_EXCHANGES = 50

Descent = Callable[[list[Configuration], QuadraticRisk], list[Configuration]]
"""Starts and a model of the loss -> where the descents from them end."""


def has_cells(problem: ParticleProblem) -> bool:
    """Return whether particles move in the plane, where the search over cells is exact."""
    return not problem.trains_output and problem.inputs == 2


def descent(problem: ParticleProblem, rounds: int, generator: torch.Generator) -> Descent:
    """Return the local search: over cells for particles in the plane, else nonsmooth BFGS.

    Both hold the anchors that particles are paid from; afterwards these are chosen anew.
    """
    if has_cells(problem):
        descend = _cell_descent(problem)
    else:
        descend = bfgs_descent(problem, rounds, generator)

    respond = None if problem.labels is None else BestResponse(problem)

    def paired(x: Configuration, model: QuadraticRisk) -> Configuration:
        renamed = reassigned(problem, x)
        if respond is None:
            return renamed
        swapped = exchanged(problem, respond, renamed, model)
        return x if swapped is renamed and renamed is x else swapped

    def with_exchange(batch: list[Configuration], model: QuadraticRisk) -> list[Configuration]:
        ends = []
        for end in descend(batch, model):
            for _ in range(_EXCHANGES):
                x = paired(end, model)
                if x is end:
                    break
                (end,) = descend([x], model)
            ends.append(end)
        return ends

    return with_exchange


def reassigned(problem: ParticleProblem, x: Configuration) -> Configuration:
    """Return x paid from the best anchors, or x itself if it is.

    Inside equal coefficients particles are renamed instead, so that sigma stays the identity and
    the Frobenius price is the Wasserstein price.
    """
    W = problem.anchors
    if problem.labels is not None:
        sigma = solve(x.points, W, problem.labels).to(x.sigma)
        renamed = replace(x, sigma=sigma)
    else:
        classes = None
        if problem.coefficients is not None:
            classes = torch.unique(problem.coefficients, dim=0, return_inverse=True)[1]
        sigma = solve(x.points, W, classes).to(x.sigma)
        points = torch.empty_like(x.points)
        points[sigma] = x.points
        renamed = replace(x, points=points)
    before = problem.price(x)
    return renamed if problem.price(renamed) < before - 1e-12 * abs(before) else x


def _cell_descent(problem: ParticleProblem) -> Descent:
    cells = CellSearch(problem, Sectors.of(problem.features))
    return lambda batch, model: [cells.improved(x, model) for x in batch]


def bfgs_descent(problem: ParticleProblem, rounds: int, generator: torch.Generator) -> Descent:
    """Return the descent by nonsmooth BFGS on all particles, anchors held."""

    def descend(batch: list[Configuration], model: QuadraticRisk) -> list[Configuration]:
        sigma = torch.stack([x.sigma for x in batch])
        points = torch.stack([x.points for x in batch])
        noise = torch.randn(points.shape, generator=generator, dtype=torch.float64).to(points)
        points = points + _OFF_KINKS * float(points.abs().max()) * noise
        moves_offset = problem.offset_stiffness is not None
        offsets = torch.stack([x.offset for x in batch])
        start = points.flatten(1)
        if moves_offset:
            start = torch.cat([start, offsets], 1)
        size = points[0].numel()

        def function(x: Tensor) -> tuple[Tensor, Tensor]:
            V = x[:, :size].view(-1, *points.shape[1:])
            c = x[:, size:] if moves_offset else offsets
            value, lam = model.values_and_grads(problem.output(V, c))
            moved = V - problem.anchors[sigma]
            value = value + 0.5 * problem.stiffness * moved.square().sum((1, 2))
            grad = (problem.pull(V, lam) + problem.stiffness * moved).flatten(1)
            if problem.offset_stiffness is None:
                return value, grad
            shifted = c - problem.offset
            value = value + 0.5 * problem.offset_stiffness * shifted.square().sum(1)
            return value, torch.cat([grad, lam.sum(1) + problem.offset_stiffness * shifted], 1)

        found = polished(function, start, 1.0 / problem.stiffness, max_rounds=rounds)
        ends = []
        for x, given, order in zip(found.points, batch, sigma, strict=True):
            V = x[:size].view(points.shape[1:])
            ends.append(Configuration(V, x[size:] if moves_offset else given.offset, order))
        return ends

    return descend
