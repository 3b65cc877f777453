"""One proximal step solved globally: relax, bound, round, search, polish."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from torch_wprox.solvers.best_response import BestResponse
from torch_wprox.solvers.cell_search import CellSearch
from torch_wprox.solvers.conditional_gradient import Relaxed, conditional_gradient
from torch_wprox.solvers.convexity import refuse_nonconvex
from torch_wprox.solvers.dual import maximized_dual
from torch_wprox.solvers.exchange import exchanged
from torch_wprox.solvers.particle_problem import Configuration, ParticleProblem, Risk
from torch_wprox.solvers.polish import polished
from torch_wprox.solvers.risk_model import QuadraticRisk, learn_quadratic, local_quadratic
from torch_wprox.solvers.rounding import Table, rounded, swapped
from torch_wprox.solvers.sectors import Sectors
from torch_wprox.transport import solve

# Best responses lie on kinks, where one gradient is no guide: starts of a descent are moved off.
_OFF_KINKS = 1e-6
# Rounds of (second-order model of the loss at the present output, search on the model).
_REMODELS = 4
# LP vertices of the mixture's weights, where there are not too many weights.
_VERTICES, _LP_WEIGHTS = 3, 20_000
# Rounds of (choose the anchors that particles are paid from, descend).
_EXCHANGES = 50
# A descent costs as much as this many searches over cells.
_DEARER = 6


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

        relaxed = conditional_gradient(
            problem, respond, inner, model, relearn, tolerance=tolerance, max_iter=max_iter
        )
    bound = relaxed.lower_bound
    highest = min(relaxed.value, model.value + problem.price(start))
    if model.is_exact:  # the bound by the loss itself, not by the model of it
        z = relaxed.bound_output
        value, lam = risk(z)
        bound = value - float((lam * z).sum()) + respond(lam).value
    refuse_nonconvex(bound, highest, model.value, precision)
    return Bounded(relaxed, bound, respond.is_exact, model)


def search(
    problem: ParticleProblem,
    risk: Risk,
    bounded: Bounded,
    *,
    starts: int,
    polish: int,
    tolerance_gap: float,
    precision: float,
    seed: int,
    evaluate: Callable[[Configuration], float],
) -> Configuration:
    """Round the relaxed solution to m particles and descend from there.

    All roundings are compared on the second-order model of the loss at the relaxed solution; the
    best is evaluated. A loss that is not a quadratic is then modelled anew at that point, and the
    descent goes on from it.

    Args:
        problem: The particles.
        risk: The loss as a function of the output.
        bounded: The relaxed step.
        starts: Roundings.
        polish: Evaluations of the model per descent.
        tolerance_gap: Stop rounding once the gap is below this share of the bound.
        precision: Relative rounding error of the loss's gradient.
        seed: Of the random roundings.
        evaluate: P at a configuration, one closure evaluation.

    Returns:
        The best configuration found.
    """
    generator = torch.Generator().manual_seed(seed)
    relaxed, model = bounded.relaxed, bounded.model
    if not model.is_exact:
        value, lam = risk(relaxed.output)
        model = local_quadratic(risk, relaxed.output, value, lam, precision)
    descend = _descent(problem, polish, generator)
    goal = bounded.lower_bound + tolerance_gap * abs(bounded.lower_bound)
    best, modelled = problem.start(), math.inf
    for batch in _starts(problem, relaxed, model, generator, starts):
        for x in descend(batch, model):
            value = float(model.values(problem.output(x.points, x.offset))) + problem.price(x)
            if value < modelled:
                best, modelled = x, value
        if modelled <= goal:
            break
    reached = evaluate(best)
    for _ in range(0 if model.is_exact else _REMODELS):
        z = problem.output(best.points, best.offset)
        value, lam = risk(z)
        model = local_quadratic(risk, z, value, lam, precision)
        (x,) = descend([best], model)
        found = evaluate(x)
        if not found < reached - 1e-3 * tolerance_gap * abs(reached):
            break
        best, reached = x, found
    return best


Descent = Callable[[list[Configuration], QuadraticRisk], list[Configuration]]


def _starts(
    problem: ParticleProblem,
    relaxed: Relaxed,
    model: QuadraticRisk,
    generator: torch.Generator,
    count: int,
) -> Iterator[list[Configuration]]:
    """Yield roundings of the mixture in batches.

    Where the search moves between cells it repairs any rounding, and independent draws from the
    mixture are the more varied ones. A descent repairs less: it gets LP vertices first.
    """
    if problem.labels is not None:  # rows of several atoms do not make one permutation of anchors
        order = relaxed.weights.argsort(descending=True).tolist()
        for j in order[:count]:
            yield [relaxed.atoms[j]]
        return
    if not _has_cells(problem) and problem.width * len(relaxed.atoms) <= _LP_WEIGHTS:
        yield rounded(problem, relaxed, model, generator, starts=_VERTICES)
        count = max(1, count // _DEARER)
    offset = torch.stack([a.offset for a in relaxed.atoms]).mT @ relaxed.weights
    table = Table.of(problem, relaxed.atoms, offset, model)
    weights = relaxed.weights.cpu()
    size = max(1, count // 3)
    for i in range(0, count, size):
        batch = []
        for _ in range(min(size, count - i)):
            drawn = torch.multinomial(weights, problem.width, replacement=True, generator=generator)
            choice = drawn.to(offset.device)
            if not _has_cells(problem):
                choice, _ = swapped(table, choice)
            batch.append(table.configuration(choice))
        yield batch


def _has_cells(problem: ParticleProblem) -> bool:
    return not problem.trains_output and problem.inputs == 2


def _descent(problem: ParticleProblem, rounds: int, generator: torch.Generator) -> Descent:
    """Return the local search: over cells for particles in the plane, else nonsmooth BFGS.

    Both hold the anchors that particles are paid from; afterwards these are chosen anew.
    """
    if _has_cells(problem):
        descend = _cell_descent(problem)
    else:
        descend = _bfgs_descent(problem, rounds, generator)

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


def _bfgs_descent(problem: ParticleProblem, rounds: int, generator: torch.Generator) -> Descent:
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
