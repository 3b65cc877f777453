"""The loss minimised over the output bias, and training bounds where that bias trains."""

from __future__ import annotations

from dataclasses import replace

import cvxpy as cp
import numpy as np
import pytest
import torch
from scipy.optimize import minimize_scalar
from torch import Tensor, nn
from torch.nn import functional as F

from cases.global_cases import F64, Case, cones, random_case
from torch_wprox import Global, MeanFieldLayer, certify, certify_training
from torch_wprox.certified.bound.output_bias import BiasedQuadratic, BiasedRisk
from torch_wprox.certified.problem.particle_problem import Risk


def risk_of(loss: object) -> Risk:
    def risk(z: Tensor) -> tuple[float, Tensor]:
        with torch.enable_grad():
            leaf = z.detach().clone().requires_grad_()
            value = loss(leaf)
            value.backward()
        return float(value.detach()), leaf.grad

    return risk


def biased(loss: object, k: int, stiffness: float) -> BiasedRisk:
    return BiasedRisk(risk_of(loss), stiffness, torch.zeros(k, dtype=F64), 2.3e-16)


def draws(n: int, k: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    y, z = torch.randn(2, n, k, generator=g, dtype=F64)
    return y, z


@pytest.mark.parametrize("k", [1, 3])
def test_squared_error_over_a_free_bias_is_that_of_centred_residuals(k: int) -> None:
    y, z = draws(7, k)
    value, lam = biased(lambda u: (u - y).square().mean(), k, 0.0)(z)
    residual = (z - y) - (z - y).mean(0)
    assert value == pytest.approx(float(residual.square().mean()), rel=1e-14)
    assert torch.allclose(lam, 2 * residual / residual.numel(), rtol=1e-12, atol=1e-15)
    assert float(lam.sum(0).abs().max()) <= 1e-15


def test_a_price_of_the_bias_shrinks_it() -> None:
    y, z = draws(6, 1)
    mu = 0.3
    risk = biased(lambda u: (u - y).square().mean(), 1, mu)
    value, lam = risk(z)
    c = float((y - z).mean()) * 2 / (2 + mu)  # 2 (mean(z - y) + c) + mu c = 0
    assert float(risk.offset) == pytest.approx(c, rel=1e-12)
    expected = float((z + c - y).square().mean()) + 0.5 * mu * c * c
    assert value == pytest.approx(expected, rel=1e-13)
    assert float(lam.sum()) == pytest.approx(-mu * c, rel=1e-12)


def test_the_model_over_the_bias_is_the_loss_over_the_bias_where_it_is_quadratic() -> None:
    y, z = draws(5, 2)
    risk = biased(lambda u: (u - y).square().mean(), 2, 0.2)
    model = risk.learned(z)
    assert isinstance(model, BiasedQuadratic)
    assert model.is_exact
    for seed in range(3):
        _, u = draws(5, 2, seed)
        value, lam = risk(u)
        assert model(u)[0] == pytest.approx(value, rel=1e-12)
        assert torch.allclose(model(u)[1], lam, rtol=1e-9, atol=1e-13)
        expected = model.grad + model.hessian(u - model.centre)
        assert torch.allclose(expected, lam, rtol=1e-9, atol=1e-13)


@pytest.mark.parametrize("k", [1, 3])
@pytest.mark.parametrize("stiffness", [0.0, 0.1])
def test_smooth_losses_leave_a_tangent_of_the_minimum_over_the_bias(
    k: int, stiffness: float
) -> None:
    y, z = draws(9, k, seed=3)
    kinds = torch.arange(9) % (k + 1)
    losses = [
        lambda u: F.softplus(-y.sign() * u).mean(),
        lambda u: F.cross_entropy(F.pad(u, (0, 1)), kinds),
    ]
    for loss in losses:
        risk = biased(loss, k, stiffness)
        value, lam = risk(z)
        assert risk.is_settled
        c = cp_minimum(loss, z, stiffness)
        assert value == pytest.approx(c, rel=1e-9)
        for seed in range(4):
            _, other = draws(9, k, seed)
            above = biased(loss, k, stiffness)(other)[0]
            assert above >= value + float((lam * (other - z)).sum()) - 1e-12


def cp_minimum(loss: object, z: Tensor, stiffness: float) -> float:
    """min over c by torch's L-BFGS."""
    c = torch.zeros(z.shape[1], dtype=F64, requires_grad=True)
    opt = torch.optim.LBFGS([c], max_iter=200, tolerance_grad=1e-13, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        opt.zero_grad()
        value = loss(z + c) + 0.5 * stiffness * c.square().sum()
        value.backward()
        return value

    opt.step(closure)
    return float(closure().detach())


@pytest.mark.parametrize("stiffness", [0.0, 0.1])
def test_at_a_kink_two_tangents_are_mixed_and_the_height_is_that_of_the_minimum(
    stiffness: float,
) -> None:
    y, z = draws(6, 1, seed=1)
    risk = biased(lambda u: (u - y).abs().mean(), 1, stiffness)
    value, lam = risk(z)
    knots = (y - z).flatten()
    if stiffness == 0.0:
        expected = min(float((z + c - y).abs().mean()) for c in knots)
        assert abs(float(lam.sum())) <= 1e-14
    else:
        c = cp.Variable()
        shifted = (z - y).flatten().numpy() + c
        problem = cp.Minimize(cp.sum(cp.abs(shifted)) / 6 + 0.5 * stiffness * cp.square(c))
        expected = cp.Problem(problem).solve(solver=cp.CLARABEL)
    assert risk.is_settled
    assert value == pytest.approx(expected, rel=1e-7)
    assert value <= expected * (1 + 1e-9)


def test_a_loss_without_a_minimum_over_the_bias_is_not_settled() -> None:
    _, z = draws(5, 1)
    risk = biased(lambda u: F.softplus(-u).mean(), 1, 0.0)
    risk(z)
    assert not risk.is_settled
    with pytest.raises(ValueError, match="no minimum over the bias"):
        risk.require_settled()


# -- training --------------------------------------------------------------------------------------


def convex_minimum(case: Case, beta: float, decay: float | None, loss: str) -> float:
    """min R + beta path norm (+ (decay/2) c^2) by a cone program over all activation patterns."""
    X, y, n = case.features, case.target.numpy().reshape(-1), len(case.x)
    c = cp.Variable()
    z, path = c * np.ones(n), 0.0
    for rays, on in cones(X):
        for sign in (1.0, -1.0):
            r = cp.Variable(2, nonneg=True)
            z = z + sign * ((on[:, None] * X) @ rays.T @ r)
            path = path + cp.norm(rays.T @ r)
    risk = cp.sum_squares(z - y) if loss == "squared" else cp.sum(cp.logistic(cp.multiply(-y, z)))
    total = risk / n + beta * path + 0.5 * (decay or 0.0) * cp.square(c)
    found: float = cp.Problem(cp.Minimize(total)).solve(solver=cp.CLARABEL)
    return found


def case_with_bias(seed: int, loss: str = "squared", **options: object) -> Case:
    case = random_case(
        seed, m=8, n=6, form="joint", loss=loss, scale=1.0, output_bias=True, **options
    )
    with torch.no_grad():
        case.layer.output_bias.fill_(0.7)
    if loss == "squared":  # far from zero, so that the bias matters
        y = case.target + 2.0
        case = replace(case, target=y, loss=lambda z: (z - y).square().mean())
    return case


@pytest.mark.parametrize("penalty", ["beta", "weight_decay"])
@pytest.mark.parametrize("loss", ["squared", "logistic"])
@pytest.mark.parametrize("seed", [0, 1])
def test_training_bound_with_an_output_bias_is_the_optimum_of_the_convex_program(
    loss: str, penalty: str, seed: int
) -> None:
    case = case_with_bias(seed, loss)
    decay = 0.05 if penalty == "weight_decay" else None
    expected = convex_minimum(case, 0.05, decay, loss)
    found = certify_training(case.layer, case.closure, **{penalty: 0.05})
    assert found.certified
    assert found.lower_bound == pytest.approx(expected, rel=3e-6)  # tolerance_bound is 1e-6
    assert found.lower_bound <= expected * (1 + 1e-7)
    R = float(case.loss(case.layer(case.x)).detach())
    w, a = (t.detach() for t in case.layer.neurons())
    if decay is None:
        objective = R + 0.05 * float((w.norm(dim=1) * a.norm(dim=1)).sum())
    else:
        objective = R + 0.025 * sum(float(p.detach().square().sum()) for p in
                                    case.layer.parameters())  # fmt: skip
    assert found.objective == pytest.approx(objective, rel=1e-12)


def test_where_no_neuron_pays_the_bound_is_the_variance_of_the_target() -> None:
    case = case_with_bias(0)
    found = certify_training(case.layer, case.closure, beta=100.0)
    assert found.lower_bound == pytest.approx(float(case.target.var(correction=0)), rel=1e-9)


@pytest.mark.parametrize("d", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_in_more_inputs_the_bound_with_a_bias_is_proved_below_trained_networks(d: int) -> None:
    case = case_with_bias(0, d=d)
    options = Global(max_iter=40, tolerance_bound=1e-4)
    found = certify_training(
        case.layer, case.closure, weight_decay=0.05, proof_seconds=20.0, options=options
    )
    opt = torch.optim.LBFGS(
        case.layer.parameters(), max_iter=500, line_search_fn="strong_wolfe", tolerance_change=0.0
    )

    def closure() -> Tensor:
        opt.zero_grad()
        penalty = sum(p.square().sum() for p in case.layer.parameters())
        value = case.loss(case.layer(case.x)) + 0.025 * penalty
        value.backward()
        return value

    opt.step(closure)
    reached = float(closure().detach())
    assert found.certified
    assert found.lower_bound <= reached * (1 + 1e-9)
    assert reached <= 1.1 * found.lower_bound


def test_weight_decay_of_frozen_output_weights_counts_the_bias_too() -> None:
    case = random_case(2, m=2, n=4, output_bias=True)
    decay = 0.05
    found = certify_training(case.layer, case.closure, weight_decay=decay)
    # (decay/2)|V|^2 is the price of a step from 0, and (decay/2) c^2 is added by hand.
    case.layer.output_bias.requires_grad_(False)

    def held(c: float) -> float:
        with torch.no_grad():
            case.layer.output_bias.fill_(c)
        zero = torch.zeros_like(case.anchor)
        step = certify(case.layer, case.closure, zero, 1.0 / (2 * decay))
        return step.lower_bound + 0.5 * decay * c * c

    best = minimize_scalar(held, bounds=(-2.0, 2.0), method="bounded", options={"xatol": 1e-3})
    assert found.certified
    assert found.lower_bound == pytest.approx(best.fun, rel=1e-5)


def test_a_loss_without_a_best_bias_is_refused_with_the_reason() -> None:
    case = case_with_bias(0)
    case.loss = lambda z: F.softplus(-z).mean()
    with pytest.raises(ValueError, match="no minimum over the bias"):
        certify_training(case.layer, case.closure, beta=0.05)
    assert certify_training(case.layer, case.closure, weight_decay=0.05).certified


def test_a_step_of_two_linear_layers_moves_their_output_bias() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(1, 6), nn.ReLU(), nn.Linear(6, 1)).double()
    x = torch.linspace(-1, 1, 5, dtype=F64)[:, None]

    def closure() -> Tensor:
        loss = (net(x) - 3.0).square().mean()
        loss.backward()
        return loss

    before = [p.detach().clone() for p in net.parameters()]
    start = nn.Sequential(nn.Linear(1, 6), nn.ReLU(), nn.Linear(6, 1)).double()
    start.load_state_dict(net.state_dict())
    with torch.no_grad():
        net[2].bias.add_(0.5)
        net[0].weight.mul_(0.9)
    gamma = 0.3
    found = certify(net, closure, start, gamma)
    particles = sum(
        float((p.detach() - b).square().sum())
        for p, b in zip(list(net.parameters())[:3], before[:3], strict=True)
    )
    with torch.no_grad():
        R = float((net(x) - 3.0).square().mean())
    P = R + particles / (2 * gamma * 6) + 0.5**2 / (2 * gamma)
    assert found.objective == pytest.approx(P, rel=1e-12)
    held = MeanFieldLayer.from_linear(net[0], net[2])
    held.output_bias.requires_grad_(False)
    assert found.certified
    net[2].bias.requires_grad_(False)
    assert certify(net, closure, start, gamma).objective == pytest.approx(
        P - 0.5**2 / (2 * gamma), rel=1e-12
    )
