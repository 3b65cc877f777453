from __future__ import annotations

import math

import pytest
import torch
from scipy.optimize import brentq
from torch import Tensor

from conftest import closure_for, closure_of, sinus_data, sinus_layer
from torch_wprox import FrobeniusProx, Status, WassersteinProx, prox
from torch_wprox.solvers import BFGS, LBFGS, WeakWolfe
from torch_wprox.solvers.bfgs import scaling, self_scaled, with_curvature
from torch_wprox.solvers.curvature_pairs import Pairs
from torch_wprox.solvers.lbfgs import history_of


def pairs(k: int, N: int, seed: int = 0) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
    """A positive definite Hessian and k pairs (s, A s)."""
    generator = torch.Generator().manual_seed(seed)
    root = torch.randn(N, N, dtype=torch.float64, generator=generator)
    A = root @ root.T + torch.eye(N, dtype=torch.float64)
    steps = torch.randn(k, N, dtype=torch.float64, generator=generator)
    return A, [(s, A @ s) for s in steps]


def updated(H: Tensor | None, s: Tensor, y: Tensor) -> Tensor:
    """H after a BFGS update from the scale of the first pair."""
    if H is None:
        H = torch.eye(len(s), dtype=s.dtype) * (s @ y) / (y @ y)
    H = H.clone()
    self_scaled(H, s, y, None)
    return H


def test_the_dense_update_without_scaling_is_the_product_form_of_bfgs() -> None:
    _, made = pairs(3, 6)
    H, eye = torch.diag(torch.arange(1.0, 7.0, dtype=torch.float64)), torch.eye(6)
    for s, y in made:
        left = eye - torch.outer(s, y) / (s @ y)
        exact = left @ H @ left.T + torch.outer(s, s) / (s @ y)
        assert torch.allclose(updated(H, s, y), exact, rtol=1e-12, atol=1e-12)
        H = exact


def published(H: Tensor, s: Tensor, y: Tensor, sBs: float) -> Tensor:
    """The self-scaled update as two papers print it, term by term."""
    Hy, sy, N = H @ y, s @ y, len(s)
    b, h = sBs / sy, y @ Hy / sy
    a = h * b - 1
    rho = min(1.0, h * (1 - (a / (1 + a)).sqrt()))
    theta = max((rho - 1) / a, min(1 / rho, (1 - b) / b))
    sigma = 1 + a * theta
    if theta > 0:
        tau = min(1.0, 1 / b) * min(sigma ** (-1 / (N - 1)), 1 / theta)
    else:
        tau = min(min(1.0, 1 / b) * sigma ** (-1 / (N - 1)), sigma)
    v = (y @ Hy).sqrt() * (s / sy - Hy / (y @ Hy))
    rank_two = torch.outer(Hy, Hy) / (y @ Hy) - (1 - theta) / sigma * torch.outer(v, v)
    return (H - rank_two) / tau + torch.outer(s, s) / sy


@pytest.mark.parametrize("scale", [1e-3, 0.1, 1.0, 10.0, 1e3])
def test_the_self_scaled_update_is_the_published_formula(scale: float) -> None:
    _, made = pairs(5, 6)
    H = scale * torch.diag(torch.arange(1.0, 7.0, dtype=torch.float64))
    for s, y in made:
        sBs = (s @ torch.linalg.solve(H, s)).item()
        exact = published(H, s, y, sBs)
        self_scaled(H, s, y, sBs)
        assert torch.allclose(H, exact, rtol=1e-9, atol=1e-9 * exact.abs().max())
        rounding = 1e-13 * (H.norm() * y.norm()).item()
        assert torch.allclose(H @ y, s, rtol=1e-9, atol=max(rounding, 1e-10))
        assert torch.linalg.eigvalsh(H).min() > 0
        H = exact


def test_a_curvature_that_is_too_large_everywhere_is_lowered_everywhere_at_once() -> None:
    # B = 100 I, the function has I: one pair along the first axis must tell of the others too.
    H, s = 0.01 * torch.eye(4, dtype=torch.float64), torch.eye(4, dtype=torch.float64)[0]
    plain, scaled = H.clone(), H.clone()
    self_scaled(plain, s, s, None)
    self_scaled(scaled, s, s, 100.0)
    assert plain[1, 1].item() == pytest.approx(0.01)
    assert scaled[1, 1].item() > 0.02
    assert scaled[0, 0].item() == pytest.approx(1.0)


@pytest.mark.parametrize(("b", "h"), [(1.0, 1.0), (-1.0, 2.0), (1e-200, 1.0), (1e200, 1e200)])
def test_a_pair_that_is_only_rounding_scales_nothing_or_stays_finite(b: float, h: float) -> None:
    tau, phi = scaling(b, h, 100)
    assert 0 < tau <= 1
    assert math.isfinite(phi)


def test_a_larger_curvature_of_the_distance_enters_the_carried_matrix_exactly() -> None:
    A, _ = pairs(1, 7)
    more = torch.tensor([0.0, 0.0, 1e-3, 1.0, 1.0, 50.0, 1e4], dtype=torch.float64)
    exact = torch.linalg.inv(A + torch.diag(more))
    assert torch.allclose(with_curvature(torch.linalg.inv(A), more), exact, rtol=1e-9, atol=1e-14)
    less = -more
    assert torch.equal(with_curvature(A, less), A)  # left to the updates


def test_the_dense_update_satisfies_the_secant_equation_and_stays_symmetric_positive() -> None:
    _, made = pairs(5, 6)
    H = None
    for s, y in made:
        H = updated(H, s, y)
        assert torch.allclose(H @ y, s, atol=1e-10)
        assert torch.allclose(H, H.T, atol=1e-12)
        assert torch.linalg.eigvalsh(H).min() > 0


def test_a_pair_without_positive_curvature_changes_nothing() -> None:
    s = torch.ones(3, dtype=torch.float64)
    kept = Pairs(s, 4)
    kept.append(s, -s)
    assert len(kept) == 0


@pytest.mark.parametrize("k", [1, 2, 5])
def test_the_compact_form_is_the_dense_recursion_from_its_scaled_identity(k: int) -> None:
    _, made = pairs(k, 8)
    compact = Pairs(made[0][0], 20)
    for s, y in made:
        compact.append(s, y)
    H = torch.eye(8, dtype=torch.float64) * max((s @ y) / (y @ y) for s, y in made)
    for s, y in made:
        H = updated(H, s, y)
    g = torch.arange(8.0, dtype=torch.float64)
    assert torch.allclose(compact.times(g), H @ g, rtol=1e-10)


@pytest.mark.parametrize("k", [1, 2, 5])
def test_the_dense_compact_form_is_the_recursion_of_bfgs(k: int) -> None:
    _, made = pairs(k, 8)
    compact, H = Pairs(made[0][0], k), None
    for s, y in made:
        compact.append(s, y)
        H = updated(H, s, y)
    assert torch.allclose(compact.dense(), H, rtol=1e-9, atol=1e-12)
    S, Y = (torch.stack(vectors) for vectors in zip(*made, strict=True))
    at_once = Pairs(made[0][0], k)
    at_once.replace(torch.cat([-S[:1], S]), torch.cat([Y[:1], Y]))  # one without curvature
    for name in ("S", "Y", "SY", "YY"):
        assert torch.allclose(getattr(at_once, name), getattr(compact, name))


@pytest.mark.parametrize("most", [1, 2, 3])
@pytest.mark.parametrize("k", [4, 6, 7, 13])
def test_the_oldest_pair_leaves_first(k: int, most: int) -> None:
    _, made = pairs(k, 5)
    compact, newest = Pairs(made[0][0], most), Pairs(made[0][0], most)
    for s, y in made:
        compact.append(s, y)
    for s, y in made[-most:]:
        newest.append(s, y)
    assert len(compact) == most
    for name in ("S", "Y", "SY", "YY"):
        assert torch.allclose(getattr(compact, name), getattr(newest, name))


@pytest.mark.parametrize("solver", [BFGS(), LBFGS()])
def test_a_quadratic_converges_to_its_closed_form(solver: BFGS | LBFGS) -> None:
    A, _ = pairs(1, 10)
    W = torch.linspace(-1, 1, 10, dtype=torch.float64)[None]
    V, report = prox(
        lambda V: 0.5 * (V @ A * V).sum(), W, 3.0, solver=solver, max_eval=400, tolerance_grad=1e-9
    )
    exact = torch.linalg.solve(A + torch.eye(10, dtype=torch.float64) / 3.0, W[0] / 3.0)
    assert report.status is Status.CONVERGED
    assert torch.allclose(V[0], exact, rtol=0, atol=1e-8)


@pytest.mark.parametrize("solver", [BFGS(), LBFGS()])
@pytest.mark.parametrize("gamma", [0.1, 10.0])
def test_the_prox_of_the_l1_norm_is_soft_thresholding(solver: BFGS | LBFGS, gamma: float) -> None:
    # A function with a kink at its solution: the coordinates below gamma must reach exactly zero,
    # where gradient rules cannot hold and a strong Wolfe search has no point to accept.
    W = torch.tensor([[3.0, -0.05, 0.5, -20.0]], dtype=torch.float64)
    V, report = prox(lambda V: V.abs().sum(), W, gamma, solver=solver, max_eval=600)
    exact = torch.sign(W) * torch.relu(W.abs() - gamma)
    assert torch.allclose(V, exact, rtol=0, atol=1e-6)
    value = exact.abs().sum() + (exact - W).square().sum() / (2 * gamma)
    assert report.objective == pytest.approx(value.item(), rel=1e-9)


def test_random_soft_thresholds_are_found_to_six_digits() -> None:
    # Self-scaling alone loses digits in a fifth of them: a failed search must fall back on pairs.
    generator = torch.Generator().manual_seed(0)
    for _ in range(12):
        N = int(torch.randint(2, 12, (1,), generator=generator))
        W = 10 * torch.randn(1, N, generator=generator, dtype=torch.float64)
        gamma = 10 ** (3 * torch.rand(1, generator=generator).item() - 1)
        V, _ = prox(lambda V: V.abs().sum(), W, gamma, solver="bfgs", max_eval=600)
        exact = torch.sign(W) * torch.relu(W.abs() - gamma)
        assert torch.allclose(V, exact, rtol=0, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("solver", ["gd", "bfgs", "lbfgs"])
def test_the_floating_point_floor_ends_the_loop(dtype: torch.dtype, solver: str) -> None:
    W = torch.linspace(-1, 1, 12, dtype=dtype).view(6, 2)
    _, report = prox(
        lambda V: (V.exp() - V).sum(), W, 1.0, solver=solver, max_eval=5000, tolerance_grad=0.0
    )
    assert report.status is Status.STALLED
    assert report.evaluations < 1000
    assert report.residual < 1e-6 if dtype is torch.float64 else 1e-2


@pytest.mark.slow
def test_one_step_of_the_note_comes_within_a_quarter_of_its_bound() -> None:
    # The certified minimum is .186. Adam as the note used it stops at .38 with 4000 evaluations,
    # BFGS without scaling at .24.
    x, y = sinus_data()
    values = []
    for seed in range(3):
        layer = sinus_layer(seed=seed)
        opt = WassersteinProx(layer.parameters(), 1.0, solver="bfgs", max_eval=1200)
        opt.step(closure_of(layer, opt, x, y))
        values.append(opt.report.objective)
    assert sorted(values)[1] <= 0.23


@pytest.mark.slow
def test_limited_memory_does_not_stop_at_a_kink_on_the_way() -> None:
    # P is about .45 on the first plateau, where the scale of the last pair left 2 of 3 seeds.
    x, y = sinus_data()
    values = []
    for seed in range(3):
        layer = sinus_layer(seed=seed)
        opt = WassersteinProx(layer.parameters(), 100.0, solver="lbfgs", max_eval=1500)
        opt.step(closure_of(layer, opt, x, y))
        values.append(opt.report.objective)
    assert max(values) < 0.03


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"decrease": 0.5, "curvature": 0.1}, "0 < decrease < curvature < 1, got 0.5 and 0.1"),
        ({"max_trials": 0}, "max_trials must be an integer >= 1, got 0"),
    ],
)
def test_bad_search_options_are_named(kwargs: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        WeakWolfe(**kwargs)  # type: ignore[arg-type]


def test_fewer_pairs_are_kept_of_long_vectors() -> None:
    p = torch.nn.Parameter(torch.zeros(200_000))
    opt = FrobeniusProx([p], gamma=1.0, solver="lbfgs", max_eval=40, tolerance_grad=0.0)
    slopes = torch.linspace(1.0, 100.0, 200_000)

    closure = closure_for(opt, lambda: (slopes * (p - 1).square()).sum())
    opt.step(closure)
    assert len(opt.state_dict()["prox"]["carried"]["memory"]["steps"]) == 10


@pytest.mark.parametrize(
    ("numbers", "pairs"), [(100, 50), (600, 150), (4000, 200), (20_000, 50), (10**6, 10)]
)
def test_the_history_fits_the_numbers_of_the_problem(numbers: int, pairs: int) -> None:
    assert history_of(numbers) == pairs


@pytest.mark.parametrize("gamma", [1e3, 1e10, 1e20])
def test_a_larger_gamma_lowers_the_floor_of_a_loss_that_tends_to_zero(gamma: float) -> None:
    # F(v) = log(1 + exp(-v)), W = 0: the minimum of P has v (1 + exp(v)) = gamma, so that F is
    # about v/gamma: 5e-3, 2e-9, 4e-19.
    V, report = prox(
        lambda V: torch.nn.functional.softplus(-V).sum(),
        torch.zeros(1, 1, dtype=torch.float64),
        gamma,
        max_eval=300,
        tolerance_grad=0.0,
    )
    exact = brentq(lambda v: math.log(v) + math.log1p(math.exp(v)) - math.log(gamma), 1e-3, 100)
    assert V.item() == pytest.approx(exact, rel=1e-4)
    assert report.loss_after == pytest.approx(math.log1p(math.exp(-exact)), rel=1e-2)
