"""Best responses: for every particle, the position that answers a loss gradient at the least price.

    b_i = argmin_v <lam, psi_i(v)> + (kappa/2)|v - W_i|^2

Summed over the particles the minima are the price part of the dual bound (theory: the step is
convex in the measure), a proof if every minimum is exact.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from torch_wprox.certified.problem.particle_problem import Answer, Configuration, ParticleProblem
from torch_wprox.certified.responses import planar, planar_joint, searched, spatial
from torch_wprox.certified.responses.proved import frozen_values, trained_values


@dataclass(frozen=True)
class Response:
    """The best responses of all particles to one loss gradient.

    Attributes:
        configuration: b, with the anchors paid from.
        value: min of <lam, z(x)> + price(x); ``-inf`` if unbounded below.
    """

    configuration: Configuration
    value: float


class Oracle(Protocol):
    """Minimises <g, relu(X v)> + (kappa/2)|v - W|^2 or its two-layer counterpart."""

    is_exact: bool

    def respond(self, lam: Tensor, coefficient: Tensor | None, anchors: Tensor) -> Answer:
        """Return the best responses of particles that share one coefficient.

        Args:
            lam: Loss gradient, (n, k).
            coefficient: a (k,), None where output weights are trained.
            anchors: W (b, D).
        """


class BestResponse:
    """Best responses of a :class:`ParticleProblem`, prepared once for many loss gradients.

    Args:
        problem: The particles.
        exact_cells: Exact answers for particles with three inputs if the samples cut space into at
            most this many cells (4 n^2 of them are visited).

    Attributes:
        is_exact: Whether every answer is a global minimiser, so that bounds are proofs.
    """

    def __init__(self, problem: ParticleProblem, exact_cells: int = 400_000) -> None:
        self._problem = problem
        self._oracle = _oracle_for(problem, exact_cells)
        self.is_exact = self._oracle.is_exact
        if problem.coefficients is None:
            self._groups: list[tuple[Tensor | None, Tensor]] = [
                (None, torch.arange(problem.width, device=problem.anchors.device))
            ]
        else:
            rows, group = torch.unique(problem.coefficients, dim=0, return_inverse=True)
            self._groups = [(a, (group == q).nonzero()[:, 0]) for q, a in enumerate(rows)]

    def __call__(self, lam: Tensor) -> Response:
        """Return the best responses to the loss gradient lam (n, k)."""
        p = self._problem
        offset = p.best_offset(lam)
        fixed = float(lam.sum(0) @ offset) + p.offset_price(offset)
        if p.labels is None:
            points = torch.empty_like(p.anchors)
            total = fixed
            for a, members in self._groups:
                found, values = self._answers(lam, a, p.anchors[members])
                points[members] = found
                total += float(values.sum())
            return Response(Configuration(points, offset, p.start().sigma), total)
        return self._with_exchange(lam, offset, fixed)

    def quick(self, lam: Tensor) -> Response:
        """Return good responses to the loss gradient, where the best ones are searched for."""
        with self._quickly():
            return self(lam)

    def learn(self, directions: Tensor) -> None:
        """Let a search begin at these directions (b, d) too; an exact answer needs none."""
        if isinstance(self._oracle, searched.Directions):
            self._oracle.learn(directions)

    def proved(
        self, slopes: Sequence[Tensor], *, seconds: float, tolerance: float = 0.01
    ) -> list[float] | None:
        """Return proved numbers below min of <lam, z(x)> + price(x), for each lam.

        Where best responses are exact the numbers are the minima. Elsewhere branch and bound proves
        them, and ``respond(lam).value`` less the number is how loose it may be at most.

        Args:
            slopes: Loss gradients lam (n, k). Multiples of the first are cheap; anything else in
                them makes the number lower.
            seconds: Stop then, with what is proved.
            tolerance: Stop when the radius of every best response is known up to this share.

        Returns:
            The numbers, -inf where nothing is proved; None for several outputs with trained output
            weights, where there is no proof but the plane's.
        """
        p = self._problem
        if self.is_exact:
            return [self(lam).value for lam in slopes]
        if p.trains_output and p.outputs > 1:
            return None
        until = time.monotonic() + seconds
        fixed = []
        for lam in slopes:
            offset = p.best_offset(lam)
            fixed.append(float(lam.sum(0) @ offset) + p.offset_price(offset))
        cost = p.anchors.new_empty(len(slopes), len(self._groups), p.width)
        for q, (a, members) in enumerate(self._groups):
            rows = members if p.labels is None else torch.arange(p.width, device=members.device)
            anchors = p.anchors[rows]
            found = self._answers(slopes[0], a, anchors)[0][:, : p.inputs]
            starts = torch.cat([found, anchors[:, : p.inputs]])
            now = time.monotonic()
            end = now + max(0.0, until - now) / (len(self._groups) - q)

            def bounded(
                W: Tensor, a: Tensor | None = a, starts: Tensor = starts, end: float = end
            ) -> tuple[Tensor]:
                if a is None:
                    found = trained_values(p, slopes, W, starts, tolerance=tolerance, until=end)
                else:
                    found = frozen_values(p, slopes, a, W, starts, tolerance=tolerance, until=end)
                return (found.T,)

            cost[:, q, rows] = p.ranks.shared(anchors, bounded)[0].T
        return [f + self._least(c) for f, c in zip(fixed, cost, strict=True)]

    def _answers(self, lam: Tensor, a: Tensor | None, anchors: Tensor) -> Answer:
        """Return the best responses (b, D) and values (b,), of which every rank finds a part."""
        found, values = self._problem.ranks.shared(
            anchors, lambda W: self._oracle.respond(lam, a, W)
        )
        return found, values

    def _least(self, cost: Tensor) -> float:
        """Return the least sum over all admissible assignments of coefficients to anchors."""
        p, group = self._problem, self.groups
        if p.labels is None:
            return float(cost.gather(0, group.unsqueeze(0)).sum())
        total = 0.0
        for label in torch.unique(p.labels):
            members = (p.labels == label).nonzero()[:, 0]
            part = cost[group[members]][:, members]
            if not bool(part.isfinite().all()):
                return -float("inf")
            total += float(part.cpu().numpy()[linear_sum_assignment(part.cpu().numpy())].sum())
        return total

    @property
    def groups(self) -> Tensor:
        """Which coefficient each particle has, (m,): equal numbers mean equal coefficients."""
        group = self._problem.start().sigma.clone()
        for q, (_, members) in enumerate(self._groups):
            group[members] = q
        return group

    def everywhere(self, lam: Tensor) -> Tensor:
        """Return a good response (Q, m, D) of each coefficient at each anchor, as :meth:`quick`."""
        with self._quickly():
            return self._everywhere(lam)[0]

    @contextmanager
    def _quickly(self) -> Iterator[None]:
        """Search less for best responses; exact ones stay exact."""
        oracle = self._oracle
        if not isinstance(oracle, searched.Directions):
            yield
            return
        oracle.is_thorough = False
        try:
            yield
        finally:
            oracle.is_thorough = True

    def _everywhere(self, lam: Tensor) -> Answer:
        anchors = self._problem.anchors
        answers = [self._answers(lam, a, anchors) for a, _ in self._groups]
        return torch.stack([v for v, _ in answers]), torch.stack([f for _, f in answers])

    def _with_exchange(self, lam: Tensor, offset: Tensor, fixed: float) -> Response:
        """Also choose which anchor every particle is paid from.

        Coefficients differ inside a label, so who takes which anchor matters: with c(q, j) the best
        value of a particle of coefficient q at anchor j this is an assignment problem; for two
        coefficients it is sorting c(+, j) - c(-, j).
        """
        p = self._problem
        assert p.labels is not None
        sigma = p.start().sigma.clone()
        points = torch.empty_like(p.anchors)
        total = fixed
        all_points, all_values = self._everywhere(lam)
        group = self.groups
        for label in torch.unique(p.labels):
            members = (p.labels == label).nonzero()[:, 0]
            cost = all_values[group[members]][:, members]
            if not bool(cost.isfinite().all()):
                return Response(Configuration(p.anchors, offset, sigma), -float("inf"))
            _, columns = linear_sum_assignment(cost.cpu().numpy())
            taken = members[torch.as_tensor(columns, device=members.device)]
            sigma[members] = taken
            points[members] = all_points[group[members], taken]
            total += float(all_values[group[members], taken].sum())
        return Response(Configuration(points, offset, sigma), total)


def _oracle_for(problem: ParticleProblem, exact_cells: int) -> Oracle:
    inputs, samples = problem.inputs, len(problem.features)
    if problem.trains_output:
        if inputs == 2:
            return planar_joint.JointSectors(problem)
        return searched.JointDirections(problem)
    if inputs == 2:
        return planar.PlaneOracle(problem)
    if inputs == 3 and 4 * samples**2 <= exact_cells:
        return spatial.SpaceOracle(problem)
    return searched.Directions(problem)
