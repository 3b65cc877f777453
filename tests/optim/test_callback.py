"""Callback, time budget and Ctrl-C in the middle of a step."""

from __future__ import annotations

import copy
import logging
import pickle
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from conftest import closure_of, sinus_data, sinus_layer
from torch_wprox import (
    EntropicJKO,
    FrobeniusProx,
    Global,
    GridLayer,
    MeanFieldLayer,
    Progress,
    Status,
    WassersteinProx,
    certify,
    certify_training,
    prox,
)


def made(solver: str = "bfgs", **options: Any) -> tuple[Any, WassersteinProx, Callable[[], Tensor]]:
    layer = sinus_layer()
    opt = WassersteinProx(layer.parameters(), 1.0, solver=solver, **options)
    return layer, opt, closure_of(layer, opt, *sinus_data())


@pytest.mark.parametrize("solver", ["gd", "adam", "bfgs", "lbfgs", "auto"])
def test_a_true_answer_ends_the_step_at_its_best_point(solver: str) -> None:
    seen: list[Progress] = []
    _layer, opt, closure = made(solver, callback=lambda p: seen.append(p) or p.evaluation >= 7)
    opt.step(closure)
    assert opt.report is not None
    assert opt.report.status is Status.STOPPED
    assert [p.evaluation for p in seen] == list(range(2, 8))
    assert opt.report.objective == pytest.approx(min(p.best for p in seen), rel=1e-12)
    assert opt.report.objective <= opt.report.loss_before
    assert closure().item() == opt.report.loss_after
    assert opt.report.evaluations <= 8  # one more at the accepted point


def test_the_callback_changes_nothing_but_the_end() -> None:
    plain, quiet, closure = made(max_eval=30)
    quiet.step(closure)
    watched, told, closure = made(max_eval=30, callback=lambda p: None, seconds=1e6)
    told.step(closure)
    assert torch.equal(plain.particles, watched.particles)


def test_the_clock_ends_a_step() -> None:
    _, opt, closure = made(max_eval=100_000, seconds=0.05)

    def slow() -> Tensor:
        time.sleep(0.01)
        return closure()

    opt.step(slow)
    assert opt.report is not None
    assert opt.report.status is Status.STOPPED
    assert opt.report.evaluations < 20
    assert opt.report.objective <= opt.report.loss_before


def interrupted_at(count: int, closure: Callable[[], Tensor]) -> Callable[[], Tensor]:
    runs = 0

    def closure_with_ctrl_c() -> Tensor:
        nonlocal runs
        runs += 1
        if runs == count:
            raise KeyboardInterrupt
        return closure()

    return closure_with_ctrl_c


def test_ctrl_c_restores_the_anchor() -> None:
    layer, opt, closure = made(callback=lambda p: None)
    before = layer.particles.detach().clone()
    with pytest.raises(KeyboardInterrupt):
        opt.step(interrupted_at(6, closure))
    assert torch.equal(layer.particles, before)
    assert opt.report is None


def test_ctrl_c_keeps_the_best_point_where_the_callback_says_so() -> None:
    class Keep:
        keep_best_on_interrupt = True

        def __call__(self, progress: Progress) -> None:
            self.best = progress.best

    _layer, opt, closure = made(callback=Keep())
    with pytest.raises(KeyboardInterrupt):
        opt.step(interrupted_at(6, closure))
    assert opt.report is not None
    assert opt.report.status is Status.STOPPED
    assert opt.report.objective == pytest.approx(opt.callback.best, rel=1e-12)
    assert closure().item() == opt.report.loss_after < opt.report.loss_before


def test_an_error_in_the_callback_restores_the_anchor() -> None:
    def broken(progress: Progress) -> None:
        raise ZeroDivisionError

    layer, opt, closure = made(callback=broken)
    before = layer.particles.detach().clone()
    with pytest.raises(ZeroDivisionError):
        opt.step(closure)
    assert torch.equal(layer.particles, before)


def test_copies_and_pickles_leave_the_callback_behind() -> None:
    _, opt, _ = made(callback=lambda p: None, seconds=3.0)
    for other in (copy.deepcopy(opt), pickle.loads(pickle.dumps(opt))):
        assert other.callback is None
        assert other.seconds == 3.0
    assert "callback" not in str(opt.state_dict())


@pytest.mark.parametrize("kind", [WassersteinProx, FrobeniusProx])
def test_wrong_callbacks_and_budgets_are_refused(kind: Any) -> None:
    w = torch.nn.Parameter(torch.ones(2, 2))
    with pytest.raises(TypeError, match="callback must be None or callable"):
        kind([w], callback=3)
    with pytest.raises(ValueError, match="seconds must be > 0"):
        kind([w], seconds=0)


def test_prox_is_ended_by_its_callback() -> None:
    _V, report = prox(lambda V: V.square().sum(), torch.ones(3, 2), 1.0, callback=lambda p: True)
    assert report.status is Status.STOPPED
    assert report.objective <= 6.0


@pytest.mark.parametrize("method", ["newton", "lbfgs", "krylov", "dykstra"])
def test_a_grid_step_is_ended_by_its_callback_with_its_mass(method: Any) -> None:
    axis = torch.linspace(-4, 4, 11, dtype=torch.float64)
    layer = GridLayer([axis, axis], dtype=torch.float64)
    seen: list[Progress] = []
    opt = EntropicJKO(
        layer, 1.0, 1.0, method=method, callback=lambda p: seen.append(p) or len(seen) >= 2
    )
    opt.step(closure_of(layer, opt, *sinus_data()))
    assert opt.report is not None
    assert opt.report.status is Status.STOPPED
    assert len(seen) == 2
    assert opt.report.iterations == 2
    assert sum(opt.report.mass) == pytest.approx(1.0, abs=1e-12)


def test_each_step_is_logged_at_info(caplog: Any) -> None:
    _, opt, closure = made(max_eval=5)
    with caplog.at_level(logging.INFO, logger="torch_wprox"):
        opt.step(closure)
    assert "WassersteinProx: max_eval after" in caplog.text


def test_the_optimizer_says_what_it_is() -> None:
    _, opt, _ = made(max_eval=5)
    text = repr(opt)
    assert text.startswith("WassersteinProx (distance=EMD(), solver=BFGS(")
    assert "max_eval=5" in text
    assert "Parameter Group 0" in text


def certificates(width: int = 20) -> dict[str, Any]:
    """Certificates as functions of callback and seconds, with the layer that they are of."""
    (x, y), layers = sinus_data(), [sinus_layer(), MeanFieldLayer(1, width, dtype=torch.float64)]
    biased = MeanFieldLayer(1, width, output_bias=True, dtype=torch.float64)

    def closure_on(layer: MeanFieldLayer) -> Callable[[], Tensor]:
        def closure() -> Tensor:
            loss = (layer(x) - y).square().mean()
            loss.backward()
            return loss

        return closure

    frozen, trained = layers
    anchor = frozen.particles.detach().clone()
    training = partial(certify_training, weight_decay=1e-4)
    return {
        "step": (frozen, partial(certify, anchor=anchor, gamma=1.0), closure_on(frozen)),
        "training": (trained, training, closure_on(trained)),
        "training with a bias": (biased, training, closure_on(biased)),
        "training of frozen output weights": (frozen, training, closure_on(frozen)),
    }


CERTIFICATES = ("step", "training", "training with a bias", "training of frozen output weights")


@pytest.mark.parametrize("kind", CERTIFICATES)
def test_a_certificate_tells_how_far_it_is_and_keeps_the_bound_so_far(kind: str) -> None:
    layer, made_of, closure = certificates()[kind]
    seen: list[Progress] = []
    early = made_of(layer, closure, callback=lambda p: seen.append(p) or len(seen) > 1)
    assert len(seen) == 2
    assert seen[-1].lower_bound is not None
    full = made_of(layer, closure)
    assert early.lower_bound < full.lower_bound <= full.objective == early.objective


@pytest.mark.parametrize("kind", CERTIFICATES)
def test_the_clock_ends_a_certificate(kind: str) -> None:
    layer, made_of, closure = certificates()[kind]
    seen: list[Progress] = []
    early = made_of(layer, closure, callback=seen.append, seconds=1e-9)
    assert len(seen) == 1
    assert early.lower_bound <= early.objective
    with pytest.raises(ValueError, match="seconds must be > 0"):
        made_of(layer, closure, seconds=0.0)


@pytest.mark.parametrize("kind", CERTIFICATES)
def test_ctrl_c_leaves_the_layer_of_a_certificate_as_it_was(kind: str) -> None:
    layer, made_of, closure = certificates()[kind]
    before = copy.deepcopy(layer.state_dict())
    for count in (1, 3, 5, 9):
        with pytest.raises(KeyboardInterrupt):
            made_of(layer, interrupted_at(count, closure), callback=lambda p: None)
        assert all(torch.equal(t, before[name]) for name, t in layer.state_dict().items())
    assert made_of(layer, closure).certified  # nothing is left behind


# -- inside a global step ------------------------------------------------------------------------


def wavy(kind: str, **options: Any) -> tuple[WassersteinProx, Callable[[], Tensor]]:
    """A step of one of the ways in which the relaxed problem is solved, with its closure."""
    g = torch.Generator().manual_seed(0)
    d = 3 if kind == "rays" else 1
    form: Any = "joint" if kind == "dual" else "signed"
    layer = MeanFieldLayer(
        d, 6, parameterization=form, reduction="sum", generator=g, dtype=torch.float64
    )
    x = torch.randn(7, d, generator=g, dtype=torch.float64)
    y = torch.randn(7, 1, generator=g, dtype=torch.float64)
    gamma = 0.3 if kind == "dual" else 5.0
    solver = Global(starts=2, polish=100)
    opt = WassersteinProx(layer.parameters(), gamma, solver=solver, max_eval=500, **options)

    def closure() -> Tensor:
        opt.zero_grad()
        residual = layer(x) - y
        loss = residual.abs().mean() if kind == "kinks" else residual.square().mean()
        loss.backward()
        return loss

    return opt, closure


WAYS = ("atoms", "rays", "dual", "kinks")


@pytest.mark.parametrize("kind", WAYS)
def test_a_global_step_is_ended_with_its_best_point_and_its_bound(kind: str) -> None:
    full, closure = wavy(kind)
    full.step(closure)
    seen: list[Progress] = []
    early, closure = wavy(kind, callback=lambda p: seen.append(p) or len(seen) > 1)
    early.step(closure)
    assert full.report is not None
    assert early.report is not None
    assert early.report.status is Status.STOPPED
    assert early.report.lower_bound <= full.report.objective * (1 + 1e-9)
    assert early.report.lower_bound <= early.report.objective <= early.report.loss_before
    assert early.report.certified or kind == "rays"  # what is proved by then is a proof
    assert early.report.objective >= full.report.lower_bound
    assert early.report.lower_bound < full.report.lower_bound - 1e-6


@pytest.mark.parametrize("kind", WAYS)
def test_the_clock_ends_a_global_step(kind: str) -> None:
    opt, closure = wavy(kind, seconds=1e-9)
    opt.step(closure)
    assert opt.report is not None
    assert opt.report.status is Status.STOPPED
    assert opt.report.lower_bound <= opt.report.objective <= opt.report.loss_before
    assert closure().item() == opt.report.loss_after


@pytest.mark.parametrize("kind", WAYS)
def test_ctrl_c_keeps_best_point_and_bound_of_a_global_step(kind: str) -> None:
    class Keep:
        keep_best_on_interrupt = True
        bound = -float("inf")

        def __call__(self, progress: Progress) -> None:
            self.bound = max(self.bound, progress.lower_bound or self.bound)

    full, closure = wavy(kind)
    full.step(closure)
    assert full.report is not None
    for share in (0.5, 0.95):
        count = max(1, int(share * full.report.evaluations))
        opt, closure = wavy(kind, callback=Keep())
        with pytest.raises(KeyboardInterrupt):
            opt.step(interrupted_at(count, closure))
        assert opt.report is not None
        assert opt.report.status is Status.STOPPED
        assert opt.report.objective <= opt.report.loss_before
        if opt.callback.bound > -float("inf"):
            told = min(opt.callback.bound, opt.report.objective)
            assert opt.report.lower_bound >= told - 1e-6 * abs(told)  # a last look rounds it
            assert opt.report.lower_bound <= opt.report.objective
            assert not opt.report.certified  # the probes for convexity did not end
    assert opt.report.lower_bound is not None
    layer_opt, closure = wavy(kind, callback=lambda p: None)
    before = [p.detach().clone() for p in layer_opt.param_groups[0]["params"]]
    with pytest.raises(KeyboardInterrupt):
        layer_opt.step(interrupted_at(count, closure))
    after = layer_opt.param_groups[0]["params"]
    assert all(torch.equal(a, b) for a, b in zip(after, before, strict=True))
