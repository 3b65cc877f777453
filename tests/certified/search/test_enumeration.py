"""A handful of particles: the best choice of sectors, against the enumeration of the tests."""

from __future__ import annotations

import pytest
import torch

from cases.global_cases import random_case
from torch_wprox import Global, WassersteinProx
from torch_wprox.certified.problem.particle_problem import ParticleProblem
from torch_wprox.certified.problem.quadratic_model import learn_quadratic
from torch_wprox.certified.responses.planar import Sectors
from torch_wprox.certified.search.cell_search import CellSearch
from torch_wprox.certified.search.enumeration import enumerated


@pytest.mark.parametrize(
    "kwargs",
    [{"m": 2}, {"m": 2, "k": 2}, {"m": 1, "n": 5}, {"m": 3, "n": 2}, {"m": 2, "form": "clouds"}],
    ids=str,
)
def test_few_neurons_at_a_large_step_reach_the_minimum(kwargs: dict[str, int]) -> None:
    for seed in range(4):
        case = random_case(seed, gamma=1e3, **kwargs)
        smallest = case.smallest()
        opt = WassersteinProx(case.layer.parameters(), 1e3, solver=Global(tolerance_gap=0.0))
        opt.step(case.closure)
        opt.zero_grad()
        assert opt.report is not None
        assert opt.report.objective <= smallest + 1e-8 * (1 + abs(smallest))


def test_a_free_output_bias_is_minimised_with_the_lengths() -> None:
    g = torch.Generator().manual_seed(0)
    X = torch.randn(4, 2, generator=g, dtype=torch.float64)
    y = torch.randn(4, 1, generator=g, dtype=torch.float64)
    problem = ParticleProblem(
        features=X,
        anchors=torch.randn(2, 2, generator=g, dtype=torch.float64),
        stiffness=0.01,
        coefficients=torch.tensor([[1.0], [-1.0]], dtype=torch.float64),
        scale=1.0,
        outputs=1,
        offset=torch.ones(1, dtype=torch.float64),
        offset_stiffness=0.3,
    )
    model = learn_quadratic(
        lambda z: (float((z - y).square().mean()), (z - y) / 2), torch.zeros_like(y), 2e-16
    )
    sectors = Sectors.of(X)
    cells = CellSearch(problem, sectors)
    lowest = enumerated(problem, sectors, model, 1)[0]
    start = problem.output(problem.anchors, problem.offset)
    values = []
    for choice in torch.cartesian_prod(*[torch.arange(len(sectors.rays))] * 2):
        x, z = cells.settled(choice, problem.start().sigma, model, start)
        values.append(float(model.values(z)) + problem.price(x))
    z = problem.output(lowest.points, lowest.offset)
    reached = float(model.values(z)) + problem.price(lowest)
    assert reached == pytest.approx(min(values), rel=1e-9)
