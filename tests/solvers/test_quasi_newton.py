from __future__ import annotations

import pytest
import torch
from torch import Tensor

from conftest import closure_for, closure_of, sinus_data, sinus_layer
from torch_wprox import FrobeniusProx, Status, WassersteinProx, prox
from torch_wprox.solvers import BFGS, LBFGS, WeakWolfe
from torch_wprox.solvers.bfgs import updated
from torch_wprox.solvers.curvature_pairs import Pairs


def pairs(k: int, N: int, seed: int = 0) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
    """A positive definite Hessian and k pairs (s, A s)."""
    generator = torch.Generator().manual_seed(seed)
    root = torch.randn(N, N, dtype=torch.float64, generator=generator)
    A = root @ root.T + torch.eye(N, dtype=torch.float64)
    steps = torch.randn(k, N, dtype=torch.float64, generator=generator)
    return A, [(s, A @ s) for s in steps]


def test_the_dense_update_satisfies_the_secant_equation_and_stays_symmetric_positive() -> None:
    _, made = pairs(5, 6)
    H = None
    for s, y in made:
        H = updated(H, s, y)
        assert H is not None
        assert torch.allclose(H @ y, s, atol=1e-10)
        assert torch.allclose(H, H.T, atol=1e-12)
        assert torch.linalg.eigvalsh(H).min() > 0


def test_a_pair_without_positive_curvature_changes_nothing() -> None:
    H, s = torch.eye(3, dtype=torch.float64), torch.ones(3, dtype=torch.float64)
    assert torch.equal(updated(H, s, -s), H)
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
def test_one_step_of_the_note_reaches_a_quarter_at_gamma_one() -> None:
    # Adam as the note used it stops at .38 on average with the same 4000 evaluations.
    x, y = sinus_data()
    values = []
    for seed in range(3):
        layer = sinus_layer(seed=seed)
        opt = WassersteinProx(layer.parameters(), 1.0, solver="bfgs", max_eval=4000)
        opt.step(closure_of(layer, opt, x, y))
        values.append(opt.report.objective)
    assert sorted(values)[1] <= 0.26


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
