from __future__ import annotations

import pytest
import torch

from conftest import closure_of, sinus_data, sinus_layer
from torch_wprox import FirstOrder, GradientDescent, Status, WassersteinProx, prox


@pytest.mark.parametrize("solver", ["adam", FirstOrder(torch.optim.RMSprop, lr=1e-2), "gd"])
def test_any_inner_optimizer_lowers_the_objective_and_returns_its_best_point(
    solver: str | FirstOrder,
) -> None:
    x, y = sinus_data()
    layer = sinus_layer()
    opt = WassersteinProx(layer.parameters(), 1.0, solver=solver, max_eval=200)
    opt.step(closure_of(layer, opt, x, y))
    assert opt.report.objective < 0.9 * opt.report.loss_before
    assert opt.report.evaluations <= 200


def test_sgd_without_decay_is_the_notes_inner_loop() -> None:
    # (17)-(18): V <- V - beta (grad F + (V - W)/(m gamma)), here towards a quadratic's closed form.
    W = torch.tensor([[1.0, -2.0], [0.5, 3.0]], dtype=torch.float64)
    V, report = prox(
        lambda V: V.square().sum() / 2,
        W,
        0.5,
        distance="frobenius",
        solver=FirstOrder(torch.optim.SGD, decay=False, lr=0.3),
        max_eval=100,
        tolerance_grad=1e-10,
    )
    assert report.status is Status.CONVERGED
    assert torch.allclose(V, W / 2, atol=1e-9)


def test_a_step_size_that_diverges_still_returns_the_best_point() -> None:
    W = torch.ones(1, 2, dtype=torch.float64)
    V, report = prox(
        lambda V: V.pow(4).sum(), W, 1.0, solver=FirstOrder(torch.optim.SGD, lr=1e6), max_eval=50
    )
    assert report.objective <= report.loss_before
    assert V.isfinite().all()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: FirstOrder("adam"), "optimizer must be a class of torch.optim, got 'adam'"),
        (lambda: GradientDescent(step=0.0), "step must be a finite number > 0"),
        (lambda: GradientDescent(growth=0.5), "growth must be a finite number >= 1"),
        (lambda: GradientDescent(decrease=1.0), "decrease must be between 0 and 1"),
    ],
)
def test_bad_options_are_named(make: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()  # type: ignore[operator]
