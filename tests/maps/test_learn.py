"""Energies learned from clouds at times, where the energy is known."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from torch_wprox import (
    FrobeniusProx,
    LearnedEnergy,
    MapFlow,
    MeanFieldLayer,
    learn_energy,
)
from torch_wprox.maps import Entropy, Potential, polynomials, radial, ridges
from torch_wprox.maps.features import gradients, laplacians
from torch_wprox.recording import TrajectoryRecorder


def cloud(m: int, D: int = 2, seed: int = 0, scale: float = 1.0) -> Tensor:
    random = torch.Generator().manual_seed(seed)
    return scale * torch.randn(m, D, generator=random, dtype=torch.float64)


def gradient(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    at = x.clone().requires_grad_()
    return torch.autograd.grad(function(at).sum(), at)[0]


def styblinski_tang(x: Tensor) -> Tensor:
    return 0.5 * (x.pow(4) - 16 * x.square() + 5 * x).sum(1)


def rosenbrock(x: Tensor) -> Tensor:
    return (1 - x[:, 0]).square() + 10 * (x[:, 1] - x[:, 0].square()).square()


def exact_steps(function: Callable[[Tensor], Tensor], gamma: float, steps: int = 3) -> list[Tensor]:
    """Clouds of exact implicit steps, last one first chosen: x = y + gamma grad V(y)."""
    clouds = [cloud(200, scale=0.5)]
    for _ in range(steps):
        y = clouds[0]
        clouds.insert(0, y + gamma * gradient(function, y))
    return clouds


@pytest.mark.parametrize("function", [styblinski_tang, rosenbrock])
def test_a_polynomial_potential_is_found_to_rounding(function: Callable[[Tensor], Tensor]) -> None:
    clouds = exact_steps(function, 1e-3)
    found = learn_energy(clouds, 1e-3, potential=polynomials(2, 4))
    for y in clouds[1:]:
        true = gradient(function, y)
        assert (found.potential_gradient(y) - true).norm() < 1e-6 * true.norm()
    assert found.residual < 1e-5
    assert found.temperature == 0
    # And the next cloud is the one that was seen.
    torch.testing.assert_close(found.predict(clouds[0], 1e-3), clouds[1], rtol=1e-5, atol=1e-5)


def test_clouds_of_different_sizes_are_coupled_by_exact_transport() -> None:
    y = cloud(60)
    x = y + 0.1 * gradient(styblinski_tang, y) / 10
    twice = torch.cat([x, x])  # the same measure, in other numbers
    for start in (x[torch.randperm(60)], twice):
        found = learn_energy([start, y], 0.01, potential=polynomials(2, 4))
        true = gradient(styblinski_tang, y)
        assert (found.potential_gradient(y) - true).norm() < 1e-6 * true.norm()


def test_rows_that_were_followed_need_no_transport() -> None:
    y = cloud(100)
    x = y - 5 * y  # no optimal map would take this way
    found = learn_energy([x, y], 1.0, potential=polynomials(2, 2), coupling="rows")
    torch.testing.assert_close(found.potential_gradient(y), -5 * y, rtol=1e-6, atol=1e-6)


def test_gamma_may_change_from_step_to_step() -> None:
    z = cloud(50)
    y = z + 0.1 * z
    x = y + 0.3 * y
    found = learn_energy([x, y, z], [0.3, 0.1], potential=polynomials(2, 2))
    torch.testing.assert_close(found.potential_gradient(z), z, rtol=1e-6, atol=1e-6)


def test_potential_and_interaction_are_told_apart() -> None:
    def U(z: Tensor) -> Tensor:
        return z.pow(4).sum(1) / 4

    clouds = [cloud(60, seed=1)]
    for _ in range(2):
        y = clouds[0]
        pairs = (y[:, None] - y[None]).pow(3).sum(1) / (len(y) - 1)
        clouds.insert(0, y + 0.01 * (y + pairs))
    even = lambda z: torch.stack([z.pow(4).sum(1), z.square().prod(1)], 1)  # noqa: E731
    found = learn_energy(
        clouds, 0.01, potential=polynomials(2, 2), interaction=even, coupling="rows"
    )
    z = cloud(10, seed=5)
    torch.testing.assert_close(found.interaction_gradient(z), gradient(U, z), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found.potential_gradient(z), z, rtol=1e-5, atol=1e-5)


A = torch.tensor([[2.0, 0.5], [0.5, 1.0]], dtype=torch.float64)


def gaussian_flow(temperature: float, m: int) -> list[Tensor]:
    """Clouds of the JKO steps of V = <x - 1, A (x - 1)>/2 with an entropy."""
    # Sobol points: a Gaussian start whose moments are exact to 1e-3.
    u = torch.quasirandom.SobolEngine(2, scramble=True, seed=0).draw(m, dtype=torch.float64)
    x = 1.5 * math.sqrt(2) * torch.erfinv(2 * u.clamp(1e-9, 1 - 1e-9) - 1)
    energies = [
        Potential(lambda y: 0.5 * ((y - 1) @ A * (y - 1)).sum(1)),
        Entropy(temperature),
    ]
    flow = MapFlow(x, energies, 0.1, depth=0, tolerance_grad=1e-9)
    clouds = [flow.points]
    for _ in range(6):
        flow.step()
        clouds.append(flow.points)
    return clouds


def test_potential_and_temperature_are_found_from_the_flow_that_we_compute() -> None:
    clouds = gaussian_flow(0.7, 2048)
    found = learn_energy(clouds, 0.1, potential=polynomials(2, 2), entropy=True, coupling="rows")
    assert found.temperature == pytest.approx(0.7, rel=0.02)
    y, true = clouds[-1], (clouds[-1] - 1) @ A
    assert (found.potential_gradient(y) - true).norm() < 0.03 * true.norm()
    given = learn_energy(clouds, 0.1, potential=polynomials(2, 2), entropy=0.7, coupling="rows")
    assert (given.potential_gradient(y) - true).norm() < 0.03 * true.norm()
    assert len(found.energies()) == 2
    without = learn_energy(clouds, 0.1, potential=polynomials(2, 2), coupling="rows")
    assert without.residual > 2 * found.residual


def test_networks_are_found_together_with_a_temperature() -> None:
    clouds = gaussian_flow(0.7, 256)
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(2, 16), nn.Softplus(), nn.Linear(16, 1)).double()

    def learned(entropy: bool | float, max_eval: int) -> LearnedEnergy:
        how: Any = {"entropy": entropy, "coupling": "rows", "max_eval": max_eval}
        return learn_energy(clouds, 0.1, potential=net, **how)

    found = learned(True, 200)
    # 16 softplus units are not a quadratic, and T takes what they leave.
    assert found.temperature == pytest.approx(0.7, rel=0.05)
    y, true = clouds[-1], (clouds[-1] - 1) @ A
    assert (found.potential_gradient(y) - true).norm() < 0.1 * true.norm()
    assert found.residual < 0.1
    assert learned(0.7, 1).residual == pytest.approx(found.residual, abs=0.05)
    assert learned(2.0, 1).residual > 5 * found.residual


def test_explicit_steps_are_learned_to_rounding_and_predicted() -> None:
    clouds = [cloud(150, scale=0.7)]
    for _ in range(3):
        clouds.append(clouds[-1] - 0.02 * gradient(rosenbrock, clouds[-1]) / 10)
    learned = {
        scheme: learn_energy(
            clouds, 0.002, potential=polynomials(2, 4), coupling="rows", scheme=scheme
        )
        for scheme in ("explicit", "implicit")
    }
    true = gradient(rosenbrock, clouds[1])
    error = {
        scheme: float((found.potential_gradient(clouds[1]) - true).norm() / true.norm())
        for scheme, found in learned.items()
    }
    assert error["explicit"] < 1e-6
    assert error["implicit"] > 1e-3
    torch.testing.assert_close(
        learned["explicit"].predict(clouds[0], 0.002), clouds[1], rtol=1e-7, atol=1e-7
    )


def test_networks_learn_what_features_cannot_hold() -> None:
    torch.manual_seed(0)
    y = cloud(300)
    V = lambda x: (2 * x[:, 0]).sin() + x[:, 1].cos()  # noqa: E731
    x = y + 0.05 * gradient(V, y)
    net = nn.Sequential(nn.Linear(2, 32), nn.Tanh(), nn.Linear(32, 1)).double()
    found = learn_energy([x, y], 0.05, potential=net, coupling="rows", max_eval=400)
    true = gradient(V, y)
    error = (found.potential_gradient(y) - true).norm() / true.norm()
    assert error < 0.03
    # The residual is that error where the coupling is exact.
    assert found.residual == pytest.approx(error.item(), rel=1e-3)


@pytest.mark.parametrize(
    "features", [polynomials(3, 3), radial(cloud(4, 3), 0.7), ridges(cloud(5, 3))]
)
def test_derivatives_of_features_are_those_of_autograd(features: Any) -> None:
    x = cloud(3, 3, seed=2)
    for point, ours, trace in zip(x, gradients(features, x), laplacians(features, x), strict=True):
        for k in range(len(ours)):
            single = lambda p, k=k: features(p[None])[0, k]  # noqa: E731
            jacobian = torch.autograd.functional.jacobian(single, point)
            hessian = torch.autograd.functional.hessian(single, point)
            torch.testing.assert_close(ours[k], jacobian)
            torch.testing.assert_close(trace[k], hessian.trace())


def test_a_noisy_prediction_has_the_noise_of_the_temperature() -> None:
    y = cloud(100)
    found = learn_energy([y, y], 0.1, potential=polynomials(2, 2), entropy=2.0, coupling="rows")
    still = found.predict(torch.zeros(20000, 2, dtype=torch.float64), 1e-9)
    moved = found.predict(
        torch.zeros(20000, 2, dtype=torch.float64), 1e-2, torch.Generator().manual_seed(0)
    )
    assert still.abs().max() < 1e-3
    assert moved.square().mean().item() == pytest.approx(2 * 2.0 * 1e-2, rel=0.1)


@pytest.mark.parametrize(
    ("words", "change"),
    [
        ("two clouds or more", {"snapshots": [cloud(5)]}),
        ("one dimension D", {"snapshots": [cloud(5), cloud(5, 3)]}),
        ("gamma must be > 0", {"gamma": 0.0}),
        ("one per step", {"gamma": [0.1, 0.1]}),
        ("nothing to learn", {"potential": None}),
        ("three snapshots or more", {"entropy": True}),
        ("temperature >= 0", {"entropy": -1.0}),
        ("coupling must be", {"coupling": "nearest"}),
        ("clouds of one size", {"snapshots": [cloud(5), cloud(6)], "coupling": "rows"}),
        ("ridge must be", {"ridge": -1.0}),
        ("partners must be", {"partners": 0}),
        ("both be features or both networks", {"interaction": nn.Linear(2, 1)}),
        ("three snapshots or more", {"potential": nn.Linear(2, 1), "entropy": True}),
        ("scheme must be", {"scheme": "midpoint"}),
    ],
)
def test_a_wrong_argument_is_named(words: str, change: dict[str, Any]) -> None:
    given: dict[str, Any] = {
        "snapshots": [cloud(5), cloud(5)],
        "gamma": 0.1,
        "potential": polynomials(2, 1),
    }
    given.update(change)
    with pytest.raises(ValueError, match=words):
        learn_energy(given.pop("snapshots"), given.pop("gamma"), **given)


def test_a_term_that_was_not_sought_is_named() -> None:
    found = learn_energy([cloud(5), cloud(5)], 0.1, potential=polynomials(2, 1))
    with pytest.raises(ValueError, match="no interaction was sought"):
        found.interaction_gradient(cloud(1))
    only = learn_energy([cloud(5), cloud(5)], 0.1, interaction=lambda z: z.square())
    with pytest.raises(ValueError, match="no potential was sought"):
        only.potential_gradient(cloud(1))


def test_the_first_variation_of_a_loss_is_learned_from_a_recorded_training() -> None:
    random = torch.Generator().manual_seed(0)
    layer = MeanFieldLayer(
        1, 100, parameterization="signed", reduction="mean", generator=random, dtype=torch.float64
    )
    x = torch.linspace(-1, 1, 9, dtype=torch.float64)[:, None]
    y = (3 * x).sin()
    opt = FrobeniusProx(layer.parameters(), 0.05, max_eval=200, tolerance_grad=1e-9)
    recorder = TrajectoryRecorder(layer)
    recorder.record()

    def closure() -> Tensor:
        opt.zero_grad()
        loss = (layer(x) - y).square().mean()
        loss.backward()
        return loss

    opt.step(closure)
    recorder.record(opt.report)
    positive = layer.signs > 0
    clouds = [cloud[positive] for cloud in recorder.positions()]
    angles = torch.linspace(-math.pi, math.pi, 241, dtype=torch.float64)[:-1]
    fan = torch.stack([angles.cos(), angles.sin()], 1)
    found = learn_energy(clouds, 0.05, potential=ridges(fan), ridge=1e-8)
    assert found.potential is not None
    inputs = torch.cat([x, torch.ones_like(x)], 1)
    residuals = (layer(x) - y).detach()[:, 0]
    # F'(mu)(w) = s (2/n) sum_j r_j relu(<x_j, w>), here at the neurons, s = 1.
    true = 2 / len(x) * torch.relu(clouds[-1] @ inputs.t()) @ residuals
    off = found.potential(clouds[-1]) - true
    # The ridge leaves 5e-6; where neurons crossed each other, rows are matched otherwise.
    assert off.norm() < 1e-3 * true.norm()
