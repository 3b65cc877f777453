"""EntropicJKO: the same steps through a closure alone, and a good torch.optim.Optimizer."""

from __future__ import annotations

import copy
import io
import logging
import math
import pickle
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from test_jko_methods import EACH_METHOD, cross_entropy, logistic, plane, solve, squared
from torch import Tensor, nn
from torch.nn import functional as F

from conftest import closure_of, sinus_data
from torch_wprox import EntropicJKO, GridLayer, JKOReport, Status

F64 = torch.float64


def grid_layer(
    n: int = 11, *, side: float = 4.0, mass: float = 1.0, outputs: int = 1, dtype: torch.dtype = F64
) -> GridLayer:
    axis = torch.linspace(-side, side, n, dtype=F64)
    return GridLayer([axis, axis], mass=mass, out_features=outputs, dtype=dtype)


def sinus_closure(layer: nn.Module, opt: torch.optim.Optimizer) -> Callable[[], Tensor]:
    return closure_of(layer, opt, *sinus_data())


def started(
    gamma: float = 1.0, epsilon: float = 1.0, **options: Any
) -> tuple[GridLayer, EntropicJKO, Callable[[], Tensor]]:
    layer = grid_layer()
    opt = EntropicJKO(layer, gamma, epsilon, **options)
    return layer, opt, sinus_closure(layer, opt)


# -- the steps -------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", EACH_METHOD)
def test_flow_through_a_closure_has_its_exact_values(method: str) -> None:
    _, opt, closure = started(method=method)
    losses = []
    for _ in range(3):
        losses.append(opt.step(closure).item())
        assert opt.report is not None
        assert opt.report.mass == pytest.approx((0.5, 0.5), abs=1e-15)
        assert opt.report.status is Status.CONVERGED
    losses.append(opt.report.loss_after)
    exact = [0.7369255592, 0.5714030551, 0.5218792882, 0.5047712099]
    # Dykstra's tolerance of 2e-10 on its constraints leaves 1e-10 in f.
    assert losses == pytest.approx(exact, abs=1e-9 if method == "dykstra" else 1e-10)
    assert opt.report.loss_after == pytest.approx(closure().item(), abs=1e-15)


@pytest.mark.parametrize("method", EACH_METHOD)
@pytest.mark.parametrize(("loss", "outputs"), [(squared, 1), (logistic, 1), (cross_entropy, 3)])
def test_closure_and_explicit_loss_make_the_same_step(
    method: str, loss: Callable[[Tensor], Tensor], outputs: int
) -> None:
    layer = grid_layer(9, mass=2.0, outputs=outputs)
    opt = EntropicJKO(layer, gamma=1.0, epsilon=1.0, method=method)  # type: ignore[arg-type]

    def closure() -> Tensor:
        opt.zero_grad()
        value = loss(layer(sinus_data()[0]))
        value.backward()
        return value

    opt.step(closure)
    problem, phi = plane(9, epsilon=1.0, tau=2.0, mass=2.0, outputs=outputs)
    expected = solve("newton", problem, phi, loss)
    assert opt.report is not None
    assert opt.report.objective == pytest.approx(expected.objective, abs=1e-9)
    difference = (layer.density() - expected.plan.p).abs().max()
    assert float(difference) < 1e-8 * float(expected.plan.p.max())


def test_report_says_what_the_plan_is() -> None:
    layer, opt, closure = started()
    q = layer.density()
    opt.step(closure)
    report, plan = opt.report, opt.plan
    assert isinstance(report, JKOReport)
    assert plan is not None
    torch.testing.assert_close(plan.p, layer.density(), rtol=0, atol=1e-15)
    torch.testing.assert_close(plan.q, q)
    value = report.wasserstein_eps + report.tau * report.loss_after
    assert report.objective == pytest.approx(value, abs=1e-12)
    assert (report.tau, report.epsilon) == (2.0, 1.0)
    moved = plan.displacement(layer.axes())
    assert moved.shape == (2, 2, 11, 11)
    assert report.mean_displacement == pytest.approx(float((q * moved.norm(dim=0)).sum()))
    # Every cell's mean move, weighed by its mass, is the move of the mean.
    shift = (layer.density() - q).flatten(1) @ layer.cells
    torch.testing.assert_close((q * moved).flatten(2).sum(2).t(), shift, rtol=0, atol=1e-13)


def test_debiased_step_never_raises_the_loss_and_spreads_less() -> None:
    losses, spread = {}, {}
    for debiased in (False, True):
        layer, opt, closure = started(gamma=0.3, debiased=debiased, max_rounds=10)
        for _ in range(3):
            before = opt.step(closure).item()
            assert opt.report is not None
            if debiased:
                assert opt.report.loss_after <= before
        losses[debiased] = opt.report.loss_after
        p = layer.density()[0].flatten()
        spread[debiased] = float(p @ layer.cells.square().sum(1) - (p @ layer.cells).square().sum())
    assert losses[True] < losses[False]


def test_krylov_handles_a_closure_that_uses_the_weights() -> None:
    layer = grid_layer(7)

    def penalised(opt: EntropicJKO) -> Callable[[], Tensor]:
        def closure() -> Tensor:
            loss = squared(layer(sinus_data()[0])) + 10 * layer.weight.square().sum()
            loss.backward()
            return loss

        return closure

    opt = EntropicJKO(layer, 1.0, 2.0, method="krylov")
    opt.step(penalised(opt))
    assert opt.report is not None
    assert opt.report.status is Status.CONVERGED
    # phi = tau grad f up to a constant per block: the optimality condition of the step.
    assert opt.plan is not None
    assert layer.weight.grad is not None
    gap = opt.plan.log_a * -2.0 - 2.0 * layer.weight.grad.view(2, 7, 7)
    assert float(gap.flatten(1).std(dim=1).max()) < 1e-9
    for method in ("newton", "lbfgs", "dykstra"):
        before = layer.weight.detach().clone()
        layer.weight.grad = None
        other = EntropicJKO(layer, 1.0, 2.0, method=method)  # type: ignore[arg-type]
        with pytest.raises(RuntimeError, match="krylov"):
            other.step(penalised(other))
        assert torch.equal(layer.weight, before)


def test_two_calls_of_the_layer_need_krylov() -> None:
    x, y = sinus_data()
    for method in ("newton", "krylov"):
        layer = grid_layer(7)
        opt = EntropicJKO(layer, 1.0, 2.0, method=method)  # type: ignore[arg-type]

        def halves(layer: GridLayer = layer) -> Tensor:
            loss = (layer(x[:2]) - y[:2]).square().sum() + (layer(x[2:]) - y[2:]).square().sum()
            loss.backward()
            return loss

        if method == "newton":
            with pytest.raises(RuntimeError, match="calls the layer 2 times"):
                opt.step(halves)
            continue
        opt.step(halves)
        # The sum of squares is 5 times their mean.
        one = grid_layer(7)
        reference = EntropicJKO(one, 5.0, 2.0)
        reference.step(sinus_closure(one, reference))
        torch.testing.assert_close(layer.density(), one.density(), rtol=1e-8, atol=1e-12)


def test_affine_head_and_any_input_shape_are_part_of_the_loss() -> None:
    x, y = sinus_data()
    layer, head = grid_layer(9), nn.Linear(1, 1, dtype=F64).requires_grad_(False)
    opt = EntropicJKO(layer, 1.0, 1.0)

    def closure() -> Tensor:
        loss = (head(layer(x.view(1, 5, 1))).view(5, 1) - y).square().mean()
        loss.backward()
        return loss

    opt.step(closure)
    assert opt.report is not None
    assert opt.report.status is Status.CONVERGED
    assert opt.report.loss_after < opt.report.loss_before


def test_a_closure_with_dropout_is_one_function_within_a_step() -> None:
    layer, x = (
        grid_layer(7),
        torch.randn(20, 1, generator=torch.Generator().manual_seed(0), dtype=F64),
    )
    opt = EntropicJKO(layer, 1.0, 2.0)

    def closure() -> Tensor:
        loss = F.dropout(layer(x) - x.sin(), 0.5).square().mean()
        loss.backward()
        return loss

    torch.manual_seed(0)
    opt.step(closure)
    assert opt.report is not None
    assert opt.report.status is Status.CONVERGED
    state = torch.get_rng_state()
    torch.manual_seed(0)
    closure()
    assert torch.equal(state, torch.get_rng_state())


# -- precision -------------------------------------------------------------------------------------


def test_float32_weights_follow_the_float64_step_to_1e_5() -> None:
    exact, opt, closure = started()
    opt.step(closure)
    layer = grid_layer(dtype=torch.float32)
    x, y = (t.float() for t in sinus_data())
    for precision in (torch.float64, torch.float32):
        layer.set_weight(torch.full((242,), 1 / 242))
        layer.weight.grad = None
        other = EntropicJKO(layer, 1.0, 1.0, precision=precision)
        other.step(closure_of(layer, other, x, y))
        assert other.report is not None
        assert other.report.status is Status.CONVERGED
        assert layer.weight.dtype == torch.float32
        largest = float(exact.weight.detach().max())
        assert float((layer.weight.double() - exact.weight).detach().abs().max()) < 1e-5 * largest
        assert other.report.mass == pytest.approx((0.5, 0.5), abs=1e-6)


def test_half_precision_weights_are_refused() -> None:
    with pytest.raises(ValueError, match="float32 or float64"):
        EntropicJKO(grid_layer(dtype=torch.bfloat16))


# -- epsilon ---------------------------------------------------------------------------------------


def test_epsilon_none_is_twice_the_squared_spacing_and_says_so(
    caplog: pytest.LogCaptureFixture,
) -> None:
    layer = GridLayer([torch.linspace(0, 1, 11), torch.linspace(0, 2, 11)], dtype=F64)
    with caplog.at_level(logging.INFO):
        opt = EntropicJKO(layer)
    assert opt.epsilon == pytest.approx(2 * 0.2**2)
    assert "2 dx^2 = 0.08" in caplog.text
    assert "epsilon=0.08" in repr(opt)
    single = GridLayer([torch.zeros(1), torch.ones(1)], dtype=F64)
    assert EntropicJKO(single).epsilon == 1.0


def test_epsilon_below_the_squared_spacing_warns_of_locking() -> None:
    with pytest.warns(UserWarning, match="locks"):
        EntropicJKO(grid_layer(), epsilon=0.6)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        EntropicJKO(grid_layer(), epsilon=0.65)


@pytest.mark.parametrize(
    ("cells", "shift"),
    [(4.0, 0.0650000), (2.0, 0.0650000), (1.0, 0.0649846), (0.5, 0.0639208), (0.25, 0.0583195)],
)
def test_small_epsilon_locks_displacements_to_cells(cells: float, shift: float) -> None:
    dx = 0.05
    axis = dx * torch.arange(-30, 31, dtype=F64)
    # q far from the boundary, and wide: one block, one weight, f linear with slope -1.
    q = torch.exp(-(axis**2) / (2 * 0.3**2))
    layer = GridLayer([axis], (1.0,), bias=False, weight=q / q.sum(), dtype=F64)
    mean = float(layer.weight.detach() @ axis)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        opt = EntropicJKO(layer, gamma=0.065, epsilon=cells * dx**2, method="krylov")

    def closure() -> Tensor:
        loss = layer.weight @ axis
        loss.backward()
        return loss

    opt.step(closure)
    # The minimiser of |x - y|^2 + tau x lies tau/2 = gamma to the left of y.
    assert mean - float(layer.weight.detach() @ axis) == pytest.approx(shift, abs=2e-4)


def test_stall_for_lack_of_mass_is_said_once() -> None:
    layer = grid_layer(7, mass=0.01)
    opt = EntropicJKO(layer, 1000.0, 4.0)
    closure = sinus_closure(layer, opt)
    with pytest.warns(UserWarning, match=r"larger mass.*path norm up to"):
        losses = [float(opt.step(closure)) for _ in range(5)]
    assert losses[1] < losses[0]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        opt.step(closure)


def test_iteration_limit_is_said_once() -> None:
    layer = grid_layer(9, mass=20.0)
    opt = EntropicJKO(layer, 10.0, 1.0, max_iterations=1)
    closure = sinus_closure(layer, opt)
    with pytest.warns(UserWarning, match="max_iterations=1"):
        opt.step(closure)
    assert opt.report is not None
    assert opt.report.status is Status.MAX_ITER
    assert opt.report.mass == pytest.approx((0.5, 0.5), abs=1e-15)


# -- a good optimizer ------------------------------------------------------------------------------


def test_step_returns_the_first_loss_detached_and_ends_at_the_accepted_weights() -> None:
    layer, opt, closure = started()
    seen = []

    def recording() -> Tensor:
        seen.append((layer.weight.detach().clone(), closure()))
        return seen[-1][1]

    first = opt.step(recording)
    assert torch.equal(first, seen[0][1])
    assert not first.requires_grad
    assert torch.equal(seen[-1][0], layer.weight)
    assert layer.weight.grad is not None
    assert opt.report is not None
    assert opt.report.evaluations == len(seen)


def test_missing_closure_and_none_are_named() -> None:
    layer, opt, closure = started()
    before = layer.weight.detach().clone()
    with pytest.raises(RuntimeError, match=r"(?s)closure.*zero_grad.*backward.*bf16-mixed"):
        opt.step()
    with pytest.raises(RuntimeError, match="closure returned None"):
        opt.step(lambda: closure() and None)
    assert torch.equal(layer.weight, before)


@pytest.mark.parametrize("method", EACH_METHOD)
@pytest.mark.parametrize("at", [1, 2, 4, 7])
def test_exception_in_the_closure_restores_the_weights(method: str, at: int) -> None:
    layer, opt, closure = started(method=method)
    before, calls = layer.weight.detach().clone(), 0

    def failing() -> Tensor:
        nonlocal calls
        calls += 1
        if calls == at:
            raise KeyboardInterrupt
        return closure()

    with pytest.raises(KeyboardInterrupt):
        opt.step(failing)
    assert torch.equal(layer.weight, before)
    assert opt.report is None


@pytest.mark.parametrize("method", EACH_METHOD)
def test_nonfinite_loss_moves_nothing_and_says_so_once(method: str) -> None:
    layer, opt, closure = started(method=method)
    before = layer.weight.detach().clone()
    with pytest.warns(UserWarning, match="not finite"):
        opt.step(lambda: closure() * math.nan)
    opt.step(lambda: closure() * math.nan)
    assert opt.report is not None
    assert opt.report.status is Status.NONFINITE
    assert opt.plan is None
    assert torch.equal(layer.weight, before)


def test_zero_gamma_and_frozen_weights_do_not_move() -> None:
    layer, opt, closure = started(gamma=0.0)
    before = layer.weight.detach().clone()
    opt.step(closure)
    assert opt.report is not None
    assert (opt.report.status, opt.report.evaluations) == (Status.NO_MOVE, 1)
    assert torch.equal(layer.weight, before)
    layer, opt, _ = started()
    layer.weight.requires_grad_(False)
    opt.step(lambda: squared(layer(sinus_data()[0])))
    assert opt.report is not None
    assert opt.report.status is Status.NO_MOVE


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda p: p.mul_(2), "sum to 1, got 2"),
        (lambda p: p[0].mul_(-1), "weight must be >= 0"),
        (lambda p: p[0].fill_(math.nan), "finite"),
    ],
)
def test_weights_that_are_no_probability_are_refused(
    spoil: Callable[[Tensor], Tensor], message: str
) -> None:
    layer, opt, closure = started()
    with torch.no_grad():
        spoil(layer.weight)
    with pytest.raises(ValueError, match=message):
        opt.step(closure)


def test_gamma_is_stored_as_lr_for_schedulers() -> None:
    layer, opt, closure = started(gamma=1.0)
    scheduler = torch.optim.lr_scheduler.ExponentialLR(opt, 0.5)
    opt.step(closure)
    scheduler.step()
    opt.step(closure)
    assert opt.report is not None
    assert opt.report.tau == pytest.approx(1.0)
    assert EntropicJKO(layer, lr=0.1).param_groups[0]["lr"] == 0.1
    assert EntropicJKO(layer, 2.0, lr=0.1).param_groups[0]["lr"] == 2.0
    opt.param_groups[0]["gamma"] = 3.0
    with pytest.raises(ValueError, match=r'group\["lr"\]'):
        opt.step(closure)


@pytest.mark.parametrize("how", ["deepcopy", "pickle", "state_dict"])
def test_copies_take_the_same_step_to_the_bit(how: str) -> None:
    layer, opt, closure = started(debiased=True, max_rounds=3)
    opt.step(closure)
    if how == "deepcopy":
        other = copy.deepcopy(opt)
    elif how == "pickle":
        other = pickle.loads(pickle.dumps(opt))
    else:
        twin = grid_layer()
        twin.load_state_dict(layer.state_dict())
        other = EntropicJKO(twin, 7.0, 1.0, debiased=True, max_rounds=3)
        buffer = io.BytesIO()
        torch.save(opt.state_dict(), buffer)
        buffer.seek(0)
        other.load_state_dict(torch.load(buffer, weights_only=True))
    assert other.layer is not layer
    opt.step(closure)
    other.step(sinus_closure(other.layer, other))
    assert torch.equal(other.layer.weight, layer.weight)
    if how != "state_dict":
        assert other.layer.weight is other.param_groups[0]["params"][0]


def test_state_of_another_method_is_refused() -> None:
    _, opt, _ = started()
    _, other, _ = started(method="lbfgs")
    with pytest.raises(ValueError, match="method='newton'"):
        other.load_state_dict(opt.state_dict())


def test_foreign_gradients_warn_and_name_accumulation() -> None:
    _, opt, closure = started()
    closure()
    with pytest.warns(UserWarning, match="accumulate_grad_batches"):
        opt.step(closure)


def test_forgotten_zero_grad_makes_the_same_step() -> None:
    layer, opt, closure = started()
    opt.step(closure)
    twin = grid_layer()
    other = EntropicJKO(twin, 1.0, 1.0)

    def careless() -> float:
        loss = squared(twin(sinus_data()[0]))
        loss.backward()
        return loss.item()

    assert other.step(careless) == pytest.approx(0.7369255592, abs=1e-9)
    assert torch.equal(twin.weight, layer.weight)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"gamma": -1.0}, "gamma must be"),
        ({"lr": -1.0}, "lr must be"),
        ({"epsilon": 0.0}, "epsilon must be"),
        ({"epsilon": math.nan}, "epsilon must be"),
        ({"method": "sinkhorn"}, "method must be"),
        ({"tolerance": 2.0}, "tolerance must be"),
        ({"max_iterations": 0}, "max_iterations must be"),
        ({"max_rounds": 1.5}, "max_rounds must be"),
        ({"precision": torch.float16}, "precision must be"),
        ({"process_group": "all"}, "process_group must be"),
    ],
)
def test_refused_arguments_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        EntropicJKO(grid_layer(), **options)


def test_other_modules_and_groups_are_refused() -> None:
    with pytest.raises(TypeError, match="GridLayer"):
        EntropicJKO(nn.Linear(1, 1))  # type: ignore[arg-type]
    layer, opt, closure = started()
    with pytest.raises(ValueError, match="optimizer of their own"):
        opt.add_param_group({"params": [nn.Parameter(torch.zeros(3))]})
    layer.load_state_dict(layer.state_dict(), assign=True)
    with pytest.raises(RuntimeError, match="make the optimizer again"):
        opt.step(closure)
