"""The frame of a step: what it refuses, what it warns of once, and the state it keeps."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from conftest import closure_for, label
from torch_wprox import EntropicJKO, FrobeniusProx, GridLayer, WassersteinProx

Made = tuple[Any, Tensor, Callable[[], Tensor]]


def proximal(**options: Any) -> Made:
    """A cloud of 6, its optimizer and a quadratic loss."""
    torch.manual_seed(0)
    w = nn.Parameter(torch.randn(6, 2))
    opt = WassersteinProx([w], **{"max_eval": 20, **options})
    return opt, w, lambda: (w - 1).square().sum()


def grid(**options: Any) -> Made:
    """A grid layer, its optimizer and a squared loss."""
    layer = GridLayer([torch.linspace(-1, 1, 3, dtype=torch.float64)] * 2, dtype=torch.float64)
    opt = EntropicJKO(layer, epsilon=2.0, **options)
    return opt, layer.weight, lambda: (layer(torch.ones(2, 1).double()) - 0.1).square().sum()


BOTH = pytest.mark.parametrize("make", [proximal, grid])


def taken_twice(opt: Any, closure: Callable[[], Tensor]) -> None:
    opt.step(closure)
    opt.step(closure)


@BOTH
@pytest.mark.parametrize("closure", [5, "loss", torch.tensor(1.0)])
def test_a_closure_that_cannot_be_called_is_refused(make: Any, closure: Any) -> None:
    opt, w, _ = make()
    before = w.detach().clone()
    with pytest.raises(TypeError, match=r"closure must be a function that returns the loss, got"):
        opt.step(closure)
    assert torch.equal(w, before)


@BOTH
def test_hooks_see_the_whole_state_the_optimizers_own_part_included(make: Any) -> None:
    opt, _, loss_of = make()
    opt.step(closure_for(opt, loss_of))
    plain = opt.state_dict()
    opt.register_state_dict_post_hook(lambda o, state: {"wrapped": state})
    wrapped = opt.state_dict()
    assert set(wrapped) == {"wrapped"}
    assert set(wrapped["wrapped"]) == set(plain)
    other, _, _ = make()
    other.register_load_state_dict_pre_hook(lambda o, state: state["wrapped"])
    other.load_state_dict(wrapped)
    assert repr(other.state_dict()) == repr(plain)


@BOTH
def test_a_refused_state_leaves_the_optimizer_as_it_was(make: Any) -> None:
    opt, _, loss_of = make()
    opt.step(closure_for(opt, loss_of))
    before = repr(opt.state_dict())
    for spoil in SPOILT.values():
        state = copy.deepcopy(opt.state_dict())
        spoil(state)
        with pytest.raises(ValueError, match=r"state|parameter groups|size of optimizer's group"):
            opt.load_state_dict(state)
        assert repr(opt.state_dict()) == before


def _section(state: dict[str, Any]) -> str:
    (section,) = set(state) - {"state", "param_groups"}
    return section


SPOILT: dict[str, Callable[[dict[str, Any]], Any]] = {
    "no groups": lambda s: s.pop("param_groups"),
    "groups are a number": lambda s: s.update(param_groups=5),
    "groups are names": lambda s: s.update(param_groups=["lr"]),
    "no parameters": lambda s: s["param_groups"][0].pop("params"),
    "no state": lambda s: s.pop("state"),
    "state is a list": lambda s: s.update(state=[]),
    "own part is a list": lambda s: s.update({_section(s): [1, 2]}),
    "step size is nan": lambda s: s["param_groups"][0].update(lr=math.nan),
    "step size is a word": lambda s: s["param_groups"][0].update(lr="large"),
    "step size has two elements": lambda s: s["param_groups"][0].update(lr=torch.ones(2)),
    "step size is negative": lambda s: s["param_groups"][0].update(lr=-1.0),
    "two groups": lambda s: s["param_groups"].append(dict(s["param_groups"][0])),
    "more parameters": lambda s: s["param_groups"][0].update(params=[0, 1]),
    "another optimizer's part": lambda s: s.update(swarm=s.pop(_section(s))),
}


@pytest.mark.parametrize("other", [torch.optim.Adam, torch.optim.SGD, torch.optim.LBFGS])
@BOTH
def test_a_step_size_of_another_optimizer_never_becomes_gamma(make: Any, other: Any) -> None:
    opt, w, loss_of = make()
    foreign = other([w], lr=1e-3)
    foreign.step(closure_for(foreign, loss_of))
    with pytest.raises(ValueError, match=r"saved by another optimizer than \w+ .*start this opt"):
        opt.load_state_dict(foreign.state_dict())
    assert opt.param_groups[0]["lr"] == 1.0


def test_states_do_not_pass_between_particles_and_grids() -> None:
    (particles, _, _), (cells, _, _) = proximal(), grid()
    with pytest.raises(ValueError, match="another optimizer than WassersteinProx"):
        particles.load_state_dict(cells.state_dict())
    with pytest.raises(ValueError, match="another optimizer than EntropicJKO"):
        cells.load_state_dict(particles.state_dict())


def test_a_state_cannot_turn_a_cloud_into_a_plain_block() -> None:
    w = nn.Parameter(torch.randn(6, 2))
    plain = WassersteinProx([{"params": [w], "layout": "plain"}])
    cloud = WassersteinProx([w])
    with pytest.raises(ValueError, match=r"layout='plain' in group 0.*layout='cloud'.*same groups"):
        cloud.load_state_dict(plain.state_dict())
    assert cloud.param_groups[0]["layout"] == "cloud"


@pytest.mark.parametrize(
    "own",
    [
        {"length": math.nan},
        {"length": -1.0},
        {"length": "long"},
        {"carried": [1]},
        {"carried": {"memory": [1], "loss": 1.0, "grad": torch.ones(12)}},
        {"carried": {"memory": {}, "loss": "small", "grad": torch.ones(12)}},
        {"distance_state": 5},
        {"distance_state": {"generator": torch.zeros(3)}},
    ],
    ids=label,
)
def test_a_corrupt_part_of_a_proximal_state_is_named(own: dict[str, Any]) -> None:
    opt, _, _ = proximal(distance="sliced", solver="gd")
    state = opt.state_dict()
    before = repr(state)
    with pytest.raises(ValueError, match=rf"the state is corrupt: .*{next(iter(own))}|distance_st"):
        opt.load_state_dict({**state, "prox": {**state["prox"], **own}})
    assert repr(opt.state_dict()) == before


@BOTH
def test_no_dictionary_is_no_state(make: Any) -> None:
    opt, _, _ = make()
    for nothing in (None, 5, [("lr", 1.0)]):
        with pytest.raises(TypeError, match=r"state_dict must be the dictionary that \w+\.state_"):
            opt.load_state_dict(nothing)


# --- what a closure does to gradients, shapes and numbers ---------------------------------------


def _never_calls_backward(opt: Any, w: Tensor, loss: Tensor) -> None:
    opt.zero_grad()


def _clears_after_backward(opt: Any, w: Tensor, loss: Tensor) -> None:
    loss.backward()
    opt.zero_grad()


def _zeroes_after_backward(opt: Any, w: Tensor, loss: Tensor) -> None:
    loss.backward()
    opt.zero_grad(set_to_none=False)


@BOTH
@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (_never_calls_backward, r"never calls backward\(\).*nothing moves"),
        (_clears_after_backward, r"clears the gradients after backward\(\).*nothing moves"),
        (_zeroes_after_backward, r"to zero after backward\(\), so nothing moves"),
    ],
)
def test_a_closure_that_leaves_no_gradient_is_told_so_once(
    make: Any, spoil: Callable[[Any, Tensor, Tensor], None], message: str
) -> None:
    opt, w, loss_of = make()

    def closure() -> Tensor:
        loss = loss_of()
        spoil(opt, w, loss)
        return loss

    with pytest.warns(UserWarning, match=message) as seen:
        taken_twice(opt, closure)
    assert len(seen) == 1
    assert seen[0].filename == __file__  # at the user's line


@BOTH
@pytest.mark.parametrize(
    "change",
    [
        lambda w: nn.utils.clip_grad_norm_([w], 1e-3),
        lambda w: nn.utils.clip_grad_value_([w], 1e-3),
        lambda w: w.grad.mul_(2.0),
        lambda w: setattr(w, "grad", w.grad.clone()),
    ],
    ids=["norm clipped", "values clipped", "scaled in place", "replaced"],
)
def test_gradients_changed_after_backward_are_told_once(make: Any, change: Any) -> None:
    opt, w, loss_of = make()

    def closure() -> Tensor:
        opt.zero_grad()
        loss = loss_of()
        loss.backward()
        if w.grad is not None:  # where the output is given to a layer its weights have none
            change(w)
        return loss

    with pytest.warns(UserWarning, match=r"changes the gradients .*gradient_clip_val") as seen:
        taken_twice(opt, closure)
    assert len(seen) == 1


def test_two_calls_of_backward_in_one_closure_are_fine() -> None:
    opt, w, _ = proximal()

    def closure() -> Tensor:
        opt.zero_grad()
        losses = [(w - 1).square().sum(), w.square().sum()]
        for loss in losses:
            loss.backward()
        return losses[0] + losses[1]

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        opt.step(closure)
    assert opt.report.loss_after < opt.report.loss_before


@BOTH
def test_a_minimum_is_no_missing_gradient(make: Any) -> None:
    opt, _, loss_of = make()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        opt.step(closure_for(opt, lambda: 0.0 * loss_of()))


@pytest.mark.parametrize(
    "replaced", [torch.zeros(3, 2), torch.zeros(6, 2, dtype=torch.float64)], ids=["shape", "dtype"]
)
def test_a_parameter_replaced_inside_the_closure_is_refused_and_restored(replaced: Tensor) -> None:
    opt, w, loss_of = proximal()
    before = w.detach().clone()

    def closure() -> Tensor:
        loss = closure_for(opt, loss_of)()
        w.data = replaced
        return loss

    with pytest.raises(RuntimeError, match=r"another shape or dtype: .* make the optimizer again"):
        opt.step(closure)
    assert w.dtype == before.dtype
    assert torch.equal(w, before)


def test_a_complex_loss_is_refused_with_the_remedy() -> None:
    opt, _, loss_of = proximal()

    def closure() -> Tensor:
        return closure_for(opt, loss_of)() * 1j

    with pytest.raises(RuntimeError, match=r"real loss, got torch.complex64: take its \.real part"):
        opt.step(closure)


# --- arguments ----------------------------------------------------------------------------------


@pytest.mark.parametrize("group", [5, 5.0, [], object])
@BOTH
def test_a_process_group_is_a_group(make: Any, group: Any) -> None:
    with pytest.raises(ValueError, match='process_group must be "auto", None or a group, got'):
        make(process_group=group)


@pytest.mark.parametrize("cls", [WassersteinProx, FrobeniusProx])
@pytest.mark.parametrize(
    ("written", "message"),
    [
        ({"weight_decay": -1}, "weight_decay must be a finite number >= 0, got -1"),
        ({"weight_decay": math.nan}, "weight_decay must be a finite number >= 0, got nan"),
        ({"weight_decay": "x"}, "weight_decay must be a finite number >= 0, got 'x'"),
        ({"lr": math.nan}, r"lr.*must be > 0 .*got nan"),
        ({"lr": None}, r"lr.*must be a number >= 0, got None"),
        ({"lr": torch.ones(2)}, r"lr.*must be 1-element, got shape \(2,\)"),
    ],
)
def test_what_is_written_into_a_group_is_checked_at_the_step(
    cls: Any, written: dict[str, Any], message: str
) -> None:
    w = nn.Parameter(torch.ones(3, 2))
    opt = cls([w])
    opt.param_groups[0].update(written)
    with pytest.raises((TypeError, ValueError), match=message):
        opt.step(closure_for(opt, lambda: w.square().sum()))
    assert torch.equal(w, torch.ones(3, 2))


@pytest.mark.parametrize(
    ("group", "message"),
    [
        ({"gamma": math.nan}, "gamma must be > 0 .*got nan"),
        ({"gamma": torch.ones(2)}, r"gamma must be 1-element, got shape \(2,\)"),
        ({"gamma": "x"}, "gamma must be a number >= 0, got 'x'"),
        ({"gamma": 1.0, "lr": 2.0}, "gamma=1.0 and lr=2.0"),
        ({"weight_decay": "x"}, "weight_decay must be a finite number >= 0, got 'x'"),
    ],
)
def test_a_groups_own_options_are_checked(group: dict[str, Any], message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        WassersteinProx([{"params": [nn.Parameter(torch.ones(3, 2))], **group}])
