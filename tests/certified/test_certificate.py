"""Certificates of any point: the bound is that of the global solver, the objective is P or F."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from cases.global_cases import F64, Case, random_case, squared
from conftest import sinus_data, sinus_layer
from torch_wprox import (
    Certificate,
    FrobeniusProx,
    Global,
    MeanFieldLayer,
    WassersteinProx,
    certify,
    certify_training,
)
from torch_wprox.report import numbers_of


def sinus_case(gamma: float = 1.0, seed: int = 0) -> Case:
    layer, (x, y) = sinus_layer(seed=seed), sinus_data()
    return Case(layer, x, squared(y), gamma)


# -- a proximal step ------------------------------------------------------------------------------


@pytest.mark.parametrize("solver", ["gd", "adam", "bfgs", "lbfgs", "global"])
@pytest.mark.parametrize("kind", [WassersteinProx, FrobeniusProx])
def test_certificate_of_a_step_has_its_objective_and_a_bound_below(kind: Any, solver: str) -> None:
    case = sinus_case()
    W = case.anchor
    opt = kind(case.layer.parameters(), case.gamma, solver=solver, max_eval=300)
    opt.step(case.closure)
    distance = "emd" if kind is WassersteinProx else "frobenius"
    V = case.anchor
    found = certify(case.layer, case.closure, W, case.gamma, distance=distance)
    assert found.objective == pytest.approx(opt.report.objective, rel=1e-12)
    assert found.certified
    assert found.lower_bound == pytest.approx(0.18566, rel=1e-4)
    assert found.gap == found.objective - found.lower_bound
    assert found.relative_gap == found.gap / found.lower_bound
    assert torch.equal(case.anchor, V)  # nothing moved
    if solver == "global":
        assert found.lower_bound == pytest.approx(opt.report.lower_bound, rel=1e-12)
        assert found.relative_gap < 1e-3
    else:
        assert found.relative_gap > 0.05  # every local solver ends far above, and now one sees it


def test_torchs_adam_on_the_prox_objective_is_far_above_the_bound() -> None:
    case = sinus_case()
    W = case.anchor
    adam = torch.optim.Adam(case.layer.parameters(), lr=3e-2)
    for _ in range(300):
        adam.zero_grad()
        moved = (case.layer.particles - W).square().sum() / (2 * 50)
        (case.loss(case.layer(case.x)) + moved).backward()
        adam.step()
    found = certify(case.layer, case.closure, W, 1.0)
    assert found.relative_gap > 0.3
    assert found.evaluations < 60  # the bound takes 14, the rest is probing for convexity


def test_the_anchors_own_certificate_is_the_whole_room_of_a_step() -> None:
    case = random_case(0, m=6, n=4, gamma=1.0)
    with torch.no_grad():
        loss = float(case.loss(case.layer(case.x)))
    found = certify(case.layer, case.closure, case.anchor, 1.0)
    assert found.objective == pytest.approx(loss, rel=1e-12)


@pytest.mark.parametrize("form", ["signed", "clouds", "joint", "radial"])
def test_certificate_agrees_with_the_report_for_every_layer(form: str) -> None:
    case = random_case(
        3, m=8, n=5, k=2, form=form, output_bias=True, gamma=0.8, scale=0.5, reduction="mean"
    )
    before = {name: t.clone() for name, t in case.layer.state_dict().items()}
    opt = WassersteinProx(
        case.layer.parameters(), 0.8, solver="global", weight_decay=0.03, max_eval=2000
    )
    opt.step(case.closure)
    opt.zero_grad()
    found = certify(case.layer, case.closure, before, 0.8, weight_decay=0.03)
    assert found.objective == pytest.approx(opt.report.objective, rel=1e-10)
    assert found.lower_bound == pytest.approx(opt.report.lower_bound, rel=1e-6)
    assert found.certified == opt.report.certified is True


def test_bound_without_classes_is_lower_and_its_objective_allows_relabelling() -> None:
    case = sinus_case(gamma=1e-3)
    W = case.anchor
    with torch.no_grad():
        case.layer.particles.copy_(W[torch.arange(49, -1, -1)])  # all signs exchanged
    inside = certify(case.layer, case.closure, W, 1e-3)
    across = certify(case.layer, case.closure, W, 1e-3, classes=None)
    assert across.lower_bound < 0.95 * inside.lower_bound
    with torch.no_grad():
        loss = float(case.loss(case.layer(case.x)))
    assert across.objective == pytest.approx(loss, rel=1e-12)  # relabelling is free
    assert inside.objective > across.objective


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"gamma": 0.0}, "gamma must be > 0"),
        ({"distance": "sinkhorn"}, "distance must be"),
        ({"weight_decay": -1.0}, "weight_decay"),
    ],
)
def test_certify_names_the_argument_that_is_wrong(change: dict[str, Any], message: str) -> None:
    case = random_case(0, m=4, n=3)
    arguments = {"gamma": 1.0, **change}
    with pytest.raises(ValueError, match=message):
        certify(case.layer, case.closure, case.anchor, **arguments)


def test_certify_needs_the_output_bias_of_the_anchor_where_it_trains() -> None:
    case = random_case(0, m=4, n=3, output_bias=True)
    with pytest.raises(ValueError, match="state dict"):
        certify(case.layer, case.closure, case.anchor, 1.0)


def nonconvex(case: Case) -> Case:
    case.loss = lambda z: (z.square() - 1).square().mean()
    return case


def test_certificates_refuse_losses_that_are_not_convex() -> None:
    case = nonconvex(random_case(0, m=6, n=4, gamma=1.0))
    with pytest.raises(ValueError, match="not convex in the layer's output"):
        certify(case.layer, case.closure, case.anchor, 1.0)
    with pytest.raises(ValueError, match="not convex in the layer's output"):
        certify_training(case.layer, case.closure, beta=0.1)


def test_certificates_refuse_a_penalty_inside_the_closure() -> None:
    case = random_case(0, m=6, n=4, gamma=1.0)

    def closure() -> Tensor:
        case.layer.zero_grad()
        loss = case.loss(case.layer(case.x)) + 0.1 * case.layer.particles.square().sum()
        loss.backward()
        return loss

    with pytest.raises(ValueError, match="another way"):
        certify_training(case.layer, closure, beta=0.1)


@pytest.mark.parametrize(("certified", "word"), [(True, "proved"), (False, "estimated")])
def test_an_estimate_is_called_so_where_it_is_printed(certified: bool, word: str) -> None:
    text = str(Certificate(2.02, 2.0, certified, 3))
    assert re.search(rf"\b{word} lower bound 2\b", text)
    assert "1 %" in text
    assert ("proved if the loss is convex in the output" in text) is certified


def test_a_certificate_without_a_bound_says_so() -> None:
    text = str(Certificate(2.02, float("-inf"), False, 3))
    assert text == "objective 2.02, no lower bound was found"


def test_four_inputs_give_an_estimate_and_a_proof_below_it() -> None:
    case = random_case(1, m=5, n=5, d=3, gamma=1.0, scale=0.5)
    options = Global(max_iter=20, tolerance_proof=1e-3)

    def certificate(seconds: float) -> Certificate:
        return certify(
            case.layer, case.closure, case.anchor, 1.0, proof_seconds=seconds, options=options
        )

    guessed, proved = certificate(0.0), certificate(20.0)
    assert not guessed.certified
    assert "estimated" in str(guessed)
    assert proved.certified
    assert proved.estimate == pytest.approx(guessed.lower_bound, rel=1e-9)
    assert proved.lower_bound <= proved.estimate
    # Radii are proved within 0.1 %, so the bound is within 0.2 % of what particles can gain.
    assert proved.estimate - proved.lower_bound <= 0.01 * proved.objective
    assert re.search("proved lower bound .*, estimated ", str(proved))


def test_a_step_proves_its_bound_if_it_is_given_the_time() -> None:
    case = random_case(1, m=5, n=5, d=3, gamma=1.0, scale=0.5)
    solver = Global(max_iter=20, proof_seconds=20.0)
    opt = WassersteinProx(case.layer.parameters(), 1.0, solver=solver)
    opt.step(case.closure)
    report = opt.report
    assert report.certified
    assert report.lower_bound <= report.estimate <= report.objective
    assert numbers_of(report)["estimate"] == report.estimate
    gap = (report.objective - report.estimate) / abs(report.estimate)
    assert f"; estimated {report.estimate:.6g}, gap {gap:.3%}" in str(report)


def test_a_step_that_is_exact_or_only_estimated_has_no_second_number() -> None:
    for case in (sinus_case(), random_case(1, m=3, n=4, d=3, gamma=1.0, scale=0.5)):
        solver = Global(max_iter=20, starts=1, polish=100)
        opt = WassersteinProx(case.layer.parameters(), 1.0, solver=solver)
        opt.step(case.closure)
        assert opt.report.estimate is None
        assert "; estimated" not in str(opt.report)


def test_proof_seconds_must_not_be_negative() -> None:
    case = random_case(1, m=5, n=5, d=3, gamma=1.0)
    with pytest.raises(ValueError, match="proof_seconds must be >= 0"):
        certify(case.layer, case.closure, case.anchor, 1.0, proof_seconds=-1.0)
    with pytest.raises(ValueError, match="proof_seconds must be >= 0"):
        Global(proof_seconds=-1.0)


# -- training --------------------------------------------------------------------------------------


@pytest.mark.parametrize("reduction", ["sum", "mean"])
@pytest.mark.parametrize(
    ("beta", "optimum"), [(1e-3, 0.0374599490), (1e-2, 0.3073381297), (0.1, 0.5380230092)]
)
def test_training_bound_is_the_optimum_of_the_convex_program(
    beta: float, optimum: float, reduction: str
) -> None:
    x, y = sinus_data()
    g = torch.Generator().manual_seed(0)
    layer = MeanFieldLayer(1, 30, reduction=reduction, generator=g, dtype=F64)
    case = Case(layer, x, squared(y), 1.0)
    found = certify_training(layer, case.closure, beta=beta)
    assert found.certified
    assert found.lower_bound <= optimum * (1 + 1e-9)
    assert found.lower_bound == pytest.approx(optimum, rel=2e-6)  # tolerance_bound is 1e-6
    w, a = layer.neurons()
    path = layer.scale * float((w.norm(dim=1) * a.norm(dim=1)).sum().detach())
    with torch.no_grad():
        expected = float(case.loss(layer(x))) + beta * path
    assert found.objective == pytest.approx(expected, rel=1e-12)


def test_a_net_trained_by_adam_with_weight_decay_is_near_its_certificate() -> None:
    x, y = sinus_data()
    g = torch.Generator().manual_seed(0)
    layer = MeanFieldLayer(1, 30, reduction="sum", generator=g, dtype=F64)
    case = Case(layer, x, squared(y), 1.0)
    weight_decay = 1e-2
    adam = torch.optim.Adam(layer.parameters(), lr=3e-2, weight_decay=weight_decay)
    decay = torch.optim.lr_scheduler.LinearLR(adam, 1.0, 0.0, 1500)
    for _ in range(1500):
        adam.zero_grad()
        case.closure()
        adam.step()
        decay.step()
    case.layer.zero_grad()
    found = certify_training(layer, case.closure, weight_decay=weight_decay)
    assert found.certified
    # (wd/2)(|w|^2 + alpha^2) >= wd |w||alpha|: the optimum is that of beta = wd.
    assert found.lower_bound == pytest.approx(0.3073381297, rel=2e-6)
    assert 0 <= found.relative_gap <= 0.02
    path = certify_training(layer, case.closure, beta=weight_decay)
    assert path.objective <= found.objective * (1 + 1e-12)


def test_weight_decay_of_the_mean_is_a_path_norm_m_times_as_dear() -> None:
    x, y = sinus_data()
    layer = MeanFieldLayer(1, 20, reduction="mean", dtype=F64)
    case = Case(layer, x, squared(y), 1.0)
    one = certify_training(layer, case.closure, weight_decay=5e-4)
    other = certify_training(layer, case.closure, beta=20 * 5e-4)
    assert one.lower_bound == pytest.approx(other.lower_bound, rel=1e-12)


@pytest.mark.parametrize("form", ["signed", "clouds"])
def test_weight_decay_with_frozen_output_weights_is_a_step_from_zero(form: str) -> None:
    for seed in range(3):
        case = random_case(seed, m=2, n=4, form=form)
        decay = 0.05
        zero = random_case(seed, m=2, n=4, form=form)
        zero.gamma = 1 / (2 * decay)
        with torch.no_grad():
            zero.layer.particles.zero_()
        smallest = zero.smallest()  # R + (decay/2)|V|^2, by enumeration
        found = certify_training(case.layer, case.closure, weight_decay=decay)
        assert found.certified
        assert found.lower_bound <= smallest * (1 + 1e-9)
        assert found.objective >= smallest * (1 - 1e-9)


@pytest.mark.parametrize("loss", ["squared", "logistic", "cross-entropy"])
def test_training_bound_is_below_what_many_trained_nets_reach(loss: str) -> None:
    k = 2 if loss == "cross-entropy" else 1
    beta = 0.05
    for seed in range(2):
        case = random_case(seed, m=12, n=5, k=k, loss=loss, form="joint", scale=1.0)
        found = certify_training(case.layer, case.closure, beta=beta)
        assert found.certified
        reached = []
        for start in range(3):
            case.layer.reset_parameters(torch.Generator().manual_seed(start))
            reached.append(_trained(case, beta))
        assert found.lower_bound <= min(reached) * (1 + 1e-9)
        # Wide enough nets have no bad local minima in practice: the bound is tight.
        assert min(reached) <= found.lower_bound * 1.02


def _trained(case: Case, beta: float) -> float:
    """R + beta * path norm after L-BFGS on R + (beta/2)|parameters|^2, "sum" reduction."""
    layer = case.layer
    opt = torch.optim.LBFGS(layer.parameters(), max_iter=1000, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        opt.zero_grad()
        value = case.loss(layer(case.x)) + 0.5 * beta * layer.particles.square().sum()
        value.backward()
        return value

    opt.step(closure)
    with torch.no_grad():
        w, a = layer.neurons()
        path = float((w.norm(dim=1) * a.norm(dim=1)).sum())
        return float(case.loss(layer(case.x))) + beta * path


def test_training_bound_in_three_inputs_is_proved_and_below_a_trained_net() -> None:
    case = random_case(0, m=20, n=8, d=2, form="joint", scale=1.0)
    found = certify_training(case.layer, case.closure, beta=0.05)
    assert found.certified
    reached = _trained(case, 0.05)
    assert found.lower_bound <= reached * (1 + 1e-9)
    assert reached <= 1.05 * found.lower_bound


@pytest.mark.parametrize(("loss", "k"), [("squared", 1), ("squared", 2)])
def test_training_bound_in_more_inputs_is_proved_just_below_its_estimate(loss: str, k: int) -> None:
    case = random_case(0, m=10, n=8, d=4, k=k, loss=loss, form="joint", scale=1.0)
    options = Global(max_iter=10, tolerance_bound=1e-3, tolerance_proof=1e-3)

    def certificate(seconds: float) -> Certificate:
        return certify_training(
            case.layer, case.closure, beta=0.05, proof_seconds=seconds, options=options
        )

    guessed, proved = certificate(0.0), certificate(20.0)
    assert not guessed.certified
    assert proved.certified
    assert proved.estimate == pytest.approx(guessed.lower_bound, rel=1e-6)
    assert proved.lower_bound <= proved.estimate * (1 + 1e-9)
    # The gradient shrinks by 0.1 %; two outputs are proved one by one, and lose more.
    assert proved.lower_bound >= (0.99 if k == 1 else 0.4) * proved.estimate


def test_a_frozen_output_bias_is_part_of_the_training_bound() -> None:
    x, y = sinus_data()
    layer = MeanFieldLayer(1, 30, reduction="sum", output_bias=True, dtype=F64)
    layer.output_bias.requires_grad_(False).fill_(float(y.mean()))
    bound = certify_training(layer, Case(layer, x, squared(y), 1.0).closure, beta=0.1).lower_bound
    plain = MeanFieldLayer(1, 30, reduction="sum", dtype=F64)
    moved = Case(plain, x, squared(y - y.mean()), 1.0)
    assert bound == pytest.approx(
        certify_training(plain, moved.closure, beta=0.1).lower_bound, rel=1e-6
    )


@pytest.mark.parametrize("wanted", [{}, {"beta": 0.1, "weight_decay": 0.1}, {"beta": 0.0}])
def test_training_needs_one_penalty(wanted: dict[str, float]) -> None:
    case = random_case(0, m=4, n=3, form="joint")
    with pytest.raises(ValueError, match="one of beta > 0 and weight_decay > 0"):
        certify_training(case.layer, case.closure, **wanted)


def test_training_refuses_decay_on_the_sphere() -> None:
    case = random_case(0, m=4, n=3, form="sphere")
    with pytest.raises(ValueError, match="give beta"):
        certify_training(case.layer, case.closure, weight_decay=0.1)
    assert certify_training(case.layer, case.closure, beta=0.1).certified


def test_closures_that_draw_random_numbers_are_replayed() -> None:
    x, y = sinus_data()
    layer = sinus_layer()

    def closure() -> Tensor:
        noise = 0.01 * torch.randn(5, 1, dtype=F64)
        loss = F.mse_loss(layer(x), y + noise)
        loss.backward()
        return loss

    found = certify(layer, closure, layer.particles.detach().clone(), 1.0)
    assert found.certified
    assert np.isfinite(found.lower_bound)
