"""A good torch.optim.Optimizer: closures, failures, state, schedulers, odd parameters."""

from __future__ import annotations

import copy
import inspect
import io
import json
import pickle
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from conftest import closure_for, closure_of, sinus_data, sinus_layer
from torch_wprox import FrobeniusProx, Status, WassersteinProx

BOTH = [WassersteinProx, FrobeniusProx]


def quadratic(w: nn.Parameter, opt: torch.optim.Optimizer) -> Callable[[], Tensor]:
    return closure_for(opt, lambda: w.square().sum() / 2)


def parameter(m: int = 3, D: int = 2, **kwargs: Any) -> nn.Parameter:
    generator = torch.Generator().manual_seed(0)
    return nn.Parameter(torch.randn(m, D, generator=generator, **kwargs))


# --- closures -------------------------------------------------------------------------------


@pytest.mark.parametrize("optimizer", BOTH)
def test_a_missing_closure_is_named_with_its_four_lines(optimizer: type) -> None:
    opt = optimizer([parameter()])
    with pytest.raises(RuntimeError, match=r"(?s)closure.*zero_grad.*backward.*bf16-mixed"):
        opt.step()


def test_a_closure_that_returns_none_is_named_and_moves_nothing() -> None:
    w = parameter()
    before, opt = w.detach().clone(), WassersteinProx([w])
    with pytest.raises(RuntimeError, match="closure returned None"):
        opt.step(lambda: quadratic(w, opt)() and None)
    assert torch.equal(w, before)


def test_a_closure_that_returns_a_vector_is_told_to_reduce() -> None:
    w = parameter()
    opt = WassersteinProx([w])
    with pytest.raises(RuntimeError, match=r"shape \(2,\): reduce the loss"):
        opt.step(lambda: torch.ones(2))


@pytest.mark.parametrize(
    "kind", [lambda loss: loss.item(), lambda loss: loss, lambda loss: loss.reshape(1, 1)]
)
def test_floats_and_forgotten_zero_grad_make_the_same_step(kind: Callable[[Tensor], Any]) -> None:
    w, reference = parameter(), parameter()
    opt, other = WassersteinProx([w]), WassersteinProx([reference])

    def closure() -> Any:  # neither zeroes gradients nor returns what torch expects
        loss = w.square().sum() / 2
        loss.backward()
        return kind(loss)

    first = opt.step(closure)
    expected = other.step(quadratic(reference, other))
    assert float(first) == pytest.approx(expected.item(), rel=1e-7)
    assert torch.allclose(w, reference, atol=1e-6)


def test_step_returns_the_first_loss_detached() -> None:
    w = parameter()
    opt, before = FrobeniusProx([w]), w.detach().square().sum() / 2
    loss = opt.step(quadratic(w, opt))
    assert torch.equal(loss, before)
    assert not loss.requires_grad


@pytest.mark.parametrize("optimizer", BOTH)
def test_gradients_from_before_the_step_warn_once_and_name_accumulation(optimizer: type) -> None:
    w = parameter()
    opt = optimizer([w])
    closure = quadratic(w, opt)
    closure()
    w.grad.mul_(2)
    with pytest.warns(UserWarning, match="accumulate_grad_batches"):
        opt.step(closure)
    w.grad = torch.ones_like(w)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        opt.step(closure)


def test_the_gradients_that_a_step_leaves_and_zeros_are_no_accumulation() -> None:
    w = parameter()
    opt = WassersteinProx([w])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        opt.step(quadratic(w, opt))
        opt.step(quadratic(w, opt))
        opt.zero_grad(set_to_none=False)
        opt.step(quadratic(w, opt))
        w.grad = torch.zeros_like(w)
        opt.step(quadratic(w, opt))


# --- failures -------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_nonfinite_anchor_moves_nothing_and_says_so(bad: float) -> None:
    w = parameter()
    before, opt = w.detach().clone(), WassersteinProx([w])

    def closure() -> Tensor:
        loss = w.sum() * bad
        loss.backward()
        return loss

    with pytest.warns(UserWarning, match="not finite"):
        opt.step(closure)
    assert opt.report.status is Status.NONFINITE
    assert torch.equal(w, before)


@pytest.mark.parametrize("optimizer", BOTH)
@pytest.mark.parametrize("at", range(2, 9))
def test_nan_at_any_trial_point_is_rejected(optimizer: type, at: int) -> None:
    x, y = sinus_data()
    layer = sinus_layer()
    opt = optimizer(layer.parameters(), gamma=1.0, max_eval=10)
    calls = 0

    def closure() -> Tensor:
        nonlocal calls
        calls += 1
        loss = closure_of(layer, opt, x, y)()
        return loss * float("nan") if calls == at else loss

    opt.step(closure)
    assert layer.particles.isfinite().all()
    assert opt.report.objective <= opt.report.loss_before


class Interrupt(BaseException):
    pass


@pytest.mark.parametrize("optimizer", BOTH)
@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, Interrupt])
@pytest.mark.parametrize("at", [1, 2, 5])
def test_an_exception_restores_the_anchor_and_goes_on(
    optimizer: type, error: type[BaseException], at: int
) -> None:
    x, y = sinus_data()
    layer = sinus_layer()
    opt = optimizer(layer.parameters(), gamma=1.0)
    opt.step(closure_of(layer, opt, x, y))
    before, state = layer.particles.detach().clone(), copy.deepcopy(opt.state_dict())
    calls = 0

    def closure() -> Tensor:
        nonlocal calls
        calls += 1
        if calls == at:
            raise error("stop")
        return closure_of(layer, opt, x, y)()

    with pytest.raises(error, match="stop"):
        opt.step(closure)
    assert torch.equal(layer.particles, before)
    assert_same(opt.state_dict(), state)


# --- randomness -----------------------------------------------------------------------------


@pytest.mark.parametrize("optimizer", BOTH)
def test_dropout_is_replayed_and_the_generator_is_left_where_one_evaluation_leaves_it(
    optimizer: type,
) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 16), nn.ReLU(), nn.Dropout(0.5), nn.Linear(16, 1))
    x, y = torch.randn(8, 3), torch.randn(8, 1)
    opt = optimizer(net.parameters(), max_eval=20)
    losses = []

    def closure() -> Tensor:
        loss = closure_of(net, opt, x, y)()
        losses.append(loss.item())
        return loss

    torch.manual_seed(7)
    net(x)
    expected = torch.rand(3)
    torch.manual_seed(7)
    opt.step(closure)
    assert torch.equal(torch.rand(3), expected)
    # One function: the accepted point is evaluated again to the same loss, and P never rises.
    assert losses[-1] == pytest.approx(opt.report.loss_after, rel=1e-6)
    assert opt.report.objective <= losses[0]


# --- state ----------------------------------------------------------------------------------


def assert_same(a: Any, b: Any) -> None:
    assert type(a) is type(b)
    if isinstance(a, dict):
        assert a.keys() == b.keys()
        for key in a:
            assert_same(a[key], b[key])
    elif isinstance(a, Tensor):
        assert a.dtype == b.dtype
        assert torch.equal(a, b)
    elif isinstance(a, list | tuple):
        assert len(a) == len(b)
        for x, y in zip(a, b, strict=True):
            assert_same(x, y)
    else:
        assert a == b


@pytest.mark.parametrize("optimizer", BOTH)
@pytest.mark.parametrize("solver", ["auto", "gd"])
def test_resuming_from_a_checkpoint_is_bit_exact(optimizer: type, solver: str) -> None:
    x, y = sinus_data()

    def fresh() -> tuple[nn.Module, Any]:
        layer = sinus_layer()
        return layer, optimizer(layer.parameters(), gamma=1.0, solver=solver, max_eval=40)

    layer, opt = fresh()
    for _ in range(3):
        opt.step(closure_of(layer, opt, x, y))
    file = io.BytesIO()
    torch.save({"model": layer.state_dict(), "optimizer": opt.state_dict()}, file)
    for _ in range(3):
        opt.step(closure_of(layer, opt, x, y))

    file.seek(0)
    saved = torch.load(file, weights_only=True)
    resumed, again = fresh()
    resumed.load_state_dict(saved["model"])
    again.load_state_dict(saved["optimizer"])
    assert_same(again.state_dict(), saved["optimizer"])
    for _ in range(3):
        again.step(closure_of(resumed, again, x, y))
    assert torch.equal(resumed.particles, layer.particles)
    assert_same(again.state_dict(), opt.state_dict())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_loading_keeps_the_dtype_of_every_state_tensor(dtype: torch.dtype) -> None:
    w = parameter(dtype=dtype)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # steps below bf16's resolution are lost: said elsewhere
        opt = WassersteinProx([w])
        opt.step(quadratic(w, opt))
    saved = copy.deepcopy(opt.state_dict())
    opt.load_state_dict(saved)
    assert_same(opt.state_dict(), saved)


@pytest.mark.parametrize("copy_of", [copy.deepcopy, lambda pair: pickle.loads(pickle.dumps(pair))])
def test_deepcopy_and_pickle_keep_everything(copy_of: Callable[[Any], Any]) -> None:
    x, y = sinus_data()
    layer = sinus_layer()
    opt = WassersteinProx(layer.parameters(), gamma=0.5, max_eval=30)
    opt.step(closure_of(layer, opt, x, y))
    twin, twins = copy_of((layer, opt))
    assert twins.report.objective == opt.report.objective
    for _ in range(2):
        opt.step(closure_of(layer, opt, x, y))
        twins.step(closure_of(twin, twins, x, y))
    assert torch.equal(layer.particles, twin.particles)


def test_loading_into_another_distance_or_solver_names_both() -> None:
    w = parameter()
    saved = WassersteinProx([w], solver="gd").state_dict()
    with pytest.raises(ValueError, match=r"distance='emd'.*distance='frobenius'"):
        FrobeniusProx([w], solver="gd").load_state_dict(saved)
    saved["prox"]["solver"] = "elsewhere"
    with pytest.raises(ValueError, match=r"solver='elsewhere'.*solver='gd'"):
        WassersteinProx([w], solver="gd").load_state_dict(saved)


def test_options_missing_in_an_older_state_are_filled_in() -> None:
    w = parameter()
    opt = WassersteinProx([w], weight_decay=0.25)
    saved = opt.state_dict()
    del saved["prox"]
    for group in saved["param_groups"]:
        del group["weight_decay"], group["layout"]
    opt.load_state_dict(saved)
    assert opt.param_groups[0]["weight_decay"] == 0.25
    assert opt.param_groups[0]["layout"] == "cloud"


def test_param_groups_hold_plain_values_only() -> None:
    opt = WassersteinProx([parameter()], classes=torch.tensor([0, 1, 1]))
    kept = {k: v for k, v in opt.param_groups[0].items() if k != "params"}
    assert all(isinstance(v, int | float | str) for v in kept.values()), kept


# --- step sizes -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kwargs", "expected"),
    [
        ({}, 1.0),
        ({"gamma": 0.3}, 0.3),
        ({"lr": 0.3}, 0.3),
        ({"gamma": 1.0, "lr": 0.01}, 1.0),
        ({"gamma": 2, "lr": 0.01}, 2.0),
    ],
)
@pytest.mark.parametrize("optimizer", BOTH)
def test_gamma_wins_over_lr(optimizer: type, kwargs: dict[str, float], expected: float) -> None:
    assert optimizer([parameter()], **kwargs).param_groups[0]["lr"] == expected


@pytest.mark.parametrize("optimizer", BOTH)
def test_defaults_survive_a_configuration_file(optimizer: type) -> None:
    # A tool that writes all arguments and reads them back must not turn "not given" into "given".
    arguments = inspect.signature(optimizer).parameters
    written = {k: v.default for k, v in arguments.items() if k != "params"}
    read = json.loads(json.dumps(written))
    assert read == written
    assert optimizer([parameter()], **{**read, "lr": 0.3}).param_groups[0]["lr"] == 0.3
    assert optimizer([parameter()], **read).param_groups[0]["lr"] == 1.0


def test_gamma_and_lr_in_one_group_must_agree() -> None:
    opt = WassersteinProx([{"params": [parameter()], "gamma": 2.0, "lr": 2.0}])
    assert opt.param_groups[0]["lr"] == 2.0
    with pytest.raises(ValueError, match=r"gamma=2.0 and lr=3.0"):
        opt.add_param_group({"params": [parameter()], "gamma": 2.0, "lr": 3.0})
    assert len(opt.param_groups) == 1


def test_a_later_write_to_gamma_says_to_write_lr() -> None:
    w = parameter()
    opt = WassersteinProx([w])
    opt.param_groups[0]["gamma"] = 3.0
    with pytest.raises(ValueError, match=r'group\["lr"\]'):
        opt.step(quadratic(w, opt))


@pytest.mark.parametrize(
    "make",
    [
        lambda o: torch.optim.lr_scheduler.StepLR(o, 1, 0.5),
        lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, 5),
        lambda o: torch.optim.lr_scheduler.OneCycleLR(o, 1.0, total_steps=5, cycle_momentum=False),
    ],
)
def test_schedulers_change_gamma(make: Callable[[Any], Any]) -> None:
    w = parameter()
    opt = FrobeniusProx([w], gamma=1.0)
    scheduler = make(opt)
    for _ in range(3):
        gamma, before = opt.param_groups[0]["lr"], w.detach().clone()
        opt.step(quadratic(w, opt))
        assert torch.allclose(w, before / (1 + 3 * gamma), atol=1e-5)
        scheduler.step()
    assert opt.param_groups[0]["lr"] != 1.0


def test_a_tensor_step_size_works() -> None:
    w = parameter()
    before, opt = w.detach().clone(), FrobeniusProx([w], lr=torch.tensor(0.5))
    opt.step(quadratic(w, opt))
    assert torch.allclose(w, before / 2.5, atol=1e-6)


@pytest.mark.parametrize("optimizer", BOTH)
def test_gamma_zero_evaluates_once_and_does_not_move(optimizer: type) -> None:
    w = parameter()
    before, opt = w.detach().clone(), optimizer([w], gamma=0.0)
    loss = opt.step(quadratic(w, opt))
    assert torch.equal(w, before)
    assert torch.equal(loss, before.square().sum() / 2)
    assert (opt.report.status, opt.report.evaluations) == (Status.NO_MOVE, 1)


@pytest.mark.parametrize("optimizer", BOTH)
@pytest.mark.parametrize("max_eval", [1, 2, 3, 7])
def test_the_last_of_at_most_max_eval_evaluations_is_at_the_accepted_parameters(
    optimizer: type, max_eval: int
) -> None:
    x, y = sinus_data()
    layer = sinus_layer()
    opt = optimizer(layer.parameters(), max_eval=max_eval)
    before, seen = layer.particles.detach().clone(), []
    inner = closure_of(layer, opt, x, y)

    def closure() -> Tensor:
        seen.append(layer.particles.detach().clone())
        return inner()

    opt.step(closure)
    assert len(seen) == opt.report.evaluations <= max_eval
    assert torch.equal(seen[-1], layer.particles)
    if max_eval == 1:
        assert torch.equal(layer.particles, before)
        assert opt.report.status is Status.NO_MOVE
    left = layer.particles.grad.clone()
    inner()
    assert torch.equal(layer.particles.grad, left)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"gamma": -1.0}, r"gamma must be > 0 \(or 0: no move\), got -1.0"),
        ({"gamma": float("nan")}, "gamma must be > 0"),
        ({"gamma": float("inf")}, "gamma must be > 0"),
        ({"lr": -2.0}, "lr must be > 0"),
        ({"weight_decay": -1.0}, "weight_decay must be a finite number >= 0, got -1.0"),
        ({"max_eval": 0}, "max_eval must be an integer >= 1, got 0"),
        ({"max_eval": 2.5}, "max_eval must be an integer >= 1, got 2.5"),
        ({"tolerance_grad": -1.0}, "tolerance_grad must be a finite number >= 0, got -1.0"),
        ({"inexact": 1.0}, r"inexact must be in \[0, 1\)"),
        ({"distance": "w2"}, "distance must be one of .*'emd'"),
        ({"solver": "newton"}, "solver must be one of .*'auto'"),
        ({"classes": "signs"}, "classes must be 'sign', None or integer labels"),
        ({"classes": torch.tensor([0, 1])}, r"integer labels of shape \(3,\)"),
        ({"classes": torch.rand(3)}, "integer labels"),
        ({"process_group": "all"}, 'process_group must be "auto", None or a group'),
    ],
)
def test_a_bad_option_names_the_argument_the_value_and_the_remedy(
    kwargs: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        WassersteinProx([parameter()], **kwargs)


def test_a_step_size_that_is_no_number_is_a_type_error() -> None:
    with pytest.raises(TypeError, match="gamma must be a number"):
        WassersteinProx([parameter()], gamma="fast")  # type: ignore[arg-type]


# --- odd parameters -------------------------------------------------------------------------


def test_frozen_groups_empty_tensors_and_missing_gradients_stay_as_they_are() -> None:
    w, frozen, unused, empty = parameter(), parameter(), parameter(), nn.Parameter(torch.empty(0))
    frozen.requires_grad_(False)
    opt = WassersteinProx([{"params": [p]} for p in (w, frozen, unused, empty)])
    before = [p.detach().clone() for p in (w, frozen, unused)]
    opt.step(quadratic(w, opt))
    assert not torch.equal(w, before[0])
    assert torch.equal(frozen, before[1])
    assert torch.equal(unused, before[2])


@pytest.mark.parametrize("optimizer", BOTH)
def test_complex_and_noncontiguous_parameters_take_the_step_of_their_real_view(
    optimizer: type,
) -> None:
    values = torch.randn(3, 4)
    w = nn.Parameter(values.t().clone().t())
    z = nn.Parameter(torch.view_as_complex(values.view(3, 2, 2)).clone())
    ends = []
    for p in (w, z):
        opt = optimizer([p], gamma=0.5)
        opt.step(closure_for(opt, lambda p=p: p.abs().square().sum() / 2))
        real = torch.view_as_real(p.detach()) if p.is_complex() else p.detach()
        ends.append(real.reshape(3, 4))
    assert torch.allclose(ends[0], values / 2.5, atol=1e-6)
    assert torch.allclose(ends[1], ends[0], atol=1e-6)


def test_sparse_gradients_are_refused_with_the_remedy() -> None:
    table = nn.Embedding(5, 2, sparse=True)
    opt = FrobeniusProx(table.parameters())

    def closure() -> Tensor:
        loss = table(torch.tensor([1, 2])).square().sum()
        loss.backward()
        return loss

    before = table.weight.detach().clone()
    with pytest.raises(RuntimeError, match="sparse=False"):
        opt.step(closure)
    assert torch.equal(table.weight, before)


def test_parameters_without_a_cloud_warn_once_and_name_particle_groups() -> None:
    net = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 1))
    with pytest.warns(UserWarning, match="particle_groups"):
        WassersteinProx(net.parameters())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        FrobeniusProx(net.parameters())


def test_named_parameters_are_taken() -> None:
    net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 1))
    opt = WassersteinProx(net.named_parameters())
    assert opt.param_groups[0]["layout"] == "pair"
    assert opt.param_groups[0]["param_names"][0] == "0.weight"
