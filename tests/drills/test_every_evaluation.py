"""A NaN, an infinity, an exception at each evaluation of a step in turn."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from conftest import sinus_data, sinus_layer
from torch_wprox import FrobeniusProx, MeanFieldLayer, Status, WassersteinProx
from torch_wprox.distances.sinkhorn import Sinkhorn

pytestmark = pytest.mark.nightly
OPTIMIZERS: dict[str, Callable[..., Any]] = {
    "frobenius": FrobeniusProx,
    "emd": WassersteinProx,
    "sinkhorn": partial(WassersteinProx, distance=Sinkhorn(blur=0.3, scaling=0.5)),  # quick
    "sliced": partial(WassersteinProx, distance="sliced"),
}
SOLVERS = ["gd", "adam", "bfgs", "lbfgs"]
COMBINED = pytest.mark.parametrize(
    ("distance", "solver"), [(d, s) for d in OPTIMIZERS for s in SOLVERS]
)


class Interrupt(BaseException):
    pass


def fresh(distance: str, solver: str, max_eval: int = 25) -> tuple[MeanFieldLayer, Any]:
    """A layer and an optimizer that has already taken a step, so that it remembers something."""
    layer = sinus_layer(m=12, scale=0.3)
    opt = OPTIMIZERS[distance](layer.parameters(), gamma=0.5, solver=solver, max_eval=max_eval)
    opt.step(Closure(layer, opt))
    return layer, opt


class Closure:
    """The sinus loss, spoilt at evaluation ``at``."""

    def __init__(
        self,
        layer: nn.Module,
        opt: Any,
        at: int = 0,
        spoil: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        self.layer, self.opt, self.at, self.spoil = layer, opt, at, spoil
        self.runs = 0
        self.x, self.y = sinus_data()

    def __call__(self) -> Tensor:
        self.runs += 1
        self.opt.zero_grad()
        loss = (self.layer(self.x) - self.y).square().mean()
        if self.runs == self.at and self.spoil is not None:
            loss = self.spoil(loss)
        loss.backward()
        return loss.detach()


def spoilt_gradient(loss: Tensor) -> Tensor:
    """The loss is finite, its gradient is not."""
    return loss + 0.0 * (loss - loss.detach()).sqrt()


SPOILERS = {
    "nan": lambda loss: loss * math.nan,
    "inf": lambda loss: loss * math.inf,
    "-inf": lambda loss: -loss * math.inf,
    "gradient": spoilt_gradient,
}


def evaluations_of_a_clean_step(distance: str, solver: str) -> int:
    layer, opt = fresh(distance, solver)
    opt.step(Closure(layer, opt))
    return int(opt.report.evaluations)


@COMBINED
@pytest.mark.parametrize("spoiler", SPOILERS)
def test_numbers_that_are_not_finite_are_rejected_at_every_evaluation(
    distance: str, solver: str, spoiler: str
) -> None:
    for at in range(1, evaluations_of_a_clean_step(distance, solver) + 1):
        layer, opt = fresh(distance, solver)
        before = layer.particles.detach().clone()
        closure = Closure(layer, opt, at, SPOILERS[spoiler])
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            opt.step(closure)
        after, report = layer.particles.detach().clone(), opt.report
        assert after.isfinite().all(), at
        assert report.evaluations == closure.runs <= 25
        if at == 1:
            assert report.status is Status.NONFINITE
            assert torch.equal(after, before)
            assert any("not finite" in str(w.message) for w in caught)
        else:
            assert not caught
            assert math.isfinite(report.objective)
            assert report.objective <= report.loss_before
        opt.zero_grad()
        opt.step(Closure(layer, opt))  # and the next step is a good one
        assert math.isfinite(opt.report.objective)
        assert opt.report.objective < opt.report.loss_before


@COMBINED
@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, Interrupt])
def test_an_exception_at_every_evaluation_leaves_the_step_to_be_taken_again(
    distance: str, solver: str, error: type[BaseException]
) -> None:
    def spoil(loss: Tensor) -> Tensor:
        raise error("stop")

    clean, opt = fresh(distance, solver)
    opt.step(Closure(clean, opt))
    for at in range(1, opt.report.evaluations + 1):
        layer, again = fresh(distance, solver)
        before = layer.particles.detach().clone()
        state, report = copy.deepcopy(again.state_dict()), again.report
        with pytest.raises(error, match="stop"):
            again.step(Closure(layer, again, at, spoil))
        assert torch.equal(layer.particles, before)
        assert repr(again.state_dict()) == repr(state)
        assert again.report is report
        again.zero_grad()
        again.step(Closure(layer, again))
        assert torch.equal(layer.particles, clean.particles)
        assert repr(again.state_dict()) == repr(opt.state_dict())


@COMBINED
def test_every_budget_is_kept_and_ends_at_the_accepted_point(distance: str, solver: str) -> None:
    for max_eval in range(1, 26):
        layer = sinus_layer(m=12, scale=0.3)
        opt = OPTIMIZERS[distance](layer.parameters(), gamma=0.5, solver=solver, max_eval=max_eval)
        closure = Closure(layer, opt)
        opt.step(closure)
        assert closure.runs == opt.report.evaluations <= max_eval
        left = layer.particles.grad.clone()
        loss = Closure(layer, opt)()
        assert torch.equal(left, layer.particles.grad)
        assert opt.report.loss_after == pytest.approx(loss.item(), rel=1e-12)
