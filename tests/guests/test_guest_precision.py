"""Types of weights and of arithmetic: bfloat16, float16, float64, autocast; sharded tensors."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from conftest import closure_for, closure_of, sinus_data, sinus_layer
from torch_wprox import FrobeniusProx, Sinkhorn, WassersteinProx

pytestmark = pytest.mark.slow

BOTH = [WassersteinProx, FrobeniusProx]
QUICK = Sinkhorn(blur=0.3, scaling=0.5)
ALL = [*BOTH, *(partial(WassersteinProx, distance=d) for d in (QUICK, "sliced"))]
ALL += [partial(WassersteinProx, solver="adam")]
NAMES = ["emd", "frobenius", "sinkhorn", "sliced", "adam"]
COARSE = [torch.bfloat16, torch.float16]


def problem(dtype: torch.dtype) -> tuple[nn.Module, Tensor, Tensor]:
    x, y = sinus_data()
    return sinus_layer(m=10, scale=1.0).to(dtype), x.to(dtype), y.to(dtype)


def quietly_stepped(optimizer: Any, *args: Any) -> None:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "parameters are torch.b?float16")
        optimizer.step(closure_of(*args))


# --- coarse weights -------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", COARSE)
@pytest.mark.parametrize("optimizer", BOTH)
def test_coarse_weights_warn_once_and_name_bf16_mixed(optimizer: type, dtype: torch.dtype) -> None:
    layer, x, y = problem(dtype)
    opt = optimizer(layer.parameters(), gamma=1e-3, max_eval=5)
    closure = closure_of(layer, opt, x, y)
    with pytest.warns(UserWarning, match=r"torch\.b?float16.*bf16-mixed") as caught:
        opt.step(closure)
    assert len(caught) == 1
    assert caught[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        opt.step(closure)


def test_a_model_made_coarse_after_the_optimizer_warns_too() -> None:
    layer, x, y = problem(torch.float32)
    opt = WassersteinProx(layer.parameters(), max_eval=5)
    layer.to(torch.bfloat16)  # in place, as Fabric does in setup
    with pytest.warns(UserWarning, match="bf16-mixed"):
        opt.step(closure_of(layer, opt, x.bfloat16(), y.bfloat16()))


@pytest.mark.parametrize("optimizer", BOTH)
def test_moves_below_the_resolution_are_lost_in_bfloat16_and_kept_by_autocast(
    optimizer: type,
) -> None:
    moved = {}
    for dtype in (torch.bfloat16, torch.float32):
        layer, x, y = problem(dtype)
        before = layer.particles.detach().clone()
        opt = optimizer(layer.parameters(), gamma=1e-4, solver="gd", max_eval=10)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "parameters are torch.b?float16")
            opt.step(mixed(layer, opt, x, y))
        has_gradient = layer.particles.grad != 0  # a dead neuron has none
        moved[dtype] = ((layer.particles != before) & has_gradient).sum() / has_gradient.sum()
    assert moved[torch.float32] == 1
    assert moved[torch.bfloat16] == 0


@pytest.mark.parametrize("dtype", COARSE)
@pytest.mark.parametrize("optimizer", ALL, ids=NAMES)
def test_steps_in_coarse_weights_are_finite_and_lower_the_loss(
    optimizer: Any, dtype: torch.dtype
) -> None:
    layer, x, y = problem(dtype)
    opt = optimizer(layer.parameters(), gamma=0.1, max_eval=30)
    losses = []
    for _ in range(5):
        quietly_stepped(opt, layer, opt, x, y)
        losses += [opt.report.loss_before, opt.report.loss_after]
    assert layer.particles.dtype == dtype
    assert layer.particles.isfinite().all()
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < 0.5 * losses[0]


@pytest.mark.parametrize("optimizer", BOTH)
def test_a_step_in_bfloat16_is_the_float32_step_rounded(optimizer: type) -> None:
    # A quadratic whose gradient w has no rounding: the prox is w / (1 + m gamma).
    w = nn.Parameter(torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, -6.0]], dtype=torch.bfloat16))
    start = w.detach().float()
    opt = optimizer([w], gamma=1.0)

    closure = closure_for(opt, lambda: w.float().square().sum() / 2)
    with pytest.warns(UserWarning, match="bf16-mixed"):
        opt.step(closure)
    assert opt.report.objective == pytest.approx(
        w.detach().float().square().sum().item() / 2
        + (w.detach().float() - start).square().sum().item() / (2 * 3),
        rel=1e-6,  # float32: what is reported is P at the weights as they are stored
    )
    # |V| is found to the rounding of the gradient, eps/2; storing it costs as much again.
    assert torch.allclose(w.float(), start / 4, rtol=2 * torch.finfo(torch.bfloat16).eps)


# --- autocast -------------------------------------------------------------------------------


def mixed(model: nn.Module, opt: Any, x: Tensor, y: Tensor) -> Any:
    def closure() -> Tensor:
        opt.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            loss = (model(x) - y).square().mean()
        loss.backward()
        return loss

    return closure


def network() -> tuple[nn.Module, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    net = nn.Sequential(nn.Linear(1, 16), nn.Tanh(), nn.Linear(16, 1))
    with torch.no_grad():
        for p in net.parameters():
            p.copy_(torch.randn(p.shape, generator=generator))
    x, y = sinus_data()
    return net, x.float(), y.float()


@pytest.mark.parametrize("optimizer", BOTH)
def test_autocast_around_the_step_is_autocast_inside_the_closure(optimizer: type) -> None:
    ends = []
    for outside in (False, True):
        net, x, y = network()
        opt = optimizer(net.parameters(), gamma=0.1, max_eval=30)
        for _ in range(3):
            if outside:
                with torch.autocast("cpu", torch.bfloat16):
                    opt.step(mixed(net, opt, x, y))
                    assert torch.is_autocast_enabled("cpu")
            else:
                opt.step(mixed(net, opt, x, y))
        ends.append(torch.cat([p.detach().reshape(-1) for p in net.parameters()]))
    assert torch.equal(ends[0], ends[1])


def test_the_closure_runs_under_the_callers_autocast() -> None:
    net, x, y = network()
    opt = WassersteinProx(net.parameters(), max_eval=5)
    seen = set()

    def closure() -> Tensor:
        opt.zero_grad()
        output = net(x)
        seen.add(output.dtype)
        loss = (output - y).square().mean()
        loss.backward()
        return loss

    with torch.autocast("cpu", torch.bfloat16):
        opt.step(closure)
    assert seen == {torch.bfloat16}


# --- float64 --------------------------------------------------------------------------------


@pytest.mark.parametrize("optimizer", ALL, ids=NAMES)
def test_no_arithmetic_leaves_the_type_of_the_weights(optimizer: Any) -> None:
    for dtype in (torch.float32, torch.float64):
        layer, x, y = problem(dtype)
        before = layer.particles.detach().clone()
        opt = optimizer(layer.parameters(), gamma=0.1, max_eval=30)
        opt.step(closure_of(layer, opt, x, y))
        assert layer.particles.dtype == dtype
        assert opt.report.objective < opt.report.loss_before
        moved = (layer.particles - before)[layer.particles.grad != 0]
        # A path through float32 would leave the difference with its 24 bits.
        assert torch.equal(moved.float().double(), moved.double()) == (dtype == torch.float32)


@pytest.mark.parametrize("optimizer", BOTH)
def test_float64_weights_are_moved_in_float64(optimizer: type) -> None:
    w = nn.Parameter(torch.randn(3, 2, dtype=torch.float64))
    start, opt = w.detach().clone(), optimizer([w], gamma=1.0, tolerance_grad=1e-13)

    closure = closure_for(opt, lambda: w.square().sum() / 2)
    opt.step(closure)
    assert torch.allclose(w, start / 4, rtol=1e-12, atol=0)


def test_a_group_of_mixed_types_computes_in_the_widest() -> None:
    a = nn.Parameter(torch.ones(3, dtype=torch.float64))
    b = nn.Parameter(torch.ones(2, dtype=torch.float32))
    opt = FrobeniusProx([a, b], gamma=1.0, tolerance_grad=1e-13)

    closure = closure_for(opt, lambda: (a.square().sum() + b.double().square().sum()) / 2)
    opt.step(closure)
    assert torch.allclose(a, torch.full_like(a, 0.5), rtol=1e-9)
    assert torch.allclose(b, torch.full_like(b, 0.5), rtol=1e-6)


# --- sharded parameters ---------------------------------------------------------------------


@pytest.fixture(scope="module")
def one_process_group(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    store = tmp_path_factory.mktemp("group") / "store"
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.usefixtures("one_process_group")
@pytest.mark.parametrize("optimizer", BOTH)
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
def test_dtensor_is_refused_with_the_remedy(optimizer: type) -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    net, _, _ = network()
    fully_shard(net, mesh=init_device_mesh("cpu", (1,)))
    with pytest.raises(TypeError, match=r"DTensor.*FSDP2.*DistributedDataParallel"):
        optimizer(net.parameters())


@pytest.mark.usefixtures("one_process_group")
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
def test_parameters_sharded_after_the_optimizer_are_refused_at_the_step() -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import distribute_tensor

    w = nn.Parameter(torch.ones(4, 2))
    opt = WassersteinProx([w])
    sharded = nn.Parameter(distribute_tensor(w.detach(), init_device_mesh("cpu", (1,))))
    opt.param_groups[0]["params"][0] = sharded

    def closure() -> Tensor:
        loss = sharded.square().sum()
        loss.backward()
        return loss.full_tensor()

    with pytest.raises(TypeError, match="DTensor"):
        opt.step(closure)


@pytest.mark.usefixtures("one_process_group")
@pytest.mark.parametrize("use_orig_params", [True, False])
@pytest.mark.filterwarnings("ignore")
def test_fsdp1_shards_are_refused_with_the_remedy(use_orig_params: bool) -> None:
    from torch.distributed.fsdp import FullyShardedDataParallel

    net, _, _ = network()
    sharded = FullyShardedDataParallel(
        net, device_id=torch.device("cpu"), use_orig_params=use_orig_params
    )
    with pytest.raises(TypeError, match=r"FSDP.*DistributedDataParallel"):
        WassersteinProx(sharded.parameters())


def test_a_group_of_one_process_is_no_group(one_process_group: None) -> None:
    x, y = sinus_data()
    layer = sinus_layer(m=10)
    twin = copy.deepcopy(layer)
    for model, group in ((layer, "auto"), (twin, None)):
        opt = WassersteinProx(model.parameters(), max_eval=10, process_group=group)
        opt.step(closure_of(model, opt, x, y))
    assert torch.equal(layer.particles, twin.particles)
