"""The relaxed step over rays, column by column: frozen output weights, any number of inputs.

Two stages. First all particles of one output coefficient are spread alike around the mean of their
anchors: a handful of groups, so that directions are found fast. Then every particle is a group of
its own, with all directions met so far at its disposal, and each round adds the best responses of
all particles to the loss gradient; their values give the bound.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from torch_wprox.certified.bound.ray_program import RayProgram, Rays
from torch_wprox.certified.problem.batched_bfgs import Ends, unlimited
from torch_wprox.certified.problem.particle_problem import Configuration, ParticleProblem, Risk
from torch_wprox.certified.problem.quadratic_model import QuadraticRisk
from torch_wprox.certified.responses.best_response import BestResponse
from torch_wprox.certified.responses.directions import unit
from torch_wprox.certified.responses.population import Population, distinct
from torch_wprox.objective import BudgetExhausted

Tell = Callable[[float, float], bool]
"""Value of the relaxed step and bound so far -> whether to end."""

# Rounds of the first stage, its tolerance, and the directions that a round adds per coefficient.
_POOLED_ROUNDS, _POOLED_TOLERANCE = 20, 1e-3
_KEPT = 24
# Rounds of the second stage, and of (directions of the pool, lengths) inside one of them.
_ROUNDS, _INNER = 40, 40
_DEAR_INNER = 3
_INNER_TOLERANCE = 0.2
# Searches for directions before a bound is confirmed.
_THOROUGH = 8
# Directions of a class that a quick answer begins at.
_QUICKLY = 200
# A bound is confirmed when it seems tight or did not rise for some rounds; so many times at most.
_PATIENCE, _CONFIRMATIONS = 4, 4
# A search that found nothing lower by chance makes a bound too high: the best is searched again
# until it holds to this share.
_HOLDS, _RECHECKS = 1e-2, 3
_SAME = 1.0 - 1e-9
_ALIKE = 1.0 - 1e-6


@dataclass(frozen=True)
class Spread:
    """A solution of the relaxed step: every particle is spread over a few positions.

    Attributes:
        particle: Whose position it is, (J,).
        points: Positions (J, D).
        shares: Shares (J,); those of a particle sum to 1.
        offset: Output bias (k,).
        output: z of the spread particles, (n, k).
        value: Value of the relaxed step there.
        lower_bound: Best dual bound met.
        multiplier: The loss gradient (n, k) that gave it.
        bound_output: Output (n, k) at which it is the loss gradient.
    """

    particle: Tensor
    points: Tensor
    shares: Tensor
    offset: Tensor
    output: Tensor
    value: float
    lower_bound: float
    multiplier: Tensor
    bound_output: Tensor


def spread_over_rays(
    problem: ParticleProblem,
    respond: BestResponse,
    risk: Risk,
    model: QuadraticRisk,
    relearn: Callable[[Tensor, float, Tensor], QuadraticRisk],
    starts: list[Configuration],
    *,
    tolerance: float,
    tell: Tell,
    ends: Ends = unlimited,
) -> Spread:
    """Solve the relaxed step by generating rays.

    Args:
        problem: The particles; output weights frozen, labels None.
        respond: Their best responses.
        risk: R and its gradient; its own model if the loss is a quadratic.
        model: Second-order model of R.
        relearn: (z, R(z), grad R(z)) -> a new model, for losses that are not quadratics.
        starts: Configurations whose directions are columns from the start, lowest first.
        tolerance: Gap at which to stop, relative to the value.
        tell: Called at every round.
        ends: Whether time is up, asked more often.
    """
    return _Spreading(problem, respond, risk, model, relearn, tolerance, tell, ends).solved(starts)


class _Spreading:
    """What both stages share: the loss with its model, and the best bound."""

    def __init__(
        self,
        problem: ParticleProblem,
        respond: BestResponse,
        risk: Risk,
        model: QuadraticRisk,
        relearn: Callable[[Tensor, float, Tensor], QuadraticRisk],
        tolerance: float,
        tell: Tell,
        ends: Ends,
    ) -> None:
        self._problem, self._respond, self._risk, self._model = problem, respond, risk, model
        self._relearn, self._tolerance, self._tell = relearn, tolerance, tell
        self._generator = torch.Generator().manual_seed(0)
        self._met: list[tuple[float, float, Tensor, Tensor]] = []
        self._bound = -math.inf
        self._multiplier, self._bound_output = model.grad, model.centre
        self._value, self._lam = model.value, model.grad
        self._is_over, self._ends = ends, False

    def solved(self, starts: list[Configuration]) -> Spread:
        assert self._problem.coefficients is not None
        classes = torch.unique(self._problem.coefficients, dim=0, return_inverse=True)[1]
        self._classes = classes
        self._population = Population(self._problem, classes)
        pooled = RayProgram(self._problem, classes, starts[0].offset)
        single = RayProgram(self._problem, self._problem.start().sigma, starts[0].offset)
        pool = single.rays.directions
        for j, x in enumerate(starts):
            units, radii = unit(x.points), x.points.norm(dim=1)
            moved = radii > 0
            pool = torch.cat([pool, units[moved]])
            pooled.add(units[moved], classes[moved])
            lengths = radii if j == 0 else torch.zeros_like(radii)
            single.add(units[moved], moved.nonzero()[:, 0], lengths[moved])
        try:
            if 2 * len(pooled.count) <= self._problem.width:
                self._pool(pooled)
                pool = torch.cat([pool, pooled.rays.directions])
                single.offset = pooled.offset
            self._spread(single, pooled, distinct(pool, _SAME))
        except BudgetExhausted:
            if not math.isfinite(self._bound):
                raise
        self._recheck(single)
        return self._result(single)

    # -- both stages -----------------------------------------------------------------------------

    def _correct(self, program: RayProgram) -> float:
        """Solve for the lengths on the model; return the value of the relaxed step there."""
        lengths, offset = program.corrected(self._model)
        if self._model.is_exact:
            program.move(lengths, offset)
            self._value, self._lam = self._risk(program.output)
            return self._value + program.price
        before, offset_before = program.rays.lengths, program.offset
        z, price = program.output, program.price
        value, lam = self._risk(z)
        total, share = value + price, 1.0
        while True:
            program.move(
                before + share * (lengths - before),
                offset_before + share * (offset - offset_before),
            )
            z = program.output
            try:
                value, lam = self._risk(z)
            except BudgetExhausted:
                program.move(before, offset_before)
                raise
            if value + program.price <= total or share < 1e-6:
                break
            share *= 0.5
        self._value, self._lam = value, lam
        self._model = self._relearn(z, value, lam)
        return value + program.price

    def _hoped(self, program: RayProgram, responses: float) -> float:
        """Return R(z) - <lam, z> + min of the rest, at the program's output."""
        return self._value - float((self._lam * program.output).sum()) + responses

    def _confirm(self, program: RayProgram, responses: float) -> None:
        """Take in the bound at the program's output."""
        free = self._hoped(program, 0.0)
        self._met.append((free + responses, free, self._lam, program.output))
        self._met.sort(key=lambda met: met[0])
        self._bound, _, self._multiplier, self._bound_output = self._met[-1]

    def _recheck(self, program: RayProgram) -> None:
        """Search again below the best bound until it holds."""
        if not self._met or not self._ends:
            self._respond.learn(program.rays.directions)
            self._confirm(program, self._respond(self._lam).value)
        for _ in range(0 if self._respond.is_exact else _RECHECKS):
            if self._is_over():
                break
            bound, free, lam, z = self._met.pop()
            owners = self._classes[program.rays.group]
            self._respond.learn(torch.cat(self._searched(program.rays, owners, _THOROUGH, lam)))
            again = min(bound, free + self._respond(lam).value)
            self._met.append((again, free, lam, z))
            self._met.sort(key=lambda met: met[0])
            if bound - again <= _HOLDS * abs(bound):
                break
        self._bound, _, self._multiplier, self._bound_output = self._met[-1]

    # -- the first stage: groups of equal coefficients -------------------------------------------

    def _pool(self, program: RayProgram) -> None:
        """Spread the particles of one coefficient alike; only directions are taken from it."""
        groups = torch.arange(len(program.count), device=program.count.device)
        best = -math.inf
        for _ in range(_POOLED_ROUNDS):
            total = self._correct(program)
            program.prune()
            met = self._searched(program.rays, program.rays.group)
            directions = torch.cat(met)
            group = torch.cat([groups[q].expand(len(u)) for q, u in enumerate(met)])
            radii = program.radii(self._lam, directions)[group, torch.arange(len(group))]
            longest = torch.zeros_like(program.count).scatter_reduce(0, group, radii, "amax")
            bound = self._value - float((self._lam * program.output).sum()) + self._fixed()
            bound -= 0.5 * self._problem.stiffness * float((program.count * longest**2).sum())
            bound += 0.5 * self._problem.stiffness * float(self._problem.anchors.square().sum())
            best = max(best, bound)
            self._ends = self._tell(total, self._bound) or self._is_over()
            if self._ends or total - best <= max(_POOLED_TOLERANCE, self._tolerance) * abs(total):
                break
            for g in groups.tolist():
                own = ((group == g) & (radii > program.totals[g] * (1.0 + 1e-9))).nonzero()[:, 0]
                own = own[radii[own].argsort(descending=True)]
                found = distinct(directions[own], _ALIKE)[:_KEPT]
                program.add(found, torch.full_like(own[: len(found)], g))

    def _fixed(self) -> float:
        """Return min over the output bias of <lam, 1 c^T> + its price."""
        offset = self._problem.best_offset(self._lam)
        return float(self._lam.sum(0) @ offset) + self._problem.offset_price(offset)

    def _searched(
        self, rays: Rays, group: Tensor, rounds: int = 1, lam: Tensor | None = None
    ) -> list[Tensor]:
        """Return good directions (b, d) of every class, best first; rays are of classes (J,)."""
        known = [rays.directions[group == q] for q in range(int(self._classes.max()) + 1)]
        return self._population.improved(self._lam if lam is None else lam, known, rounds)

    # -- the second stage: every particle for itself ---------------------------------------------

    def _spread(self, program: RayProgram, pooled: RayProgram, pool: Tensor) -> None:
        searches = not self._respond.is_exact
        inner = _INNER if self._model.is_exact else _DEAR_INNER
        waiting, reference, confirmations = 0, -math.inf, 0
        for _ in range(_ROUNDS):
            total = self._correct(program)
            for _ in range(inner):
                program.prune()
                if self._is_over() or not len(pool):
                    break
                radii, best = program.radii(self._lam, pool).max(1)
                excess = radii - program.totals
                most = float(excess.max())
                if most <= _INNER_TOLERANCE * self._tolerance * float(program.totals.max()):
                    break
                rows = (excess > 0.1 * most).nonzero()[:, 0]
                program.add(pool[best[rows]], rows)
                total = self._correct(program)
            program.prune()
            if searches:
                met = self._searched(program.rays, self._classes[program.rays.group])
                first = [u[:_QUICKLY] for u in met]
                self._respond.learn(torch.cat([program.rays.directions, *first]))
            response = self._respond.quick(self._lam)
            hoped = self._hoped(program, response.value)
            reference, waiting = max(reference, hoped), 0 if hoped > reference else waiting + 1
            settles = total - reference <= self._tolerance * abs(total) or waiting > _PATIENCE
            if settles and not self._is_over():
                # What a quick search calls a bound may be too high: only a thorough one counts.
                if searches:
                    owners = self._classes[program.rays.group]
                    met = self._searched(program.rays, owners, _THOROUGH)
                    self._respond.learn(torch.cat(met))
                response = self._respond(self._lam)
                self._confirm(program, response.value)
                waiting, reference, confirmations = 0, -math.inf, confirmations + 1
            self._ends = self._ends or self._tell(total, self._bound) or self._is_over()
            is_solved = total - self._bound <= self._tolerance * abs(total)
            if self._ends or is_solved or confirmations == _CONFIRMATIONS:
                break
            points = response.configuration.points
            units = unit(points)
            at = program.radii(self._lam, units).diagonal()
            rows = (at > program.totals * (1.0 + 1e-9)).nonzero()[:, 0]
            pool = distinct(torch.cat([program.rays.directions, units[rows]]), _SAME)
            program.add(units[rows], rows)

    def _result(self, program: RayProgram) -> Spread:
        rays, totals = program.rays, program.totals
        at_rest = (totals <= 0).nonzero()[:, 0]
        points = totals[rays.group].unsqueeze(1) * rays.directions
        shares = rays.lengths / totals[rays.group].clamp_min(1e-300)
        kept = shares > 0
        return Spread(
            torch.cat([rays.group[kept], at_rest]),
            torch.cat([points[kept], torch.zeros_like(program.anchors[at_rest])]),
            torch.cat([shares[kept], torch.ones_like(totals[at_rest])]),
            program.offset,
            program.output,
            self._value + program.price,
            self._bound,
            self._multiplier,
            self._bound_output,
        )
