from __future__ import annotations

import itertools

import ot
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from torch_wprox import FirstOrder, Status, prox, wasserstein_sq
from torch_wprox.distances.base import mean_squared


def cloud(m: int, D: int, seed: int) -> Tensor:
    return torch.randn(m, D, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def brute_force(X: Tensor, Y: Tensor) -> float:
    m = len(X)
    return min((X - Y[list(s)]).square().sum().item() / m for s in itertools.permutations(range(m)))


@pytest.mark.parametrize("seed", range(20))
def test_wasserstein_is_the_minimum_over_all_permutations(seed: int) -> None:
    X, Y = cloud(5, 3, seed), cloud(5, 3, seed + 100)
    assert wasserstein_sq(X, Y).item() == pytest.approx(brute_force(X, Y), rel=1e-13)


def test_wasserstein_of_different_sizes_and_masses_is_pots_linear_program() -> None:
    X, Y = cloud(7, 2, 0), cloud(4, 2, 1)
    a, b = torch.rand(7, dtype=torch.float64), torch.rand(4, dtype=torch.float64)
    a, b = a / a.sum(), b / b.sum()
    expected = ot.emd2(a.numpy(), b.numpy(), ot.dist(X.numpy(), Y.numpy()))
    assert wasserstein_sq(X, Y, a, b).item() == pytest.approx(expected, rel=1e-12)
    expected = ot.emd2([], [], ot.dist(X.numpy(), Y.numpy()))
    assert wasserstein_sq(X, Y).item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("sizes", [(6, 6), (6, 4)])
def test_envelope_gradient_is_autograd_through_pot(sizes: tuple[int, int]) -> None:
    X, Y = cloud(sizes[0], 3, 0).requires_grad_(), cloud(sizes[1], 3, 1).requires_grad_()
    ours = torch.autograd.grad(wasserstein_sq(X, Y), (X, Y))
    a, b = (torch.full((n,), 1 / n, dtype=torch.float64) for n in sizes)
    pots = torch.autograd.grad(ot.emd2(a, b, ot.dist(X, Y)), (X, Y))
    for g, h in zip(ours, pots, strict=True):
        assert torch.allclose(g, h, rtol=0, atol=1e-14)


clouds = st.tuples(st.integers(1, 8), st.integers(1, 4), st.integers(0, 10_000))


@given(clouds)
@settings(max_examples=50, deadline=None)
def test_wasserstein_never_exceeds_frobenius_and_ignores_order(shape: tuple[int, int, int]) -> None:
    m, D, seed = shape
    X, Y = cloud(m, D, seed), cloud(m, D, seed + 1)
    w2 = wasserstein_sq(X, Y).item()
    assert w2 <= (X - Y).square().sum().item() / m * (1 + 1e-14)
    shuffled = X[torch.randperm(m, generator=torch.Generator().manual_seed(seed))]
    assert wasserstein_sq(shuffled, Y).item() == pytest.approx(w2, rel=1e-12, abs=1e-14)
    assert wasserstein_sq(shuffled, X).item() == 0.0


@given(clouds, st.floats(1e-3, 1e3))
@settings(max_examples=50, deadline=None)
def test_wasserstein_scales_and_translates(shape: tuple[int, int, int], c: float) -> None:
    m, D, seed = shape
    X, Y = cloud(m, D, seed), cloud(m, D, seed + 1)
    b = cloud(1, D, seed + 2)
    w2 = wasserstein_sq(X, Y).item()
    assert wasserstein_sq(c * X, c * Y).item() == pytest.approx(c * c * w2, rel=1e-12)
    assert wasserstein_sq(X + b, X).item() == pytest.approx(b.square().sum().item(), rel=1e-10)


@pytest.mark.parametrize("distance", ["frobenius", "emd"])
@pytest.mark.parametrize("gamma", [1e-3, 1.0, 1e3])
def test_prox_of_a_separable_quadratic_is_the_closed_form(distance: str, gamma: float) -> None:
    # argmin (c/2)|V|^2 + |V - W|^2/(2 m gamma) = W/(1 + c m gamma); V is a positive multiple of W,
    # so the identity stays optimal and both distances agree.
    W, c = cloud(6, 2, 3), 0.7
    V, report = prox(
        lambda V: c / 2 * V.square().sum(),
        W,
        gamma,
        distance=distance,
        max_eval=500,
        tolerance_grad=1e-12,
    )
    assert torch.allclose(V, W / (1 + c * 6 * gamma), rtol=0, atol=1e-9)
    assert report.permuted_fraction == 0.0


@pytest.mark.parametrize("solver", ["auto", "gd", "bfgs", "lbfgs"])
@pytest.mark.parametrize("distance", ["frobenius", "emd", "sinkhorn", "sliced"])
def test_prox_of_a_linear_function_translates_the_cloud_under_every_distance(
    distance: str, solver: str
) -> None:
    # d(V, W) >= |mean V - mean W|^2 with equality at translations (on a line for sliced), so
    # argmin c mean(V) + d(V, W)/(2 gamma) = W - gamma c.
    W, c, gamma = cloud(6, 1, 3), 0.7, 0.5
    V, report = prox(
        lambda V: c * V.mean(),
        W,
        gamma,
        distance=distance,
        solver=solver,
        max_eval=2000,
        tolerance_grad=1e-9,
    )
    # GeomLoss ends its iterations at errors of about 1e-3 in the potentials.
    atol = 1e-3 if distance == "sinkhorn" else 1e-7
    assert torch.allclose(V, W - gamma * c, rtol=0, atol=atol)
    assert report.loss_after == pytest.approx(c * V.mean().item(), rel=1e-12)


@pytest.mark.parametrize("optimizer", [torch.optim.Adam, torch.optim.SGD, torch.optim.RMSprop])
@pytest.mark.parametrize("distance", ["frobenius", "emd", "sinkhorn", "sliced"])
def test_prox_by_an_optimizer_of_torch_descends_to_the_same_point(
    distance: str, optimizer: type[torch.optim.Optimizer]
) -> None:
    W, c, gamma = cloud(6, 1, 3), 0.7, 0.5
    inner = FirstOrder(optimizer, lr=1.0 if optimizer is torch.optim.SGD else 3e-2)
    V, report = prox(
        lambda V: c * V.mean(), W, gamma, distance=distance, solver=inner, max_eval=100
    )
    assert report.evaluations <= 100
    assert report.objective <= report.loss_before
    assert torch.allclose(V, W - gamma * c, rtol=0, atol=1e-2)


def test_weight_decay_is_part_of_the_function_in_closed_form() -> None:
    W, gamma, decay = cloud(6, 2, 3), 0.4, 0.3
    V, report = prox(
        lambda V: 0.0 * V.sum(), W, gamma, weight_decay=decay, max_eval=200, tolerance_grad=1e-12
    )
    assert torch.allclose(V, W / (1 + decay * 6 * gamma), rtol=0, atol=1e-10)
    assert report.loss_before == pytest.approx(decay / 2 * W.square().sum().item())
    assert report.loss_after == pytest.approx(decay / 2 * V.square().sum().item())


def test_classes_forbid_exchange_between_labels() -> None:
    W = torch.tensor([[0.0], [1.0]], dtype=torch.float64)
    V, report = prox(
        lambda V: (V[0, 0] - 4).square() / 2, W, 5.0, classes=torch.tensor([0, 1]), max_eval=500
    )
    assert V[1, 0] == 1.0
    assert report.wasserstein_sq == report.frobenius_sq
    assert report.permuted_fraction == 0.0


def test_report_is_consistent_with_the_points() -> None:
    W = cloud(8, 2, 5)
    target = cloud(8, 2, 6)
    V, r = prox(lambda V: (V - target).square().mean(), W, 10.0, max_eval=300)
    assert r.wasserstein_sq == pytest.approx(wasserstein_sq(V, W).item(), rel=1e-12)
    assert r.distance_sq == pytest.approx(r.wasserstein_sq, rel=1e-12)
    assert r.frobenius_sq == pytest.approx((V - W).square().sum().item() / 8, rel=1e-12)
    assert r.objective == pytest.approx(r.loss_after + r.distance_sq / 20, rel=1e-12)
    assert r.objective <= r.loss_before
    assert isinstance(r.assignment, Tensor)
    exchanged = (r.assignment != torch.arange(8)).double().mean().item()
    assert r.permuted_fraction == exchanged


def test_a_function_that_is_nan_at_the_anchor_moves_nothing() -> None:
    W = cloud(3, 2, 0)
    V, report = prox(lambda V: V.sum() * float("nan"), W, 1.0)
    assert report.status is Status.NONFINITE
    assert torch.equal(V, W)


@pytest.mark.parametrize("kwargs", [{"gamma": 0.0}, {"gamma": 1.0, "max_eval": 1}])
def test_zero_gamma_and_one_evaluation_do_not_move(kwargs: dict[str, float]) -> None:
    W = cloud(3, 2, 0)
    gamma = kwargs.pop("gamma")
    V, report = prox(lambda V: V.square().sum(), W, gamma, **kwargs)  # type: ignore[arg-type]
    assert report.status is Status.NO_MOVE
    assert report.evaluations == 1
    assert torch.equal(V, W)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: prox(torch.sum, torch.ones(3), 1.0), r"W must be .*\(m, D\), got shape \(3,\)"),
        (lambda: prox(torch.sum, torch.ones(3, 1), -1.0), r"gamma must be > 0 .*got -1.0"),
        (
            lambda: prox(torch.sum, torch.ones(3, 1), 1.0, max_eval=0),
            "max_eval must be an integer >= 1, got 0",
        ),
        (lambda: prox(torch.sum, torch.ones(3, 1), 1.0, distance="w2"), "distance must be one of"),
        (lambda: prox(torch.sum, torch.ones(3, 1), 1.0, solver="sgd"), "solver must be one of"),
        (lambda: wasserstein_sq(torch.ones(3, 2), torch.ones(3, 1)), "X and Y must be"),
        (
            lambda: wasserstein_sq(torch.ones(3, 2), torch.ones(2, 2), a=torch.ones(2) / 2),
            r"a must be \(3,\) real masses",
        ),
        (
            lambda: wasserstein_sq(torch.ones(2, 2), torch.ones(2, 2), a=torch.ones(2)),
            "one total mass",
        ),
    ],
)
def test_bad_input_names_the_argument_and_the_remedy(call: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()  # type: ignore[operator]


def test_distances_of_a_million_particles_keep_their_digits_in_float32() -> None:
    V = 2 * torch.randn(1_000_000, 3, generator=torch.Generator().manual_seed(0))
    found = mean_squared(V, torch.zeros_like(V)).value.item()
    exact = V.double().square().sum(1).mean().item()
    assert found == pytest.approx(exact, rel=1e-6)


@pytest.mark.parametrize("solver", ["gd", "bfgs", "lbfgs"])
def test_convergence_is_that_of_the_true_objective_where_assignments_are_held(solver: str) -> None:
    # F = (c/2)|V - T|^2, kappa = 1/(m gamma): at the best V for sigma, P is
    # c kappa/(2 (c + kappa)) |T - W_sigma|^2, so that sigma is optimal between T and W. The solver
    # converges in a few evaluations, while a class of 200 particles keeps the identity.
    m, c, gamma = 200, 1.0, 1.0
    W, T = cloud(m, 2, 70), cloud(m, 2, 71)
    kappa = 1.0 / (m * gamma)
    _, report = prox(lambda V: 0.5 * c * (V - T).square().sum(), W, gamma, solver=solver)
    expected = c * kappa / (2 * (c + kappa)) * m * wasserstein_sq(T, W).item()
    assert report.status is Status.CONVERGED
    assert report.objective == pytest.approx(expected, rel=1e-6)
    assert report.residual <= 1e-4
