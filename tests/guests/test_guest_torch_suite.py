"""What torch's own suite asks of every optimizer, on its own inputs (pattern of ``optim_db``)."""

from __future__ import annotations

import copy
import io
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import ReduceLROnPlateau, StepLR

from conftest import closure_for
from torch_wprox import FrobeniusProx, WassersteinProx

pytest.importorskip("expecttest")  # the internal module below needs it
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from torch.testing._internal.common_optimizers import (
        ErrorOptimizerInput,
        OptimizerErrorEnum,
        OptimizerInfo,
        OptimizerInput,
        get_error_inputs_for_all_optims,
    )

# A weight and a bias are no cloud; it is known here.
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore:no cloud of particles")]
CPU = torch.device("cpu")


def optim_inputs_func_prox(device: Any, dtype: Any = None) -> list[Any]:
    options: dict[str, dict[str, Any]] = {
        "default": {},
        "non-default gamma": {"gamma": 0.01},
        "non-default lr": {"lr": 0.01},
        "Tensor lr": {"lr": torch.tensor(0.01)},
        "weight_decay": {"weight_decay": 0.1},
        "gradient descent": {"solver": "gd"},
        "L-BFGS": {"solver": "lbfgs"},
        "few evaluations": {"max_eval": 3},
        "inexact": {"inexact": 0.1},
        "one process": {"process_group": None},
    }
    return [OptimizerInput(params=None, kwargs=k, desc=desc) for desc, k in options.items()]


def optim_error_inputs_func_prox(device: Any, dtype: Any) -> list[Any]:
    bad: list[tuple[dict[str, Any], str]] = [
        ({"gamma": -1.0}, "gamma must be > 0"),
        ({"lr": float("nan")}, "lr must be > 0"),
        ({"weight_decay": -0.1}, "weight_decay must be a finite number >= 0"),
        ({"max_eval": 0}, "max_eval must be an integer >= 1"),
        ({"tolerance_grad": -1.0}, "tolerance_grad must be a finite number >= 0"),
    ]
    return [
        *get_error_inputs_for_all_optims(device, dtype),
        *(
            ErrorOptimizerInput(
                OptimizerInput(params=None, kwargs=kwargs, desc=regex),
                error_type=ValueError,
                error_regex=regex,
            )
            for kwargs, regex in bad
        ),
    ]


PROX_DB = [
    OptimizerInfo(
        optimizer,
        optim_inputs_func=optim_inputs_func_prox,
        optim_error_inputs_func=optim_error_inputs_func_prox,
        scheduler_inputs=(
            [lambda opt: StepLR(opt, gamma=0.9, step_size=10)],
            [lambda opt: ReduceLROnPlateau(opt)],
        ),
        supported_impls=(),
        not_og_supported_flags=(),
        step_requires_closure=True,
        supports_multiple_devices=False,
    )
    for optimizer in (WassersteinProx, FrobeniusProx)
]
BOTH = pytest.mark.parametrize("info", PROX_DB, ids=lambda info: info.optim_cls.__name__)
CONFIGURED = pytest.mark.parametrize(
    ("info", "kwargs"),
    [
        pytest.param(info, given.kwargs, id=f"{info.optim_cls.__name__}-{given.desc}")
        for info in PROX_DB
        for given in info.optim_inputs_func(CPU)
    ],
)
ERRORS = [
    pytest.param(info, given, id=f"{info.optim_cls.__name__}-{given.optimizer_error_input.desc}")
    for info in PROX_DB
    for given in info.optim_error_inputs_func(CPU, torch.float32)
]


def regression(dtype: torch.dtype = torch.float32) -> tuple[nn.Parameter, nn.Parameter, Tensor]:
    """The fixture of torch's suite: a weight (10, 5), a bias (10,) and an input (5,)."""
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=dtype)

    return nn.Parameter(draw(10, 5)), nn.Parameter(draw(10)), draw(5)


def closure_of(opt: Any, weight: Tensor, bias: Tensor, inpt: Tensor) -> Callable[[], Tensor]:
    return closure_for(opt, lambda: (weight.mv(inpt) + bias).abs().pow(2).sum())


@pytest.mark.parametrize(("info", "error_input"), ERRORS)
def test_errors(info: Any, error_input: Any) -> None:
    given = error_input.optimizer_error_input
    params = given.params
    if params is None:
        params = [nn.Parameter(torch.randn(2, 3))]
    assert error_input.error_on is OptimizerErrorEnum.CONSTRUCTION_ERROR
    if issubclass(error_input.error_type, Warning):
        with pytest.warns(error_input.error_type, match=error_input.error_regex):
            info.optim_cls(params, **given.kwargs)
    else:
        with pytest.raises(error_input.error_type, match=error_input.error_regex):
            info.optim_cls(params, **given.kwargs)


@CONFIGURED
@pytest.mark.parametrize(
    ("contiguous", "scheduler"), [(True, None), (False, 0), (True, 1)], ids=str
)
def test_forloop_goes_right_direction(
    info: Any, kwargs: dict[str, Any], contiguous: bool, scheduler: int | None
) -> None:
    weight, bias, inpt = regression()
    if not contiguous:
        weight = nn.Parameter(torch.stack([weight.detach(), weight.detach()], dim=2)[..., 1])
        bias = nn.Parameter(torch.stack([bias.detach(), bias.detach()], dim=1)[:, 1])
        assert not weight.is_contiguous()
        assert not bias.is_contiguous()
    opt = info.optim_cls([weight, bias], **kwargs)
    makers = [] if scheduler is None else info.scheduler_inputs[scheduler]
    schedulers = [make(opt) for make in makers]
    closure = closure_of(opt, weight, bias, inpt)
    first = closure().item()
    opt.zero_grad()
    for _ in range(3):
        loss = opt.step(closure)
        for schedule in schedulers:
            schedule.step(*([loss] if isinstance(schedule, ReduceLROnPlateau) else []))
    assert closure().item() < first


@BOTH
@pytest.mark.parametrize("frozen", [0, 1])
def test_a_group_of_step_size_zero_stays(info: Any, frozen: int) -> None:
    weight, bias, inpt = regression()
    params = [weight, bias]
    groups: list[dict[str, Any]] = [{"params": [weight]}, {"params": [bias]}]
    groups[frozen]["lr"] = 0.0
    opt = info.optim_cls(groups, gamma=0.01)
    before = [p.detach().clone() for p in params]
    first = opt.step(closure_of(opt, weight, bias, inpt)).item()
    for _ in range(2):
        last = opt.step(closure_of(opt, weight, bias, inpt)).item()
    assert torch.equal(params[frozen], before[frozen])
    assert not torch.equal(params[1 - frozen], before[1 - frozen])
    assert last < first


@BOTH
def test_weight_decay_of_a_group_shrinks_it_alone(info: Any) -> None:
    # F has no gradient but a zero one: the prox of (decay/2)|v|^2 is v/(1 + gamma decay).
    a, b = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(3))
    opt = info.optim_cls([{"params": [a], "weight_decay": 0.5}, {"params": [b]}], gamma=1.0)

    closure = closure_for(opt, lambda: 0.0 * (a.sum() + b.sum()))
    opt.step(closure)
    assert torch.allclose(a, torch.full_like(a, 1 / 1.5))
    assert torch.equal(b, torch.ones(3))


@pytest.mark.filterwarnings("ignore:the closure never calls backward")
@CONFIGURED
def test_step_is_noop_when_params_have_no_grad(info: Any, kwargs: dict[str, Any]) -> None:
    params = [nn.Parameter(torch.randn(2, 3)) for _ in range(2)]
    before = [p.detach().clone() for p in params]
    opt = info.optim_cls(params, **kwargs)
    opt.step(lambda: torch.tensor([1.0]))
    assert all(torch.equal(p, q) for p, q in zip(params, before, strict=True))


@CONFIGURED
def test_step_is_noop_for_zero_grads(info: Any, kwargs: dict[str, Any]) -> None:
    if kwargs.get("weight_decay"):
        pytest.skip("weight decay has a gradient of its own")
    param = nn.Parameter(torch.randn(5, 1))
    before, opt = param.detach().clone(), info.optim_cls([param], **kwargs)

    def closure() -> Tensor:
        param.grad = torch.zeros_like(param)
        return torch.tensor([1.0])

    for _ in range(2):
        opt.step(closure)
    assert torch.equal(param, before)


@CONFIGURED
def test_grads_are_never_inplaced_into(info: Any, kwargs: dict[str, Any]) -> None:
    weight, bias, inpt = regression()
    opt = info.optim_cls([weight, bias], **kwargs)
    left: list[tuple[Tensor, int]] = []
    inner = closure_of(opt, weight, bias, inpt)

    def closure() -> Tensor:
        assert all(grad._version == version for grad, version in left)
        loss = inner()
        left.extend((p.grad, p.grad._version) for p in (weight, bias) if p.grad is not None)
        return loss

    for _ in range(2):
        opt.step(closure)
    assert all(grad._version == version for grad, version in left)


@CONFIGURED
def test_state_dict_deterministic(info: Any, kwargs: dict[str, Any]) -> None:
    weight, bias, inpt = regression()
    opt = info.optim_cls([weight, bias], **kwargs)
    for _ in range(3):
        opt.step(closure_of(opt, weight, bias, inpt))
    twins = copy.deepcopy([weight, bias])
    other = info.optim_cls(twins, **kwargs)
    other.load_state_dict(opt.state_dict())
    assert repr(opt.state_dict()) == repr(other.state_dict())
    for _ in range(3):
        opt.step(closure_of(opt, weight, bias, inpt))
        other.step(closure_of(other, *twins, inpt))
        assert torch.equal(weight, twins[0])
        assert torch.equal(bias, twins[1])
    assert repr(opt.state_dict()) == repr(other.state_dict())


@BOTH
@pytest.mark.parametrize("named", [(False, False), (True, False), (False, True), (True, True)])
def test_state_dicts_pass_between_named_and_bare_parameters(
    info: Any, named: tuple[bool, bool]
) -> None:
    weight, bias, inpt = regression()
    opts = []
    for with_names in named:
        params = [("weight", weight), ("bias", bias)] if with_names else [weight, bias]
        opts.append(info.optim_cls(params))
    opts[0].step(closure_of(opts[0], weight, bias, inpt))
    opts[1].load_state_dict(opts[0].state_dict())
    opts[1].zero_grad()  # what another optimizer left would count as accumulated
    opts[1].step(closure_of(opts[1], weight, bias, inpt))
    # As torch does: names come along; an optimizer that has them keeps them.
    assert ("param_names" in opts[1].param_groups[0]) == any(named)


@CONFIGURED
def test_save_load_equality_with_weights_only(info: Any, kwargs: dict[str, Any]) -> None:
    weight, bias, inpt = regression()
    opt = info.optim_cls([weight, bias], **kwargs)
    for _ in range(3):
        opt.step(closure_of(opt, weight, bias, inpt))
    with io.BytesIO() as file:
        torch.save(opt.state_dict(), file)
        file.seek(0)
        loaded = torch.load(file, weights_only=True)
    assert repr(loaded) == repr(opt.state_dict())


@BOTH
def test_can_load_older_state_dict(info: Any) -> None:
    weight, bias, inpt = regression()
    opt = info.optim_cls([weight, bias])
    opt.step(closure_of(opt, weight, bias, inpt))
    saved = copy.deepcopy(opt.state_dict())
    added = [k for k in saved["param_groups"][0] if k not in ("params", "lr")]
    for key in added:
        del saved["param_groups"][0][key]
    opt.load_state_dict(saved)
    opt.step(closure_of(opt, weight, bias, inpt))
    assert set(added) <= set(opt.param_groups[0])


@BOTH
def test_load_state_dict_refuses_other_groups(info: Any) -> None:
    weight, bias, _ = regression()
    saved = info.optim_cls([weight, bias]).state_dict()
    with pytest.raises(ValueError, match="different number of parameter groups"):
        info.optim_cls([{"params": [weight]}, {"params": [bias]}]).load_state_dict(saved)
    with pytest.raises(ValueError, match="doesn't match the size of optimizer's group"):
        info.optim_cls([weight]).load_state_dict(saved)


@CONFIGURED
def test_deepcopy_copies_all_public_attrs(info: Any, kwargs: dict[str, Any]) -> None:
    class Subclass(info.optim_cls):  # type: ignore[misc,name-defined]
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self.my_attribute = ["a value of the user's own"]

    param = nn.Parameter(torch.randn(2, 3))
    opt = Subclass([param], **kwargs)
    twin = copy.deepcopy(opt)

    def public(optimizer: Any) -> set[str]:
        return {k for k in optimizer.__dict__ if not k.startswith("_")}

    assert public(opt) == public(twin)
    assert twin.my_attribute == opt.my_attribute


@BOTH
def test_step_hooks_run_once_per_step(info: Any) -> None:
    weight, bias, inpt = regression()
    opt = info.optim_cls([weight, bias])
    seen: list[str] = []
    handles = [
        opt.register_step_pre_hook(lambda o, a, k: seen.append("pre")),
        opt.register_step_post_hook(lambda o, a, k: seen.append("post")),
    ]
    opt.step(closure_of(opt, weight, bias, inpt))
    assert seen == ["pre", "post"]
    for handle in handles:
        handle.remove()
    opt.step(closure_of(opt, weight, bias, inpt))
    assert seen == ["pre", "post"]


@BOTH
def test_state_dict_hooks_see_and_may_change_the_whole_state(info: Any) -> None:
    weight, bias, inpt = regression()
    opt = info.optim_cls([weight, bias])
    opt.step(closure_of(opt, weight, bias, inpt))
    seen: list[str] = []

    def post(optimizer: Optimizer, state: dict[str, Any]) -> None:
        state["note"] = "kept"

    def load_pre(optimizer: Optimizer, state: dict[str, Any]) -> None:
        seen.append(state.pop("note"))
        state["param_groups"][0]["lr"] = 0.125

    opt.register_state_dict_pre_hook(lambda o: seen.append("saving"))
    opt.register_state_dict_post_hook(post)
    opt.register_load_state_dict_pre_hook(load_pre)
    opt.register_load_state_dict_post_hook(lambda o: seen.append("loaded"))
    opt.load_state_dict(opt.state_dict())
    assert seen == ["saving", "kept", "loaded"]
    assert opt.param_groups[0]["lr"] == 0.125


@CONFIGURED
def test_complex_parameters_move_as_their_real_view(info: Any, kwargs: dict[str, Any]) -> None:
    values = torch.randn(4, 3, dtype=torch.complex128)
    z = nn.Parameter(values.clone())
    w = nn.Parameter(torch.view_as_real(values).reshape(4, 6).clone())
    ends = []
    for p in (z, w):
        opt = info.optim_cls([p], **kwargs)

        def closure(p: Tensor = p, opt: Any = opt) -> Tensor:
            opt.zero_grad()
            loss = (p.abs().square() + 0.1 * p.abs().square().square()).sum()
            if not p.is_complex():
                pairs = p.view(4, 3, 2).square().sum(-1)
                loss = (pairs + 0.1 * pairs.square()).sum()
            loss.backward()
            return loss

        for _ in range(2):
            opt.step(closure)
        real = torch.view_as_real(p.detach()) if p.is_complex() else p.detach()
        ends.append(real.reshape(4, 6))
    assert torch.allclose(ends[0], ends[1], rtol=0, atol=1e-9)


@BOTH
@pytest.mark.parametrize("shape", [(), (1,)])
def test_tensor_lr_of_one_element_is_read_at_every_step(info: Any, shape: tuple[int, ...]) -> None:
    weight, bias, inpt = regression()
    lr = torch.full(shape, 1e-3)
    opt = info.optim_cls([weight, bias], lr=lr)
    moved = []
    for _ in range(2):
        before = weight.detach().clone()
        opt.step(closure_of(opt, weight, bias, inpt))
        moved.append((weight.detach() - before).norm().item())
        lr.mul_(0.01)  # in place: it is the user's own tensor
    assert moved[1] < 0.1 * moved[0]


@BOTH
def test_param_group_with_a_tensor_and_an_iterator_are_taken(info: Any) -> None:
    weight, bias, inpt = regression()
    opt = info.optim_cls({"params": p} for p in (weight, bias))
    first = opt.step(closure_of(opt, weight, bias, inpt))
    assert [len(g["params"]) for g in opt.param_groups] == [1, 1]
    assert opt.step(closure_of(opt, weight, bias, inpt)) < first


@BOTH
def test_no_parameters_and_non_leaves_are_refused_as_by_torch(info: Any) -> None:
    with pytest.raises(ValueError, match="empty parameter list"):
        info.optim_cls([])
    with pytest.raises(ValueError, match="can't optimize a non-leaf Tensor"):
        info.optim_cls([torch.randn(2, 3, requires_grad=True) * 2])
    with pytest.raises(TypeError, match="optimizer can only optimize Tensors"):
        info.optim_cls(["weight"])


@BOTH
def test_repr_shows_the_options(info: Any) -> None:
    shown = repr(info.optim_cls([regression()[0]], gamma=0.25))
    assert shown.startswith(info.optim_cls.__name__)
    assert "lr: 0.25" in shown
