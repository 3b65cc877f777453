"""The grid flow and the particle flow are discretisations of one Wasserstein gradient flow."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import nn

from conftest import closure_of, sinus_data
from torch_wprox import EntropicJKO, GridLayer, WassersteinProx

GAMMA, STEPS = 0.004, 2


def gaussian(n: int) -> GridLayer:
    axis = torch.linspace(-2, 2, n, dtype=torch.float64)
    layer = GridLayer([axis, axis], mass=10.0, dtype=axis.dtype)
    bump = torch.exp(-2 * layer.cells.square().sum(1)).repeat(2)
    layer.set_weight(bump / bump.sum())
    return layer


def flown(model: nn.Module, opt: torch.optim.Optimizer) -> float:
    closure = closure_of(model, opt, *sinus_data())
    for _ in range(STEPS):
        opt.step(closure)
    return closure().item()


@pytest.mark.slow
def test_grid_flow_tends_to_the_particle_flow_with_the_spacing() -> None:
    particles = gaussian(161).to_particles(1600)
    start = (particles(sinus_data()[0]) - sinus_data()[1]).square().mean().item()
    limit = flown(particles, WassersteinProx(particles.parameters(), GAMMA, max_eval=300))
    errors: dict[bool, list[float]] = {}
    for debiased, grids in ((False, (41, 81, 161)), (True, (41, 81))):
        layers = [gaussian(n) for n in grids]
        errors[debiased] = [
            abs(flown(layer, EntropicJKO(layer, GAMMA, debiased=debiased)) - limit)
            for layer in layers
        ]
    assert start - limit > 0.17
    for found in errors.values():
        # epsilon = 2 dx^2 spreads by dx a step: the first order in dx (measured: .54, .39; .38).
        assert all(fine < 0.65 * coarse for coarse, fine in pairwise(found))
    assert errors[False][-1] < 0.01 * (start - limit)
    assert errors[True][-1] < 0.03 * (start - limit)
