"""Rounding particles that are spread over rays."""

from __future__ import annotations

import torch

from torch_wprox.certified.bound.spread import Spread
from torch_wprox.certified.problem.particle_problem import ParticleProblem
from torch_wprox.certified.problem.quadratic_model import QuadraticRisk
from torch_wprox.certified.search.ray_rounding import RayRounding
from torch_wprox.closure.block_hessian import BlockHessian

F64 = torch.float64


def test_equal_particles_are_dealt_out_in_proportion() -> None:
    m, n = 40, 3
    X = torch.eye(n, dtype=F64)
    zero = torch.zeros(1, dtype=F64)
    problem = ParticleProblem(
        X, torch.zeros(m, n, dtype=F64), 1.0 / m, torch.ones(m, 1, dtype=F64), 1.0, 1, zero
    )
    shares = torch.tensor([0.5, 0.3, 0.2], dtype=F64)
    particle = torch.arange(m).repeat_interleave(n)
    points = torch.eye(n, dtype=F64).repeat(m, 1)
    z = m * shares.unsqueeze(1)
    model = QuadraticRisk(
        z, 0.0, torch.zeros_like(z), BlockHessian(torch.ones(n, 1, 1, dtype=F64)), True
    )
    spread = Spread(particle, points, shares.repeat(m), zero, z, 0.0, 0.0, z, z)
    for seed in range(5):
        x = RayRounding(problem, spread, model).sample(torch.Generator().manual_seed(seed))
        counts = x.points.sum(0)
        # Independent draws scatter by sqrt(m p (1 - p)), three particles.
        assert torch.allclose(counts, z[:, 0], atol=1e-12)
