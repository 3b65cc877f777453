"""A certificate is withdrawn where it would be false.

Each family has a twin that must pass: a certificate that is withdrawn for nothing is useless.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from cases.certificate_cases import NONCONVEX, nonconvex_losses
from cases.global_cases import F64, Case, random_case
from torch_wprox import StepReport, WassersteinProx, certify, certify_training

Closure = Callable[[], Tensor]


def stepped(case: Case, closure: Closure | None = None, **options: object) -> StepReport:
    opt = WassersteinProx(case.layer.parameters(), case.gamma, solver="global", **options)
    opt.step(case.closure if closure is None else closure)
    opt.zero_grad()
    assert opt.report is not None
    return opt.report


def refused(case: Case, closure: Closure, match: str) -> None:
    """Both the step and the certificate of a point refuse, and nothing moves."""
    before = case.anchor
    with pytest.raises(ValueError, match=match):
        stepped(case, closure)
    assert torch.equal(case.anchor, before)
    with pytest.raises(ValueError, match=match):
        certify(case.layer, closure, before, case.gamma)
    case.layer.zero_grad()


# -- closures that are not one function ------------------------------------------------------------


@pytest.mark.parametrize("size", [1e-3, 3e-2, 0.3])
def test_noise_of_numpy_on_the_inputs_withdraws_the_certificate(size: float) -> None:
    case = random_case(0, m=6, n=4, gamma=1.0)
    rng = np.random.default_rng(0)

    def noisy() -> Tensor:
        case.layer.zero_grad()
        x = case.x + size * torch.from_numpy(rng.standard_normal(case.x.shape))
        loss = case.loss(case.layer(x))
        loss.backward()
        return loss

    refused(case, noisy, "input changed")


def test_noise_written_into_the_batch_itself_withdraws_the_certificate() -> None:
    case = random_case(0, m=6, n=4, gamma=1.0)
    rng = np.random.default_rng(0)

    def noisy() -> Tensor:
        case.x.add_(1e-3 * torch.from_numpy(rng.standard_normal(case.x.shape)))
        return case.closure()

    refused(case, noisy, "input changed")


def test_noise_of_numpy_on_the_targets_withdraws_the_certificate() -> None:
    case = random_case(0, m=6, n=4, gamma=1.0)
    rng = np.random.default_rng(0)
    y = case.target

    def noisy() -> Tensor:
        case.layer.zero_grad()
        noise = torch.from_numpy(rng.standard_normal(y.shape))
        loss = (case.layer(case.x) - y - 1e-3 * noise).square().mean()
        loss.backward()
        return loss

    refused(case, noisy, "not a function of the output|not one function|another way")


@pytest.mark.parametrize("after", [1, 3, 8, 11])
@pytest.mark.parametrize("changes", ["inputs", "targets", "size"])
def test_a_batch_that_changes_withdraws_the_certificate(after: int, changes: str) -> None:
    case = random_case(0, m=6, n=4, gamma=1.0)
    runs = 0

    def closure() -> Tensor:
        nonlocal runs
        runs += 1
        case.layer.zero_grad()
        x, y = case.x, case.target
        if runs > after:
            x = x + (changes == "inputs")
            y = y + (changes == "targets")
            if changes == "size":
                x, y = x[:3], y[:3]
        loss = (case.layer(x) - y).square().mean()
        loss.backward()
        return loss

    with pytest.raises(ValueError, match=r"changed|not one function|another way|not a function"):
        stepped(case, closure)


def test_dropout_of_torch_is_one_function_and_passes() -> None:
    case = random_case(0, m=12, n=6, gamma=1.0, scale=0.5)

    def closure() -> Tensor:
        case.layer.zero_grad()
        loss = case.loss(F.dropout(case.layer(case.x), 0.3))
        loss.backward()
        return loss

    assert stepped(case, closure).certified


# -- penalties that backward does not see ----------------------------------------------------------

PENALTIES: dict[str, Callable[[Tensor], Tensor]] = {
    "count of neurons": lambda v: 0.1 * (v.norm(dim=1) > 0).sum(),
    "count of positive weights": lambda v: 0.1 * (v > 0).sum(),
    "signs of sums": lambda v: v.sum().sign(),
    "number of large neurons": lambda v: 0.1 * (v.norm(dim=1) > 2.0).sum(),
    "rounded weights": lambda v: v.round().abs().sum(),
    "squares": lambda v: 1e-3 * v.square().sum(),
}


@pytest.mark.parametrize("name", PENALTIES)
def test_a_penalty_without_a_gradient_withdraws_the_certificate(name: str) -> None:
    case = random_case(0, m=6, n=4, gamma=1.0)

    def penalised() -> Tensor:
        case.layer.zero_grad()
        loss = case.loss(case.layer(case.x))
        loss.backward()
        return loss.detach() + PENALTIES[name](case.layer.particles.detach())

    refused(case, penalised, "another way")


def test_a_penalty_that_only_the_accepted_point_meets_withdraws_the_certificate() -> None:
    case = random_case(1, m=6, n=4, gamma=10.0, scale=0.3)
    W = case.anchor
    stepped(case)
    V = case.anchor
    with torch.no_grad():
        case.layer.particles.copy_(W)
    near = 0.5 * float((V - W).norm())

    def penalised() -> Tensor:  # 1 in the neighbourhood of the solution only
        case.layer.zero_grad()
        loss = case.loss(case.layer(case.x))
        loss.backward()
        return loss.detach() + ((case.layer.particles.detach() - V).norm() < near).double()

    with pytest.raises(ValueError, match="another way"):
        stepped(case, penalised)


# -- rounding --------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, F64])
@pytest.mark.parametrize("form", ["signed", "joint", "radial"])
def test_the_bound_is_below_the_objective_at_every_precision(form: str, dtype: torch.dtype) -> None:
    for seed in range(4):
        case = random_case(seed, m=3, n=6, form=form, gamma=0.03, scale=0.5)
        case.layer.to(dtype)
        case.x, y = case.x.to(dtype), case.target.to(dtype)
        case.loss = lambda z, y=y: (z - y).square().mean()
        report = stepped(case)
        assert report.gap >= 0
        # The rounding term is small beside what it is taken from.
        assert report.gap <= 1e-2 * report.objective or not report.certified


def test_tiny_values_have_a_bound_below_them() -> None:
    # The particles are of size 1, the loss of size 1e-11: prices are differences of numbers of
    # size (kappa/2)|W|^2, whose rounding is not small beside the value.
    for seed in range(6):
        case = random_case(seed, m=8, n=3, gamma=100.0, scale=1.0)
        with torch.no_grad():
            near = case.layer(case.x) + 1e-5
        case.loss = lambda z, y=near: (z - y).square().mean()
        report = stepped(case)
        assert report.gap >= 0
        assert report.objective <= 1.01e-10


# -- losses that are not convex in the output ------------------------------------------------------


def nonconvex_case(name: str, seed: int, form: str, *, m: int = 8, n: int = 8) -> Case:
    """Targets of size 10, an anchor of size .1 and a long step: the step goes far."""
    case = random_case(seed, m=m, n=n, form=form, gamma=100.0, scale=0.1)
    g = torch.Generator().manual_seed(seed)
    case.loss = nonconvex_losses(10.0 * torch.randn(n, 1, generator=g, dtype=F64))[name]
    return case


@pytest.mark.parametrize("name", NONCONVEX)
@pytest.mark.parametrize("form", ["signed", "joint"])
def test_a_loss_that_is_not_convex_has_no_certificate(name: str, form: str) -> None:
    case = nonconvex_case(name, 0, form)
    before = case.anchor
    try:
        report = stepped(case)
    except ValueError as error:
        assert "not convex in the layer's output" in str(error)  # noqa: PT017
        assert torch.equal(case.anchor, before)
    else:  # the budget ended before a bound was found: none is reported
        assert report.lower_bound is None
        assert not report.certified
        return
    try:
        found = certify(case.layer, case.closure, before, case.gamma)
    except ValueError as error:
        assert "not convex in the layer's output" in str(error)  # noqa: PT017
    else:  # so far below that it is true
        local = WassersteinProx(case.layer.parameters(), case.gamma, solver="lbfgs")
        local.step(case.closure)
        assert found.lower_bound <= local.report.objective
    case.layer.zero_grad()


@pytest.mark.parametrize("name", ["clipped square", "Cauchy", "trimmed mean", "ripples"])
@pytest.mark.parametrize("penalty", [{"beta": 0.1}, {"weight_decay": 1e-3}])
@pytest.mark.parametrize("form", ["signed", "joint"])
def test_training_on_a_loss_that_is_not_convex_has_no_certificate(
    name: str, penalty: dict[str, float], form: str
) -> None:
    case = nonconvex_case(name, 0, form)
    with pytest.raises(ValueError, match="not convex in the layer's output"):
        certify_training(case.layer, case.closure, **penalty)
    case.layer.zero_grad()
