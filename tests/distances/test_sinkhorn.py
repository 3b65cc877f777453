from __future__ import annotations

import sys

import ot
import pytest
import torch
from torch import Tensor

from conftest import closure_of, sinus_data, sinus_layer
from torch_wprox import Sinkhorn, WassersteinProx, prox, wasserstein_sq


def cloud(m: int, D: int, seed: int) -> Tensor:
    return torch.randn(m, D, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


V, W = cloud(12, 2, 0), cloud(12, 2, 1)


def test_it_tends_to_w2_squared_as_the_blur_shrinks() -> None:
    exact = wasserstein_sq(V, W).item()
    errors = [
        abs(Sinkhorn(blur, scaling=0.95).anchored(W, None).evaluate(V).value.item() - exact)
        for blur in (0.5, 0.1, 0.02)
    ]
    assert errors[0] > errors[1] > errors[2]
    assert (
        errors[2] < 0.03 * errors[0]
    )  # like 1 - scaling: a hundredth, with room for a factor 3 * exact


def test_without_debiasing_it_is_pots_entropic_cost() -> None:
    # GeomLoss: cost |v-w|^2/2 with eps = blur^2 and entropy relative to the product measure.
    blur = 0.5
    a = torch.full((12,), 1 / 12, dtype=torch.float64)
    cost = torch.cdist(V, W).square() / 2
    plan = ot.sinkhorn(a, a, cost, reg=blur**2, stopThr=1e-13, numItermax=100_000)
    entropy = (plan * (plan / (a[:, None] * a[None])).log()).sum()
    expected = 2 * ((plan * cost).sum() + blur**2 * entropy)
    found = Sinkhorn(blur, scaling=0.99, debiased=False).anchored(W, None).evaluate(V).value
    assert found.item() == pytest.approx(expected.item(), rel=1e-3)


def test_it_is_zero_with_zero_gradient_at_the_anchor_when_debiased() -> None:
    at = Sinkhorn().anchored(W, None).evaluate(W)
    assert abs(at.value.item()) < 1e-12
    assert at.gradient.abs().max().item() < 1e-12
    biased = Sinkhorn(0.5, debiased=False).anchored(W, None).evaluate(W)
    assert abs(biased.value.item()) > 1e-3


@pytest.mark.slow
def test_the_gradient_tends_to_that_of_the_value_as_the_annealing_slows() -> None:
    # GeomLoss differentiates as if its potentials were converged: exact only for scaling -> 1.
    direction, h, errors = cloud(12, 2, 2), 1e-4, []
    for scaling in (0.9, 0.98, 0.999):
        d = Sinkhorn(0.3, scaling=scaling).anchored(W, None)
        up, down = (d.evaluate(V + s * h * direction).value.item() for s in (1, -1))
        slope = (d.evaluate(V).gradient * direction).sum().item()
        errors.append(abs(slope - (up - down) / (2 * h)) / direction.norm().item())
    assert errors[0] > 3 * errors[1] > 9 * errors[2]
    assert errors[2] < 0.03 * errors[0]  # like 1 - scaling: a hundredth, with room for a factor 3


def test_classes_are_weighted_by_their_share_and_never_mixed() -> None:
    labels = torch.tensor([0] * 4 + [1] * 8)
    whole = Sinkhorn().anchored(W, labels).evaluate(V).value.item()
    parts = [
        Sinkhorn().anchored(W[labels == k], None).evaluate(V[labels == k]).value.item()
        for k in (0, 1)
    ]
    assert whole == pytest.approx(4 / 12 * parts[0] + 8 / 12 * parts[1], rel=1e-12)


@pytest.mark.parametrize(
    "points", [torch.zeros(3, 2), 1e-9 * torch.eye(3)[:, :2], torch.ones(1, 2)]
)
def test_degenerate_clouds_stay_finite(points: Tensor) -> None:
    d = Sinkhorn().anchored(points, None).evaluate(points + 1.0)
    assert d.value.item() == pytest.approx(2.0, rel=1e-3)
    assert d.gradient.isfinite().all()
    assert d.gradient.dtype == points.dtype


def test_the_optimizer_descends_in_it() -> None:
    x, y = sinus_data()
    layer = sinus_layer(m=10, scale=0.5)
    opt = WassersteinProx(layer.parameters(), 0.1, distance=Sinkhorn(blur=0.1), max_eval=15)
    opt.step(closure_of(layer, opt, x, y))
    report = opt.report
    assert report.loss_after < report.loss_before
    assert report.objective <= report.loss_before
    assert report.wasserstein_sq == pytest.approx(report.distance_sq, rel=0.5)


def test_a_translation_moves_the_prox_as_in_w2() -> None:
    # f = <c, mean of V>: W2^2 and any debiased divergence charge |b|^2 for a translation by b.
    c = torch.tensor([1.0, -2.0], dtype=torch.float64)
    moved, _ = prox(lambda V: V.mean(0) @ c, W, 0.3, distance=Sinkhorn(0.05), max_eval=60)
    assert torch.allclose(moved, W - 0.3 * c, atol=1e-3)


def test_a_class_above_dense_up_to_asks_for_keops(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pykeops", None)  # as where it is not installed
    labels = torch.tensor([0] * 4 + [1] * 8)
    Sinkhorn(dense_up_to=8).anchored(W, labels).evaluate(V)
    with pytest.raises(ModuleNotFoundError, match="Sinkhorn on 8 particles needs KeOps"):
        Sinkhorn(dense_up_to=7).anchored(W, labels).evaluate(V)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"blur": 0.0}, "blur must be > 0, got 0.0"),
        ({"scaling": 1.0}, r"scaling must be in \(0, 1\)"),
        ({"dense_up_to": -1}, "dense_up_to must be an integer >= 0, got -1"),
    ],
)
def test_bad_options_are_named(kwargs: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Sinkhorn(**kwargs)
