"""Flows of sampled measures by convex maps, beside closed forms, a grid and known densities."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from scipy.optimize import minimize
from torch import Tensor

from torch_wprox import EntropicJKO, GridLayer, MapFlow, Status, wasserstein_sq
from torch_wprox.maps import CloudFunction, Entropy, Interaction, LogDet, Potential


def gaussian(m: int, mean: Tensor, covariance: Tensor, seed: int = 0) -> Tensor:
    """A cloud with exactly this mean and covariance, so that closed forms hold on the samples."""
    D = len(mean)
    random = torch.Generator().manual_seed(seed)
    x = torch.randn(m, D, generator=random, dtype=torch.float64)
    x = x - x.mean(0)
    whitened = torch.linalg.solve_triangular(
        torch.linalg.cholesky(x.t() @ x / m), x.t(), upper=False
    )
    return mean + whitened.t() @ torch.linalg.cholesky(covariance).t()


def quadratic(D: int, seed: int = 3) -> tuple[Tensor, Tensor, Potential]:
    """A and b of V(x) = <x - b, A (x - b)>/2."""
    random = torch.Generator().manual_seed(seed)
    M = torch.randn(D, D, generator=random, dtype=torch.float64)
    A = M @ M.t() / D + 0.5 * torch.eye(D, dtype=torch.float64)
    b = torch.randn(D, generator=random, dtype=torch.float64)
    return A, b, Potential(lambda x: 0.5 * ((x - b) @ A * (x - b)).sum(1))


def exact_step(
    variance: Tensor, mean: Tensor, A: Tensor, b: Tensor, gamma: float
) -> tuple[Tensor, Tensor]:
    """The Gaussian JKO step with entropy, for a covariance that commutes with A.

    x = y + gamma (A (y - b) - (y - mean+)/s+) is the optimal map backwards; per eigenvalue a of A
    it says sqrt(s) = (1 + gamma a) sqrt(s+) - gamma/sqrt(s+).
    """
    a = torch.linalg.eigvalsh(A)
    grown = (variance + 4 * gamma * (1 + gamma * a)).sqrt() + variance.sqrt()
    eye = torch.eye(len(A), dtype=A.dtype)
    return (grown / (2 * (1 + gamma * a))).square(), torch.linalg.solve(
        eye + gamma * A, mean + gamma * A @ b
    )


@pytest.mark.parametrize(("D", "gamma"), [(1, 0.3), (3, 0.05), (3, 2.0), (8, 0.5)])
def test_a_gaussian_step_is_the_closed_form(D: int, gamma: float) -> None:
    A, b, potential = quadratic(D)
    mean, variance = torch.ones(D, dtype=torch.float64), torch.ones(D, dtype=torch.float64)
    x = gaussian(500, mean, torch.eye(D, dtype=torch.float64))
    flow = MapFlow(x, [potential, Entropy()], gamma, depth=0, tolerance_grad=1e-9)
    for _ in range(2):
        report = flow.step()
        variance, mean = exact_step(variance, mean, A, b, gamma)
        _, vectors = torch.linalg.eigh(A)
        covariance = vectors @ torch.diag(variance) @ vectors.t()
        found = torch.cov(flow.points.t(), correction=0).view(D, D)
        # The descent ends at a gradient 1e-9 of its first one.
        torch.testing.assert_close(flow.points.mean(0), mean, rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(found, covariance, rtol=1e-6, atol=1e-6)
        assert report.objective <= report.loss_before


def test_a_gaussian_step_that_does_not_commute_is_the_convex_optimum() -> None:
    A, b, potential = quadratic(2)
    S = torch.tensor([[2.0, 0.7], [0.7, 0.5]], dtype=torch.float64)
    mean, gamma, T = torch.zeros(2, dtype=torch.float64), 0.7, 0.4
    flow = MapFlow(
        gaussian(300, mean, S), [potential, Entropy(T)], gamma, depth=0, tolerance_grad=1e-9
    )
    report = flow.step()

    def objective(k: Any) -> float:
        K = torch.tensor([[k[0], k[1]], [k[1], k[2]]], dtype=torch.float64)
        c, eye = torch.tensor(k[3:], dtype=torch.float64), torch.eye(2, dtype=torch.float64)
        if torch.linalg.eigvalsh(K)[0] <= 0:
            return math.inf
        energy = 0.5 * (torch.trace(A @ K @ S @ K) + (c - b) @ A @ (c - b)) - T * torch.logdet(K)
        moved = torch.trace((K - eye) @ S @ (K - eye)) + c @ c
        return float(energy + moved / (2 * gamma))

    best = minimize(
        objective,
        [1, 0, 1, 0, 0],
        method="Nelder-Mead",
        options={"maxiter": 4000, "xatol": 1e-9, "fatol": 1e-13},
    )
    assert report.objective == pytest.approx(best.fun, rel=1e-9)


@pytest.mark.parametrize("depth", [1, 2])
def test_a_network_finds_the_gaussian_step(depth: int) -> None:
    _, _, potential = quadratic(2)
    x = gaussian(1000, torch.zeros(2, dtype=torch.float64), torch.eye(2, dtype=torch.float64))
    flow = MapFlow(x, [potential, Entropy()], 0.5, depth=depth, width=16, max_eval=150)
    affine = MapFlow(x, [potential, Entropy()], 0.5, depth=0)
    report, exact = flow.step(), affine.step()
    # A network may do better than affine maps on a finite sample, not worse.
    assert report.objective <= exact.objective + 1e-4 * abs(exact.objective)
    assert (flow.points - affine.points).square().sum(1).mean().sqrt() < 0.1


def test_the_log_density_is_that_of_the_moved_gaussian() -> None:
    _, _, potential = quadratic(3)
    eye = torch.eye(3, dtype=torch.float64)
    start = torch.distributions.MultivariateNormal(torch.zeros(3, dtype=torch.float64), eye)
    x = gaussian(400, start.mean, eye)
    flow = MapFlow(x, [potential, Entropy()], 0.2, depth=0, log_density=start.log_prob)
    for _ in range(3):
        flow.step()
    covariance = torch.cov(flow.points.t(), correction=0)
    now = torch.distributions.MultivariateNormal(flow.points.mean(0), covariance)
    y = now.sample((20,))
    torch.testing.assert_close(flow.log_density(y), now.log_prob(y), rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(flow.log_density(y, 0), start.log_prob(y))
    torch.testing.assert_close(flow.transport(x), flow.points)
    torch.testing.assert_close(flow.transport(x, 0), x)


def test_the_density_of_a_network_flow_has_mass_one() -> None:
    start = torch.distributions.Normal(0.0, 1.0)
    x = gaussian(1000, torch.zeros(1, dtype=torch.float64), torch.eye(1, dtype=torch.float64))
    well = Potential(lambda y: (y[:, 0].square() - 1).square())
    flow = MapFlow(
        *(x, [well, Entropy(0.3)], 0.2),
        **{"width": 16, "depth": 1, "max_eval": 60},
        log_density=lambda y: start.log_prob(y[:, 0]),
    )
    for _ in range(3):
        flow.step()
    line = torch.linspace(-4, 4, 2001, dtype=torch.float64)[:, None]
    density = flow.log_density(line).exp()
    assert torch.trapezoid(density, line[:, 0]).item() == pytest.approx(1.0, abs=1e-4)


def test_an_interaction_contracts_the_cloud_about_its_mean() -> None:
    x = gaussian(300, torch.ones(2, dtype=torch.float64), torch.eye(2, dtype=torch.float64))
    flow = MapFlow(x, Interaction(lambda z: 0.5 * z.square().sum(1)), 1.0, depth=0)
    flow.step()
    # (1/2) mean over pairs of |x_i - x_j|^2/2 is m/(m-1)/2 times the variance.
    factor = 1 / (1 + 300 / 299)
    torch.testing.assert_close(flow.points, 1 + factor * (x - 1), rtol=1e-4, atol=1e-4)
    few, all_ = (
        Interaction(lambda z: z.abs().sum(1), partners=200),
        gaussian(1200, x.mean(0), torch.eye(2, dtype=torch.float64)),
    )
    # Mean |difference| of normal numbers is 2/sqrt(pi), twice and halved; 200 of 1199 partners.
    assert few(all_).item() == pytest.approx(2 / math.sqrt(math.pi), rel=0.02)


def test_a_network_loss_with_entropy_is_mean_field_langevin() -> None:
    # With a loss linear in the measure it is a potential: both flows are one.
    x = gaussian(300, torch.zeros(2, dtype=torch.float64), torch.eye(2, dtype=torch.float64))
    cost = lambda y: 0.5 * (y - 1).square().sum(1)  # noqa: E731
    as_loss = MapFlow(x, [CloudFunction(lambda y: cost(y).mean()), Entropy(0.5)], 0.3, depth=0)
    as_potential = MapFlow(x, [Potential(cost), Entropy(0.5)], 0.3, depth=0)
    assert as_loss.step() == as_potential.step()


def test_lanczos_gives_the_flow_of_exact_log_determinants() -> None:
    _, _, potential = quadratic(5)
    x = gaussian(3000, torch.zeros(5, dtype=torch.float64), torch.eye(5, dtype=torch.float64))
    moved = []
    for how in (LogDet("exact"), LogDet("lanczos", iterations=5)):
        flow = MapFlow(x, [potential, Entropy(1.0, how)], 0.3, depth=0, max_eval=60)
        flow.step()
        moved.append(flow.points)
    # The probes' noise in a gradient of 5 x 5 numbers, over 3000 points.
    assert (moved[0] - moved[1]).square().mean().sqrt() < 0.02


def test_no_step_raises_the_objective() -> None:
    x = torch.randn(200, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    rough = Potential(lambda y: (3 * y).sin().sum(1) + 0.05 * y.square().sum(1))
    for gamma in (1e-4, 0.3, 1e3):
        flow = MapFlow(x, [rough, Entropy(0.1)], gamma, width=8, depth=1, max_eval=8)
        for _ in range(3):
            before, report = flow.report, flow.step()
            assert report.objective <= report.loss_before
            if before is not None:  # the energy goes on where it ended, entropy included
                assert report.loss_before == pytest.approx(before.loss_after, rel=1e-12)


def test_a_step_that_finds_nothing_better_stays() -> None:
    x = torch.randn(50, 2, dtype=torch.float64)
    flow = MapFlow(x, Potential(lambda y: y.sum(1) * 0.0), 1.0, width=4, depth=1, max_eval=1)
    report = flow.step()
    assert report.status is Status.STALLED
    torch.testing.assert_close(flow.points, x)


def test_the_steps_of_a_potential_are_optimal_maps() -> None:
    x = torch.randn(300, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    flow = MapFlow(x, Potential(lambda y: (y.norm(dim=1) - 2).square()), 1.0, width=8, max_eval=60)
    report = flow.step()
    assert wasserstein_sq(flow.points, x).item() == pytest.approx(report.wasserstein_sq, rel=1e-9)


def test_a_flow_goes_on_from_its_state() -> None:
    x = torch.randn(200, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def flow() -> MapFlow:
        potential = Potential(lambda y: 0.5 * (y - 2).square().sum(1))
        return MapFlow(x, [potential, Entropy()], 0.2, width=8, depth=1, max_eval=30)

    whole, first, second = flow(), flow(), flow()
    whole.step()
    first.step()
    second.load_state_dict(first.state_dict())
    whole.step()
    second.step()
    torch.testing.assert_close(whole.points, second.points)
    torch.testing.assert_close(second.transport(x), second.points)


@pytest.mark.nightly
def test_a_grid_step_spreads_as_the_entropy_at_temperature_eps_over_4_gamma() -> None:
    # W_eps = W2^2 and an entropy of weight eps/2 on either side, to first order in eps; so one step
    # in the plane is the map's step with entropy at temperature eps/(4 gamma).
    gamma, axis = 0.2, torch.linspace(-3, 3, 49, dtype=torch.float64)
    layer = GridLayer([axis, axis], signs=(1.0,), dtype=torch.float64)
    weight = torch.exp(-layer.cells.square().sum(1) / (2 * 0.3))
    layer.set_weight(weight / weight.sum())
    opt = EntropicJKO(layer, gamma, method="krylov")
    well = lambda y: (y[:, 0].square() - 1).square() + y[:, 1].square() / 2 + y[:, 0] / 3  # noqa: E731
    values = well(layer.cells)

    def closure() -> Tensor:
        opt.zero_grad()
        loss = (layer.weight * values).sum()
        loss.backward()
        return loss

    x = gaussian(3000, torch.zeros(2, dtype=torch.float64), 0.3 * torch.eye(2, dtype=torch.float64))
    flow = MapFlow(x, [Potential(well), Entropy(opt.epsilon / (4 * gamma))], gamma, max_eval=120)
    for _ in range(3):
        opt.step(closure)
        flow.step()
    p, y = layer.weight.detach(), flow.points
    for moment in (lambda y: y[:, 0], lambda y: y[:, 0].square(), lambda y: y[:, 1].square(), well):
        assert moment(y).mean().item() == pytest.approx(
            (p * moment(layer.cells)).sum().item(), abs=0.03
        )


@pytest.mark.nightly
def test_a_mixture_is_stationary_under_its_own_langevin_flow() -> None:
    centres = torch.tensor([[-2.0, 0.0], [2.0, 0.0], [0.0, 2.0]], dtype=torch.float64)

    def log_mixture(y: Tensor) -> Tensor:
        return (-(y[:, None] - centres).square().sum(2) / 2).logsumexp(1)

    random = torch.Generator().manual_seed(0)
    x = centres[torch.randint(0, 3, (8000,), generator=random)]
    x = x + torch.randn(x.shape, generator=random, dtype=torch.float64)
    flow = MapFlow(x, [Potential(lambda y: -log_mixture(y)), Entropy()], 0.5, depth=1, max_eval=100)
    report = flow.step()
    # Only the sampling noise of 8000 points can be lowered by a map of 200 numbers.
    assert report.loss_before - report.objective < 0.02
    assert report.wasserstein_sq is not None
    assert report.wasserstein_sq < 0.02


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("gamma", {"gamma": 0.0}),
        ("max_eval", {"max_eval": 0}),
        ("points", {"points": torch.zeros(3)}),
        ("energies", {"energies": [Entropy(), Entropy()]}),
        ("energies", {"energies": [lambda y: y.sum()]}),
    ],
)
def test_a_wrong_argument_is_named(name: str, change: dict[str, Any]) -> None:
    given: dict[str, Any] = {"points": torch.zeros(3, 2), "energies": Entropy(), "gamma": 1.0}
    with pytest.raises(ValueError, match=name):
        MapFlow(**{**given, **change})


def test_what_a_flow_does_not_have_is_named() -> None:
    flow = MapFlow(torch.zeros(3, 2), Entropy(), 1.0)
    with pytest.raises(ValueError, match="give MapFlow log_density="):
        flow.log_density(torch.zeros(1, 2))
    with pytest.raises(ValueError, match="between 0 and the 0 steps taken, got 5"):
        flow.transport(torch.zeros(1, 2), 5)


def test_a_wrong_energy_is_named() -> None:
    with pytest.raises(ValueError, match="temperature must be > 0"):
        Entropy(0.0)
    with pytest.raises(ValueError, match="partners must be >= 1"):
        Interaction(torch.sum, partners=0)
