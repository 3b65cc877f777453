from __future__ import annotations

import copy
import pickle
from typing import Any

import ot
import pytest
import torch
from torch import Tensor

from conftest import closure_of, sinus_data, sinus_layer
from torch_wprox import Sliced, WassersteinProx, wasserstein_sq
from torch_wprox.distances import sliced


def cloud(m: int, D: int, seed: int) -> Tensor:
    return torch.randn(m, D, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def value(V: Tensor, W: Tensor, L: int = 50, classes: Tensor | None = None) -> float:
    return Sliced(L).anchored(W, classes).evaluate(V).value.item()


def directions(D: int, L: int) -> Tensor:
    t = torch.randn(D, L, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    return t / t.norm(dim=0)


def test_it_is_the_square_of_pots_value_on_the_same_projections() -> None:
    V, W = cloud(15, 3, 0), cloud(15, 3, 1)
    root = ot.sliced_wasserstein_distance(V, W, projections=directions(3, 50))
    assert value(V, W) == pytest.approx(root.item() ** 2, rel=1e-12)


def test_a_translation_costs_its_mean_squared_projection_and_one_dth_in_expectation() -> None:
    W, b = cloud(9, 4, 2), torch.tensor([1.0, -2.0, 0.5, 3.0], dtype=torch.float64)
    t = directions(4, 50)
    assert value(W + b, W) == pytest.approx((b @ t).square().mean().item(), rel=1e-12)
    # 1/D of |b|^2: the variance of <b, t>^2 leaves about 1 % at 20000 directions.
    assert value(W + b, W, L=20_000) == pytest.approx(b.square().sum().item() / 4, rel=0.03)


def test_it_never_exceeds_w2_squared() -> None:
    for seed in range(20):
        V, W = cloud(7, 2, seed), cloud(7, 2, seed + 100)
        assert value(V, W, L=7) <= wasserstein_sq(V, W).item() * (1 + 1e-12)


def test_the_gradient_is_autograds_and_zero_at_the_anchor() -> None:
    V, W = cloud(11, 3, 3), cloud(11, 3, 4)
    d = Sliced(13).anchored(W, None)
    t, X = directions(3, 13), V.clone().requires_grad_()
    by_hand = ((X @ t).sort(0).values - (W @ t).sort(0).values).square().mean()
    (expected,) = torch.autograd.grad(by_hand, X)
    assert torch.allclose(d.evaluate(V).gradient, expected, atol=1e-14)
    assert torch.equal(d.evaluate(W).gradient, torch.zeros_like(W))  # POT's is NaN here
    assert d.evaluate(W).value.item() == 0.0


def test_classes_are_sorted_apart() -> None:
    V, W = cloud(10, 2, 5), cloud(10, 2, 6)
    labels = torch.tensor([0, 1] * 5)
    parts = [value(V[labels == k], W[labels == k]) for k in (0, 1)]
    assert value(V, W, classes=labels) == pytest.approx(sum(parts) / 2, rel=1e-12)


def test_pieces_of_projections_add_up_to_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    V, W = cloud(10, 2, 7), cloud(10, 2, 8)
    whole = Sliced(30).anchored(W, None).evaluate(V)
    monkeypatch.setattr(sliced, "_PIECE", 70)
    pieces = Sliced(30).anchored(W, None).evaluate(V)
    assert torch.allclose(whole.gradient, pieces.gradient, atol=1e-15)
    assert whole.value.item() == pytest.approx(pieces.value.item(), rel=1e-13)


def test_directions_are_new_in_every_step_and_fixed_inside_one() -> None:
    V, W = cloud(6, 2, 9), cloud(6, 2, 10)
    distance = Sliced(3)
    first, second = distance.anchored(W, None), distance.anchored(W, None)
    assert first.evaluate(V).value == first.evaluate(V).value
    assert first.evaluate(V).value != second.evaluate(V).value


@pytest.mark.parametrize("copy_of", [copy.deepcopy, lambda d: pickle.loads(pickle.dumps(d))])
def test_copies_draw_the_same_directions(copy_of: Any) -> None:
    W, distance = cloud(6, 2, 11), Sliced(3)
    distance.anchored(W, None)
    twin = copy_of(distance)
    ends = [d.anchored(W, None).evaluate(2 * W).value.item() for d in (distance, twin)]
    assert ends[0] == ends[1]


def test_resuming_is_bit_exact_and_an_exception_gives_the_directions_back() -> None:
    x, y = sinus_data()

    def fresh() -> tuple[Any, Any]:
        layer = sinus_layer(m=8)
        opt = WassersteinProx(layer.parameters(), 0.5, distance=Sliced(4), max_eval=20)
        return layer, opt

    layer, opt = fresh()
    opt.step(closure_of(layer, opt, x, y))
    saved = copy.deepcopy((layer.state_dict(), opt.state_dict()))

    def failing() -> Tensor:
        raise ValueError("stop")

    with pytest.raises(ValueError, match="stop"):
        opt.step(failing)
    opt.step(closure_of(layer, opt, x, y))
    resumed, again = fresh()
    resumed.load_state_dict(saved[0])
    again.load_state_dict(saved[1])
    again.step(closure_of(resumed, again, x, y))
    assert torch.equal(resumed.particles, layer.particles)


def test_a_bad_number_of_projections_is_named() -> None:
    with pytest.raises(ValueError, match="projections must be an integer >= 1, got 0"):
        Sliced(0)
