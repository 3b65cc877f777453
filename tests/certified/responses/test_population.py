"""The search for directions, against exact best radii in space and bounds in more dimensions."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from torch_wprox.certified.problem.particle_problem import ParticleProblem
from torch_wprox.certified.responses.branch_and_bound import proved_radii
from torch_wprox.certified.responses.population import Population, distinct
from torch_wprox.certified.responses.spatial import SpaceOracle

F64 = torch.float64


def drawn(d: int, n: int, m: int) -> tuple[ParticleProblem, Tensor, Tensor]:
    """A problem with anchors at 0, a loss gradient, and the classes of its particles."""
    g = torch.Generator().manual_seed(d + n)
    signs = torch.where(torch.arange(m) < m // 2, 1.0, -1.0).to(F64).unsqueeze(1)
    problem = ParticleProblem(
        features=torch.randn(n, d, generator=g, dtype=F64),
        anchors=torch.zeros(m, d, dtype=F64),
        stiffness=0.5,
        coefficients=signs,
        scale=1.0,
        outputs=1,
        offset=torch.zeros(1, dtype=F64),
    )
    return problem, torch.randn(n, 1, generator=g, dtype=F64), (signs[:, 0] > 0).long()


def radius(problem: ParticleProblem, lam: Tensor, u: Tensor, a: Tensor) -> float:
    hidden = (problem.features @ u).clamp_min(0.0)
    return -float(hidden @ (lam @ a)) / problem.stiffness


@pytest.mark.parametrize("n", [20, 60])
def test_best_direction_in_space_is_the_exact_one(n: int) -> None:
    problem, lam, classes = drawn(3, n, 4)
    population = Population(problem, classes)
    found = population.improved(lam, [problem.anchors[:0]] * 2)
    assert problem.coefficients is not None
    for q in (0, 1):
        a = problem.coefficients[classes == q][0]
        # (kappa/2)(|W|^2 - r^2) is the least value.
        _, value = SpaceOracle(problem).respond(lam, a, problem.anchors[:1])
        exact = (-2.0 * float(value) / problem.stiffness) ** 0.5
        assert radius(problem, lam, found[q][0], a) == pytest.approx(exact, rel=1e-6)


def test_searches_come_within_what_is_proved_in_five_dimensions() -> None:
    problem, lam, classes = drawn(5, 25, 4)
    population = Population(problem, classes)
    found = population.improved(lam, [problem.anchors[:0]] * 2, rounds=2)
    assert problem.coefficients is not None
    for q in (0, 1):
        a = problem.coefficients[classes == q][0]
        weights = -(lam @ a) / problem.stiffness
        known = proved_radii(
            problem.features,
            weights,
            problem.anchors[:1],
            found[q][:50],
            tolerance=0.01,
            seconds=20.0,
        )
        reached = radius(problem, lam, found[q][0], a)
        assert reached <= float(known.proved)
        assert reached >= (1.0 - 1e-6) * float(known.reached)


def test_members_are_kept_best_first_and_once() -> None:
    problem, lam, classes = drawn(6, 40, 6)
    population = Population(problem, classes)
    assert problem.coefficients is not None
    for _ in range(2):
        (_, units) = population.improved(lam, [problem.anchors[:0]] * 2)
        a = problem.coefficients[classes == 1][0]
        radii = [radius(problem, lam, u, a) for u in units]
        assert radii == sorted(radii, reverse=True)
        assert len(distinct(units, 1.0 - 1e-6)) == len(units)
    # A new gradient re-orders what is known.
    (_, turned) = population.improved(-lam, [problem.anchors[:0]] * 2)
    radii = [radius(problem, -lam, u, a) for u in turned]
    assert radii == sorted(radii, reverse=True)
