"""The relaxed step over rays: its bound, against the whole configurations of the plane."""

from __future__ import annotations

import pytest
import torch

from torch_wprox.certified.bound.conditional_gradient import conditional_gradient
from torch_wprox.certified.bound.ray_program import RayProgram
from torch_wprox.certified.bound.spread import Spread, spread_over_rays
from torch_wprox.certified.problem.particle_problem import ParticleProblem
from torch_wprox.certified.problem.quadratic_model import QuadraticRisk, learn_quadratic
from torch_wprox.certified.responses.best_response import BestResponse

F64 = torch.float64


def never(value: float, bound: float) -> bool:
    return False


def drawn(
    d: int, n: int, m: int, scale: float, *, k: int = 1, bias: bool = False
) -> tuple[ParticleProblem, QuadraticRisk]:
    """Random data, signs and anchors, a squared error, gamma = 1."""
    g = torch.Generator().manual_seed(d + n + m)
    X = torch.randn(n, d, generator=g, dtype=F64)
    y = torch.randn(n, k, generator=g, dtype=F64)
    rows = torch.eye(k, dtype=F64).repeat(m, 1)[:m]
    signs = torch.where(torch.arange(m) < m // 2, 1.0, -1.0).unsqueeze(1)
    problem = ParticleProblem(
        features=X,
        anchors=scale * torch.randn(m, d, generator=g, dtype=F64),
        stiffness=1.0 / m,
        coefficients=signs * rows,
        scale=1.0,
        outputs=k,
        offset=torch.zeros(k, dtype=F64),
        offset_stiffness=1.0 if bias else None,
    )

    def risk(z: torch.Tensor) -> tuple[float, torch.Tensor]:
        return float((z - y).square().mean()), 2.0 * (z - y) / z.numel()

    return problem, learn_quadratic(risk, torch.zeros_like(y), 2e-16)


def spread(problem: ParticleProblem, model: QuadraticRisk, tolerance: float) -> Spread:
    return spread_over_rays(
        problem,
        BestResponse(problem),
        model,
        model,
        lambda *_: model,
        [problem.start()],
        tolerance=tolerance,
        tell=never,
    )


@pytest.mark.parametrize("k", [1, 2])
@pytest.mark.parametrize("bias", [False, True])
def test_bound_is_that_of_whole_configurations_in_the_plane(k: int, bias: bool) -> None:
    problem, model = drawn(2, 6, 8, 0.5, k=k, bias=bias)
    found = spread(problem, model, 1e-6)
    respond = BestResponse(problem)
    other = conditional_gradient(
        problem,
        respond,
        model,
        model,
        lambda *_: model,
        [problem.start()],
        tolerance=1e-7,
        max_iter=500,
        tell=never,
    )
    # Both are within their tolerances below the one value.
    assert found.lower_bound == pytest.approx(other.value, rel=3e-6)
    assert found.value == pytest.approx(other.value, rel=3e-6)


@pytest.mark.parametrize("scale", [0.0, 1e-2, 1.0])
def test_value_and_bound_meet_in_three_inputs(scale: float) -> None:
    # Equal anchors, nearly equal ones, and anchors as far apart as the particles go.
    problem, model = drawn(3, 12, 10, scale)
    found = spread(problem, model, 1e-4)
    assert -1e-12 <= found.value - found.lower_bound <= 1e-4 * found.value
    sums = torch.zeros(10, dtype=F64).index_add_(0, found.particle, found.shares)
    assert torch.allclose(sums, torch.ones(10, dtype=F64))
    # The spread particles have the output and the price that the program says.
    hidden = (found.points @ problem.features.T).clamp_min(0.0) * found.shares.unsqueeze(1)
    z = hidden.T @ problem.coefficients[found.particle]
    assert torch.allclose(z, found.output)
    moved = (found.points - problem.anchors[found.particle]).square().sum(1)
    price = 0.5 * problem.stiffness * float(found.shares @ moved)
    assert model(z)[0] + price == pytest.approx(found.value, rel=1e-9)


def test_price_of_a_program_is_that_of_particles_on_its_rays() -> None:
    problem, _ = drawn(4, 5, 6, 1.0)
    program = RayProgram(problem, problem.start().sigma, problem.offset)
    V = problem.anchors.roll(1, 0)
    radii = V.norm(dim=1)
    program.add(V / radii.unsqueeze(1), torch.arange(6), radii)
    assert program.price == pytest.approx(float(problem.prices(V, problem.start().sigma).sum()))
    assert torch.allclose(program.output, problem.output(V, problem.offset))


def test_particles_at_rest_need_no_directions() -> None:
    problem, _ = drawn(4, 6, 8, 0.0)

    def risk(z: torch.Tensor) -> tuple[float, torch.Tensor]:
        return float(z.square().sum()), 2.0 * z  # least where no particle moves

    model = learn_quadratic(risk, torch.zeros(6, 1, dtype=F64), 2e-16)
    found = spread(problem, model, 1e-6)
    assert found.value == pytest.approx(0.0, abs=1e-12)
    assert found.lower_bound == pytest.approx(0.0, abs=1e-12)
