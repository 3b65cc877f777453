"""Steps of the two optimizers on networks: descent, limits, equalities, masses."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from conftest import closure_for, closure_of, sinus_data, sinus_layer
from torch_wprox import FrobeniusProx, MeanFieldLayer, WassersteinProx

BOTH = [WassersteinProx, FrobeniusProx]


def gradient(layer: MeanFieldLayer, x: Tensor, y: Tensor) -> Tensor:
    layer.particles.grad = None
    (layer(x) - y).square().mean().backward()
    grad = layer.particles.grad
    assert grad is not None
    layer.particles.grad = None
    return grad


@pytest.mark.parametrize("optimizer", BOTH)
def test_small_gamma_moves_a_cloud_by_minus_m_gamma_gradient(optimizer: type) -> None:
    layer = sinus_layer(scale=1.0)
    x, y = sinus_data()
    W, g = layer.particles.detach().clone(), gradient(layer, x, y)
    gamma = 1e-9
    opt = optimizer(layer.parameters(), gamma, tolerance_grad=1e-12)
    opt.step(closure_of(layer, opt, x, y))
    # First order in gamma: the relative error is O(m gamma |Hessian|).
    velocity = (W - layer.particles) / (50 * gamma)
    assert torch.allclose(velocity, g, rtol=0, atol=1e-5 * g.abs().max().item())


@pytest.mark.parametrize("gamma", [1e-5, 1e-6])
def test_wasserstein_equals_frobenius_bitwise_when_the_identity_is_optimal(gamma: float) -> None:
    x, y = sinus_data()
    ends = []
    for optimizer in BOTH:
        layer = sinus_layer()
        opt = optimizer(layer.parameters(), gamma, solver="gd")
        for _ in range(3):
            opt.step(closure_of(layer, opt, x, y))
            assert opt.report.permuted_fraction == 0.0
        ends.append(layer.particles.detach().clone())
    assert torch.equal(*ends)


@given(
    seed=st.integers(0, 1000),
    log_gamma=st.floats(-6, 6),
    wasserstein=st.booleans(),
    parameterization=st.sampled_from(["joint", "signed"]),
    m=st.integers(1, 12),
)
@settings(max_examples=60, deadline=None)
def test_the_objective_never_rises_whatever_gamma(
    seed: int, log_gamma: float, wasserstein: bool, parameterization: str, m: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    layer = MeanFieldLayer(
        2, m, parameterization=parameterization, generator=generator, dtype=torch.float64
    )
    x = torch.randn(6, 2, dtype=torch.float64, generator=generator)
    y = torch.randn(6, 1, dtype=torch.float64, generator=generator)
    gamma = 10**log_gamma
    opt = (WassersteinProx if wasserstein else FrobeniusProx)(
        layer.parameters(), gamma, max_eval=30
    )
    for _ in range(2):
        before = (layer(x) - y).square().mean().item()
        returned = opt.step(closure_of(layer, opt, x, y))
        after = (layer(x) - y).square().mean().item()
        report = opt.report
        assert returned.item() == before == report.loss_before
        assert report.objective <= before * (1 + 1e-14)
        assert after <= before - report.distance_sq / (2 * gamma) + 1e-14 * before
        assert after == pytest.approx(report.loss_after, rel=1e-12, abs=1e-300)
        assert report.wasserstein_sq <= report.frobenius_sq * (1 + 1e-14)
        assert layer.particles.isfinite().all()
        assert report.evaluations <= 30


@pytest.mark.parametrize("optimizer", BOTH)
def test_the_last_evaluation_is_at_the_accepted_parameters(optimizer: type) -> None:
    x, y = sinus_data()
    layer = sinus_layer()
    opt = optimizer(layer.parameters(), gamma=1.0, max_eval=12)
    seen = []

    def closure() -> Tensor:
        seen.append(layer.particles.detach().clone())
        return closure_of(layer, opt, x, y)()

    opt.step(closure)
    assert len(seen) == opt.report.evaluations <= 12
    assert torch.equal(seen[-1], layer.particles)
    grad = layer.particles.grad.clone()
    assert torch.equal(grad, gradient(layer, x, y))


def test_residual_is_the_norm_of_the_gradient_of_the_prox_objective() -> None:
    x, y = sinus_data()
    layer, gamma = sinus_layer(), 0.3
    W = layer.particles.detach().clone()
    opt = WassersteinProx(layer.parameters(), gamma, max_eval=20)
    opt.step(closure_of(layer, opt, x, y))
    V, sigma = layer.particles.detach(), opt.report.assignment
    expected = gradient(layer, x, y) + (V - W[sigma]) / (50 * gamma)
    assert opt.report.residual == pytest.approx(expected.norm().item(), rel=1e-10)


def test_a_plain_tensor_has_mass_one_and_a_cloud_one_over_m() -> None:
    # F = <c, w>: the prox moves a plain tensor by -gamma c and a cloud by -m gamma c.
    c, gamma = torch.tensor([[1.0, -2.0], [3.0, 0.5], [0.0, 1.0]], dtype=torch.float64), 0.01
    for layout, factor in (("cloud", 3.0), ("plain", 1.0)):
        w = nn.Parameter(torch.randn(3, 2, dtype=torch.float64))
        start = w.detach().clone()
        opt = FrobeniusProx([{"params": [w], "layout": layout}], gamma, tolerance_grad=1e-13)
        opt.step(closure_for(opt, lambda w=w: (c * w).sum()))
        assert torch.allclose(w, start - factor * gamma * c, rtol=0, atol=1e-12)


def test_each_group_has_its_own_gamma_and_its_own_decay() -> None:
    a, b = (nn.Parameter(torch.full((1, 2), 1.0, dtype=torch.float64)) for _ in range(2))
    opt = WassersteinProx(
        [{"params": [a], "gamma": 0.5}, {"params": [b], "weight_decay": 3.0}], gamma=2.0
    )

    closure = closure_for(opt, lambda: a.square().sum() / 2 + b.square().sum() / 2)
    for _ in range(3):
        opt.step(closure)
    assert torch.allclose(a, torch.full_like(a, (1 / 1.5) ** 3), atol=1e-6)
    assert torch.allclose(b, torch.full_like(b, (1 / 9.0) ** 3), atol=1e-6)
    # objective = F + sum_c d_c/(2 gamma_c)
    r = opt.report
    d_a, d_b = ((w * w).sum().item() for w in (0.5 * a.detach(), 8 * b.detach()))
    assert r.objective == pytest.approx(r.loss_after + d_a / (2 * 0.5) + d_b / (2 * 2.0), rel=1e-4)


def test_signs_are_never_exchanged_by_default_and_may_be_without_classes() -> None:
    # One + and one - neuron; the optimum wants them swapped: relabelling would be free.
    x = torch.tensor([[1.0]], dtype=torch.float64)
    fractions = {}
    for classes in ("sign", None):
        layer = MeanFieldLayer(
            1, 2, parameterization="signed", bias=False, reduction="sum", dtype=torch.float64
        )
        with torch.no_grad():
            layer.particles.copy_(torch.tensor([[0.9], [1.0]]))
        opt = WassersteinProx(layer.parameters(), 5.0, classes=classes, max_eval=500)
        opt.step(closure_of(layer, opt, x, torch.full((1, 1), 3.0, dtype=torch.float64)))
        fractions[classes] = opt.report.permuted_fraction
    assert fractions == {"sign": 0.0, None: 1.0}


def test_assignment_is_a_tuple_for_several_clouds_and_none_without() -> None:
    net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 1))
    x, y = torch.randn(8, 3), torch.randn(8, 1)
    one = WassersteinProx(net.parameters())
    one.step(closure_of(net, one, x, y))
    assert isinstance(one.report.assignment, Tensor)
    two = WassersteinProx(
        [
            {"params": [net[0].weight], "layout": "cloud"},
            {"params": [net[2].weight], "layout": "cloud"},
        ]
    )
    net.zero_grad()
    two.step(closure_of(net, two, x, y))
    assert [len(s) for s in two.report.assignment] == [4, 1]
    plain = FrobeniusProx([net[0].bias])
    net.zero_grad()
    plain.step(closure_of(net, plain, x, y))
    assert plain.report.assignment is None
    assert plain.report.permuted_fraction == 0.0
