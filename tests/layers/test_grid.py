"""The grid layer: its network, its measure, and the way to and from particles."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from conftest import sinus_data
from torch_wprox import GridLayer, MeanFieldLayer
from torch_wprox.layers.binning import deposit, place, shares

F64 = torch.float64


def axes(n: int = 7, dim: int = 2, side: float = 2.0) -> list[Tensor]:
    return [torch.linspace(-side, side, n + k, dtype=F64) for k in range(dim)]


def random_layer(
    *, dim: int = 2, outputs: int = 1, mass: float = 3.0, bias: bool = True
) -> GridLayer:
    layer = GridLayer(axes(dim=dim), mass=mass, out_features=outputs, bias=bias, dtype=F64)
    p = torch.rand(layer.weight.shape, generator=torch.Generator().manual_seed(0), dtype=F64)
    layer.set_weight(p / p.sum())
    return layer


@pytest.mark.parametrize(("dim", "outputs", "bias"), [(2, 1, True), (3, 2, True), (2, 3, False)])
def test_output_is_the_integral_of_relu_against_the_measure(
    dim: int, outputs: int, bias: bool
) -> None:
    layer = random_layer(dim=dim, outputs=outputs, bias=bias)
    x = torch.randn(4, 5, dim - bias, generator=torch.Generator().manual_seed(1), dtype=F64)
    extended = torch.cat([x, torch.ones(4, 5, 1, dtype=F64)], dim=-1) if bias else x
    hidden = torch.relu(extended @ layer.positions().t())
    columns = layer.outputs.unsqueeze(1) == torch.arange(outputs)
    torch.testing.assert_close(layer(x), hidden @ (layer.masses().unsqueeze(1) * columns))
    assert layer(x).shape == layer.output_shape(x) == (4, 5, outputs)


def test_gradient_is_the_features_adjoint() -> None:
    layer, (x, y) = random_layer(), sinus_data()
    (layer(x) - y).square().mean().backward()
    lam = 2 / 5 * (layer(x) - y).detach()
    by_hand = layer.signs * (layer.features(x).t() @ lam).flatten().repeat(2)
    assert layer.weight.grad is not None
    torch.testing.assert_close(layer.weight.grad, by_hand)


def test_layer_answers_a_given_output() -> None:
    layer, (x, _) = random_layer(), sinus_data()
    z = torch.ones(5, 1, dtype=F64, requires_grad=True)
    with layer.substituting(z), layer.observing() as seen:
        layer(x).square().sum().backward()
    assert z.grad is not None
    torch.testing.assert_close(z.grad, 2 * z.detach())
    assert len(seen.calls) == 1
    assert layer.weight.grad is None


def test_layer_survives_copies_and_its_state_dict() -> None:
    layer, (x, _) = random_layer(), sinus_data()
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        torch.testing.assert_close(other(x), layer(x), rtol=0, atol=0)
    fresh = GridLayer(axes(), mass=3.0, dtype=F64)
    fresh.load_state_dict(layer.state_dict())
    torch.testing.assert_close(fresh(x), layer(x), rtol=0, atol=0)
    assert list(layer.state_dict()) == ["weight"]
    assert "shape=(7, 8)" in repr(layer)


def test_axes_are_what_was_given() -> None:
    for found, expected in zip(GridLayer(axes(), dtype=F64).axes(), axes(), strict=True):
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("parameterization", ["joint", "signed", "clouds", "sphere", "radial"])
def test_binned_particles_on_grid_points_are_the_same_network(parameterization: str) -> None:
    g = torch.Generator().manual_seed(0)
    points = torch.stack([axis[torch.randint(len(axis), (20,), generator=g)] for axis in axes()], 1)
    alpha = torch.where(torch.rand(20, generator=g, dtype=F64) < 0.5, 1.5, -1.5)
    if parameterization == "clouds":
        points, alpha = points / 1.5, alpha  # positions are |alpha| w
    if parameterization == "sphere":
        points = torch.eye(2, dtype=F64)[torch.arange(20) % 2]  # directions on grid points
        lines = [torch.linspace(-1, 1, 5, dtype=F64)] * 2
    else:
        lines = axes()
    tolerance = 1e-12
    if parameterization == "radial":  # positions have norm < 1 and are on no grid
        lines, tolerance = axes(n=300), 1e-3
    particles = MeanFieldLayer.from_neurons(
        points[:, :1],
        alpha,
        bias=points[:, 1],
        parameterization=parameterization,  # type: ignore[arg-type]
    )
    layer = GridLayer.from_particles(particles, lines)
    x, _ = sinus_data()
    torch.testing.assert_close(layer(x), particles(x).detach(), rtol=0, atol=tolerance)
    assert float(layer.weight.detach().sum()) == pytest.approx(1.0, abs=1e-14)


def test_binning_keeps_mass_and_mean() -> None:
    g = torch.Generator().manual_seed(3)
    points = 4 * torch.rand(30, 3, generator=g, dtype=F64) - 2
    masses = torch.rand(30, 2, generator=g, dtype=F64)
    lines = axes(dim=3)
    layer = GridLayer(lines, dtype=F64)
    density = deposit(points, masses, layer.lower, layer.spacing, layer.shape).flatten(1)
    torch.testing.assert_close(density.sum(1), masses.sum(0))
    torch.testing.assert_close(density @ layer.cells, masses.t() @ points)


def test_several_outputs_are_binned_into_their_blocks() -> None:
    particles = MeanFieldLayer(
        1, 12, 3, parameterization="joint", dtype=F64, generator=torch.Generator().manual_seed(0)
    )
    layer = GridLayer.from_particles(particles, axes(n=200, side=6.0))
    # The ReLU is piecewise linear: binning errs only in the cells that a kink crosses.
    torch.testing.assert_close(
        layer(sinus_data()[0]), particles(sinus_data()[0]).detach(), rtol=0, atol=1e-2
    )


@settings(max_examples=20, deadline=None)
@given(m=st.integers(2, 60), seed=st.integers(0, 1000), dim=st.integers(2, 3))
def test_quantising_keeps_the_mean_of_every_block(m: int, seed: int, dim: int) -> None:
    layer = GridLayer(axes(n=4, dim=dim), mass=3.0, dtype=F64)
    p = torch.rand(layer.weight.shape, generator=torch.Generator().manual_seed(seed), dtype=F64)
    layer.set_weight(p / p.sum())
    particles = layer.to_particles(m)
    assert particles.width == m
    assert particles.particles.shape[1] == dim
    counts = shares(layer.density().flatten(1).sum(1), m)
    assert sum(counts) == m
    signs = particles.signs
    for b, sign in enumerate((1.0, -1.0)):
        mine = particles.positions()[signs == sign]
        assert len(mine) == counts[b]
        if len(mine):
            density = layer.density()[b].flatten()
            mean = density @ layer.cells / density.sum()
            torch.testing.assert_close(mine.mean(0), mean, rtol=0, atol=1e-9)
    assert particles.alpha is not None
    torch.testing.assert_close(particles.alpha.abs(), torch.full((m,), 3.0, dtype=F64))


def test_quantised_network_tends_to_the_layer() -> None:
    layer, (x, _) = random_layer(), sinus_data()
    errors = [
        float((layer.to_particles(m)(x) - layer(x)).abs().max().detach()) for m in (10, 100, 1000)
    ]
    assert errors[2] < errors[0] / 20
    assert errors[2] < 3e-3


def test_samples_come_from_their_generator_and_stay_in_their_cells() -> None:
    layer = random_layer()
    first, again = (
        layer.to_particles(40, method="sample", generator=torch.Generator().manual_seed(7))
        for _ in range(2)
    )
    assert torch.equal(first.particles, again.particles)
    low = torch.tensor(layer.lower) - torch.tensor(layer.spacing) / 2
    assert bool((first.positions() >= low).all())
    mass = torch.tensor([0.0, 1.0, 0.0], dtype=F64)
    cells = torch.tensor([[0.0], [1.0], [2.0]], dtype=F64)
    points = place("sample", mass, cells, torch.tensor([1.0]), 50, torch.Generator().manual_seed(0))
    assert bool(((points - 1).abs() <= 0.5).all())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"axes": [torch.tensor([0.0, 1.0, 1.5])] * 2}, "evenly spaced"),
        ({"axes": [torch.tensor([1.0, 0.0])] * 2}, "increasing"),
        ({"axes": [torch.tensor([])] * 2}, "1-d tensor"),
        ({"axes": [torch.zeros(1)]}, "one axis per weight"),
        ({"signs": (2.0,)}, "signs must be"),
        ({"signs": ()}, "signs must be"),
        ({"mass": 0.0}, "mass must be"),
        ({"out_features": 0}, "out_features must be"),
        ({"dtype": torch.int64}, "dtype must be"),
        ({"weight": torch.ones(3)}, "112 entries"),
        ({"weight": torch.ones(112)}, "sum to 1"),
        ({"weight": -torch.ones(112)}, "weight must be >= 0"),
        ({"weight": torch.full((112,), torch.nan)}, "finite"),
    ],
)
def test_refused_arguments_are_named(change: dict[str, object], message: str) -> None:
    arguments = {"axes": axes(), "dtype": F64} | change
    with pytest.raises(ValueError, match=message):
        GridLayer(arguments.pop("axes"), **arguments)  # type: ignore[arg-type]


def test_refused_conversions_are_named() -> None:
    layer = random_layer()
    with pytest.raises(ValueError, match="method must be"):
        layer.to_particles(5, method="guess")
    with pytest.raises(ValueError, match="m must be"):
        layer.to_particles(0)
    wide = MeanFieldLayer(1, 8, init_scale=100.0, dtype=F64, generator=torch.Generator())
    with pytest.raises(ValueError, match="contain every particle"):
        GridLayer.from_particles(wide, axes())
    with pytest.raises(ValueError, match="output_bias"):
        GridLayer.from_particles(MeanFieldLayer(1, 8, output_bias=True), axes())
