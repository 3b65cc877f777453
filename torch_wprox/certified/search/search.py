"""One proximal step solved globally: relax, bound, round, search, polish."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch

from torch_wprox.certified.bound.mixture import Relaxed
from torch_wprox.certified.bound.relaxation import Bounded
from torch_wprox.certified.bound.spread import Spread
from torch_wprox.certified.problem.local_descent import Descent, bfgs_descent
from torch_wprox.certified.problem.particle_problem import (
    Configuration,
    ParticleProblem,
    Risk,
    has_cells,
)
from torch_wprox.certified.problem.quadratic_model import (
    QuadraticRisk,
    local_quadratic,
)
from torch_wprox.certified.responses.planar import Sectors
from torch_wprox.certified.search.descent import descent
from torch_wprox.certified.search.enumeration import enumerated, is_enumerable
from torch_wprox.certified.search.ray_rounding import RayRounding
from torch_wprox.certified.search.rounding import (
    Table,
    interchange_search,
    rounded,
    stratified_rounding,
)

# Rounds of (second-order model of the loss at the present output, search on the model).
_REMODELS = 4
# LP vertices of the mixture's weights, where there are not too many weights.
_VERTICES, _LP_WEIGHTS = 3, 20_000
# A descent costs as much as this many searches over cells; from whole configurations, from rays.
_DEARER, _DEAR = 6, 3
# Gap at which a search over cells has failed, relative; how many of its ends hop, and how often.
_WIDE, _FIELD, _HOPS = 3e-3, 6, 4
# Descents from rays: share of the rounds, and how many of the best go on.
_HEATS = ((0.1, 2), (0.5, 1))


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
    ends: Callable[[], bool],
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
        ends: Whether time is up: the best so far is then the answer.

    Returns:
        The best configuration found.
    """
    generator = torch.Generator().manual_seed(seed)
    relaxed, model = bounded.relaxed, bounded.model
    if not model.is_exact:
        value, lam = risk(relaxed.output)
        model = local_quadratic(risk, relaxed.output, value, lam, precision)
    descend = _until(ends, descent(problem, polish, generator, ends))
    goal = bounded.lower_bound + tolerance_gap * abs(bounded.lower_bound)
    if isinstance(relaxed, Spread):
        best = _settled(problem, bounded, relaxed, model, generator, starts, polish, ends)
    else:
        met: list[Configuration] = []
        for batch in _starts(problem, relaxed, model, generator, starts):
            met.extend(descend(batch, model))
            met.sort(key=lambda x: _modelled(problem, x, model))
            if ends() or _modelled(problem, met[0], model) <= goal:
                break
        best = met[0]
        if has_cells(problem) and problem.labels is None and not ends():
            best = _hopped(problem, bounded, goal, met, model, descend, polish, generator, ends)
    reached = evaluate(best)
    for _ in range(0 if model.is_exact else _REMODELS):
        if ends():
            break
        z = problem.output(best.points, best.offset)
        value, lam = risk(z)
        model = local_quadratic(risk, z, value, lam, precision)
        (x,) = descend([best], model)
        found = evaluate(x)
        if not found < reached - 1e-3 * tolerance_gap * abs(reached):
            break
        best, reached = x, found
    return best


def _until(ends: Callable[[], bool], descend: Descent) -> Descent:
    """Return the descent that leaves its batch as it is once time is up."""
    return lambda batch, model: batch if ends() else descend(batch, model)


def _modelled(problem: ParticleProblem, x: Configuration, model: QuadraticRisk) -> float:
    return float(model.values(problem.output(x.points, x.offset))) + problem.price(x)


def _hopped(
    problem: ParticleProblem,
    bounded: Bounded,
    goal: float,
    met: list[Configuration],
    model: QuadraticRisk,
    descend: Descent,
    polish: int,
    generator: torch.Generator,
    ends: Callable[[], bool],
) -> Configuration:
    """Where the search over cells ends far above the bound, descend by BFGS and over cells in turn.

    A move between cells is a jump of one or two particles; BFGS carries all of them over kinks a
    little, to where other jumps help. A handful of particles is solved by enumeration instead.
    """
    bound = bounded.lower_bound
    lowest = _modelled(problem, met[0], model)
    if lowest <= goal:
        return met[0]
    sectors = Sectors.of(problem.features)
    if is_enumerable(problem, sectors):
        met = [*met[:1], *descend(enumerated(problem, sectors, model, _FIELD), model)]
        return min(met, key=lambda x: _modelled(problem, x, model))
    if lowest <= bound + _WIDE * abs(bound):
        return met[0]
    hop = _until(ends, bfgs_descent(problem, polish, generator, ends))
    field = met[:_FIELD]
    for _ in range(_HOPS):
        if ends() or _modelled(problem, field[0], model) <= bound + _WIDE * abs(bound):
            break
        field = [*field, *descend(hop(field, model), model)]
        field.sort(key=lambda x: _modelled(problem, x, model))
        field = field[:_FIELD]
    return field[0]


def _settled(
    problem: ParticleProblem,
    bounded: Bounded,
    spread: Spread,
    model: QuadraticRisk,
    generator: torch.Generator,
    count: int,
    polish: int,
    ends: Callable[[], bool],
) -> Configuration:
    """Descend a little from many roundings, further from the best few, to the end from the best.

    The local minimum where the relaxed step started takes part, so the answer is not above it.
    """
    rounding = RayRounding(problem, spread, model)
    field = [rounding.sample(generator)]
    while len(field) < count // _DEAR and not ends():
        field.append(rounding.sample(generator))
    if bounded.local is not None:
        field.append(bounded.local)
    for share, kept in _HEATS:
        descend = _until(ends, descent(problem, max(1, int(share * polish)), generator, ends))
        field = [x for start in field for x in descend([start], model)]
        field.sort(key=lambda x: _modelled(problem, x, model))
        field = field[:kept]
    return field[0]


def _starts(
    problem: ParticleProblem,
    relaxed: Relaxed,
    model: QuadraticRisk,
    generator: torch.Generator,
    count: int,
) -> Iterator[list[Configuration]]:
    """Yield roundings of the mixture in batches.

    Atoms are dealt out in proportion to their weights. Where the search moves between cells it
    repairs the rest. A descent repairs less: it gets LP vertices first.
    """
    if problem.labels is not None:  # rows of several atoms do not make one permutation of anchors
        order = relaxed.weights.argsort(descending=True).tolist()
        for j in order[:count]:
            yield [relaxed.atoms[j]]
        return
    if not has_cells(problem) and problem.width * len(relaxed.atoms) <= _LP_WEIGHTS:
        yield rounded(problem, relaxed, model, generator, starts=_VERTICES)
        count = max(1, count // _DEARER)
    offset = torch.stack([a.offset for a in relaxed.atoms]).mT @ relaxed.weights
    table = Table.of(problem, relaxed.atoms, offset, model)
    size = max(1, count // 3)
    for i in range(0, count, size):
        batch = []
        for _ in range(min(size, count - i)):
            choice = stratified_rounding(problem, relaxed.weights, generator)
            if not has_cells(problem):
                choice, _ = interchange_search(table, choice)
            batch.append(table.configuration(choice))
        yield batch
