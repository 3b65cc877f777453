"""Local search from a rounding: over cells or by nonsmooth BFGS, then exchange of anchors."""

from __future__ import annotations

from dataclasses import replace

import torch

from torch_wprox.certified.problem.batched_bfgs import Ends, unlimited
from torch_wprox.certified.problem.local_descent import Descent, bfgs_descent
from torch_wprox.certified.problem.particle_problem import Configuration, ParticleProblem, has_cells
from torch_wprox.certified.problem.quadratic_model import QuadraticRisk
from torch_wprox.certified.responses.best_response import BestResponse
from torch_wprox.certified.responses.planar import Sectors
from torch_wprox.certified.search.cell_search import CellSearch
from torch_wprox.certified.search.exchange import exchanged
from torch_wprox.distances.emd.exact import solve

# Rounds of (choose the anchors that particles are paid from, descend).
_EXCHANGES = 50


def descent(
    problem: ParticleProblem, rounds: int, generator: torch.Generator, ends: Ends = unlimited
) -> Descent:
    """Return the local search: over cells for particles in the plane, else nonsmooth BFGS.

    Both hold the anchors that particles are paid from; afterwards these are chosen anew.
    """
    if has_cells(problem):
        descend = _cell_descent(problem, ends)
    else:
        descend = bfgs_descent(problem, rounds, generator, ends)

    respond = None if problem.labels is None else BestResponse(problem)

    def paired(x: Configuration, model: QuadraticRisk) -> Configuration:
        renamed = reassigned(problem, x)
        if respond is None:
            return renamed
        exchanged_once = exchanged(problem, respond, renamed, model)
        return x if exchanged_once is renamed and renamed is x else exchanged_once

    def with_exchange(batch: list[Configuration], model: QuadraticRisk) -> list[Configuration]:
        settled = []
        for end in descend(batch, model):
            for _ in range(_EXCHANGES):
                x = end if ends() else paired(end, model)
                if x is end:
                    break
                (end,) = descend([x], model)
            settled.append(end)
        return settled

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


def _cell_descent(problem: ParticleProblem, ends: Ends) -> Descent:
    cells = CellSearch(problem, Sectors.of(problem.features))
    return lambda batch, model: [
        x if ends() else cells.improved(x, model, ends=ends) for x in batch
    ]
