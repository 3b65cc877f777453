"""Every argument out of its range is an error that names the argument and says what it must be.

Families of wrong values (words, NaN, infinities, fractions, sequences, classes, ..) go through
every public option. An option either takes a value or refuses it by name: what must never be is an
error from deep inside, or a value that is taken and does nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import strategies as st
from torch import Tensor, nn

import torch_wprox
from cases.families import tried
from conftest import closure_for, label
from torch_wprox import (
    BFGS,
    EMD,
    LBFGS,
    EntropicJKO,
    FrobeniusProx,
    GridLayer,
    MeanFieldLayer,
    Sinkhorn,
    Sliced,
    WassersteinProx,
    certify_training,
    particle_groups,
    prox,
    wasserstein_sq,
)
from torch_wprox.solvers import GradientDescent, Stopping, WeakWolfe
from torch_wprox.solvers.auto import Auto

AXES = [torch.linspace(-1, 1, 3)] * 2


def weights() -> nn.Parameter:
    return nn.Parameter(torch.randn(6, 2))


def wasserstein(**options: Any) -> WassersteinProx:
    return WassersteinProx([weights()], **options)


def frobenius(**options: Any) -> FrobeniusProx:
    return FrobeniusProx([weights()], **options)


def jko(**options: Any) -> EntropicJKO:
    return EntropicJKO(GridLayer(AXES), **options)


def grid(**options: Any) -> GridLayer:
    return GridLayer(AXES, **options)


def layer(**options: Any) -> MeanFieldLayer:
    return MeanFieldLayer(**{"in_features": 2, "width": 3, **options})


def prox_of(**options: Any) -> Any:
    return prox(lambda V: V.square().sum(), torch.ones(3, 2), **{"gamma": 1.0, **options})


NUMBERS: list[tuple[Callable[..., Any], str]] = [
    *((make, name) for make in (wasserstein, frobenius) for name in ("gamma", "lr")),
    *((make, "weight_decay") for make in (wasserstein, frobenius, prox_of)),
    *((make, "tolerance_grad") for make in (wasserstein, frobenius, prox_of, Stopping)),
    *((make, "inexact") for make in (wasserstein, frobenius, prox_of, Stopping)),
    *((jko, name) for name in ("gamma", "lr", "epsilon", "tolerance")),
    *((Sinkhorn, name) for name in ("blur", "scaling")),
    *((WeakWolfe, name) for name in ("decrease", "curvature")),
    *((GradientDescent, name) for name in ("step", "growth", "decrease")),
    *((torch_wprox.Global, name) for name in ("tolerance_gap", "tolerance_bound")),
    *((prox_of, "gamma"), (grid, "mass"), (layer, "init_scale")),
]
COUNTS: list[tuple[Callable[..., Any], str]] = [
    *((make, "max_eval") for make in (wasserstein, frobenius, prox_of)),
    *((jko, name) for name in ("max_iterations", "max_rounds")),
    *((torch_wprox.Global, name) for name in ("max_iter", "starts", "polish")),
    *((Sliced, "projections"), (Sinkhorn, "dense_up_to"), (LBFGS, "history")),
    (WeakWolfe, "max_trials"),
    *((BFGS, "remember"), (Auto, "dense_up_to"), (Auto, "remember"), (grid, "out_features")),
    *((layer, name) for name in ("in_features", "width", "out_features")),
]
FLAGS: list[tuple[Callable[..., Any], str]] = [
    *((grid, "bias"), (layer, "bias"), (layer, "output_bias")),
    *((jko, "debiased"), (Sinkhorn, "debiased")),
]
OPTIONAL = {
    "gamma",
    "lr",
    "inexact",
    "epsilon",
    "tolerance",
    "max_iterations",
    "history",
    "remember",
}


def ids(cases: list[tuple[Callable[..., Any], str]]) -> list[str]:
    return [f"{make.__name__}-{name}" for make, name in cases]


NO_NUMBERS = st.one_of(
    st.text(max_size=3),
    st.lists(st.floats(), max_size=2),
    st.builds(dict),
    st.just(math.nan),
    st.just(-1.0),
    st.just(-math.inf),
    st.complex_numbers(min_magnitude=1.0).filter(lambda z: z.imag != 0),
    st.just(object()),
    st.just(float),
    st.just(np.ones(2)),
    st.just(np.float32("nan")),
    st.just(torch.ones(2)),
    st.just(torch.tensor(math.nan)),
    st.booleans(),
)
NO_COUNTS = st.one_of(
    NO_NUMBERS,
    st.floats(),
    st.integers(max_value=-1),
    st.just(torch.tensor(1.5)),
    st.just(np.float64(2.0)),
)
NO_FLAGS = st.one_of(
    st.text(max_size=3),
    st.floats().filter(lambda x: x not in (0.0, 1.0)),
    st.integers().filter(lambda x: x not in (0, 1)),
    st.none(),
    st.just([]),
    st.just(np.ones(2, bool)),
)


def refusal(make: Callable[..., Any], name: str, value: Any) -> str:
    """Return the message with which ``make(name=value)`` is refused."""
    with pytest.raises((TypeError, ValueError)) as refused:
        make(**{name: value})
    return str(refused.value)


@pytest.mark.parametrize(("make", "name"), NUMBERS, ids=ids(NUMBERS))
@tried(value=NO_NUMBERS)
def test_what_is_no_number_is_refused_by_name(
    make: Callable[..., Any], name: str, value: Any
) -> None:
    if name == "init_scale" and isinstance(value, float | bool) and math.isfinite(value):
        return  # a negative scale mirrors the cloud
    message = refusal(make, name, value)
    assert name in message
    assert "must be" in message


@pytest.mark.parametrize(("make", "name"), COUNTS, ids=ids(COUNTS))
@tried(value=NO_COUNTS)
def test_what_is_no_count_is_refused_by_name(
    make: Callable[..., Any], name: str, value: Any
) -> None:
    message = refusal(make, name, value)
    assert f"{name} must be" in message


@pytest.mark.parametrize(("make", "name"), FLAGS, ids=ids(FLAGS))
@tried(value=NO_FLAGS)
def test_what_is_neither_true_nor_false_is_refused_by_name(
    make: Callable[..., Any], name: str, value: Any
) -> None:
    assert refusal(make, name, value).startswith(f"{name} must be True or False, got ")


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (make, name)
        for make, name in NUMBERS + COUNTS
        if name not in OPTIONAL and (name != "max_eval" or make is prox_of)
    ],
    ids=label,
)
def test_none_is_refused_where_nothing_stands_for_a_default(
    make: Callable[..., Any], name: str
) -> None:
    assert f"{name} must be" in refusal(make, name, None)


@pytest.mark.parametrize(
    ("make", "name", "value"),
    [
        (wasserstein, "weight_decay", np.float32(0.5)),
        (wasserstein, "weight_decay", torch.tensor(0.5)),
        (wasserstein, "gamma", np.float64(0.5)),
        (frobenius, "tolerance_grad", np.float32(0.5)),
        (prox_of, "gamma", torch.tensor([0.5])),
        (jko, "epsilon", torch.tensor(2.0)),
        (Sinkhorn, "blur", np.float32(0.5)),
        (wasserstein, "max_eval", np.int64(5)),
        (Sliced, "projections", np.int32(5)),
        (grid, "bias", np.bool_(True)),
        (layer, "width", np.int64(5)),
    ],
    ids=label,
)
def test_numbers_of_numpy_and_torch_are_numbers(
    make: Callable[..., Any], name: str, value: Any
) -> None:
    make(**{name: value})


# --- objects ------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [wasserstein, prox_of])
@pytest.mark.parametrize("value", [None, 5, EMD, nn.ReLU(), lambda V, W: 0.0], ids=label)
def test_no_distance_is_refused_when_the_optimizer_is_made(
    make: Callable[..., Any], value: Any
) -> None:
    message = refusal(make, "distance", value)
    assert message.startswith("distance must be a name or an object with options, such as EMD()")


@pytest.mark.parametrize("make", [wasserstein, frobenius, prox_of])
@pytest.mark.parametrize("value", [None, 5, LBFGS, torch.optim.Adam], ids=label)
def test_no_solver_is_refused_when_the_optimizer_is_made(
    make: Callable[..., Any], value: Any
) -> None:
    message = refusal(make, "solver", value)
    assert message.startswith("solver must be a name or an object with options, such as LBFGS()")


@pytest.mark.parametrize("make", [BFGS, LBFGS])
@pytest.mark.parametrize("value", [None, 5, WeakWolfe, "wolfe"], ids=label)
def test_no_line_search_is_refused_when_the_solver_is_made(make: Any, value: Any) -> None:
    assert "such as WeakWolfe()" in refusal(make, "line_search", value)


@pytest.mark.parametrize("make", [wasserstein, prox_of])
@pytest.mark.parametrize(
    "value",
    [
        *(0, 3, True, "signs", [[0, 1], [1, 0]], torch.zeros(3), torch.zeros(2, 2).long()),
        *([0.5, 1.0, 2.0], ["a"], {0: 1}, np.zeros(3), torch.tensor(1), object()),
        *([0, 1], (0, 1, 1, 0), np.arange(7), torch.arange(5)),  # of another length
    ],
    ids=label,
)
def test_what_is_no_label_per_particle_is_refused(make: Callable[..., Any], value: Any) -> None:
    assert "classes must be" in refusal(make, "classes", value)


@pytest.mark.parametrize("kind", [list, tuple, np.asarray, torch.tensor])
def test_labels_restrict_the_exchange_whatever_holds_them(kind: Callable[[Any], Any]) -> None:
    W = torch.tensor([[0.0], [1.0], [2.0], [3.0]], dtype=torch.float64)
    T = W.flip(0)  # free particles need not move at all

    def pulled(V: Tensor) -> Tensor:
        return 50.0 * (V - T).square().sum()

    labels = kind([0, 0, 1, 1])
    _, free = prox(pulled, W, 100.0)
    V, report = prox(pulled, W, 100.0, classes=labels)
    assert free.wasserstein_sq == pytest.approx(0.0, abs=1e-6)
    assert report.assignment is not None
    assert sorted(report.assignment[:2].tolist()) == [0, 1]  # nobody leaves its class
    assert report.wasserstein_sq == pytest.approx(4.0, rel=1e-2)
    cloud = nn.Parameter(W.clone())
    opt = WassersteinProx([cloud], 100.0, classes=labels)
    opt.step(closure_for(opt, lambda: pulled(cloud)))
    assert torch.allclose(cloud.detach(), V, atol=1e-9)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: prox(5, torch.ones(3, 2), 1.0), "fn must be a function of the cloud, got 5"),
        (lambda: prox(torch.sum, [[1.0]], 1.0), r"W must be a tensor \(m, D\), got list"),
        (lambda: prox(lambda V: V.sum(1), torch.ones(3, 2), 1.0), "fn must return one real number"),
        (lambda: prox(lambda V: V.sum() * 1j, torch.ones(3, 2), 1.0), "fn must return one real"),
        (lambda: prox(lambda V: None, torch.ones(3, 2), 1.0), "fn must return a 0-d tensor, got N"),
        (lambda: prox(lambda V: V.sum().item(), torch.ones(3, 2), 1.0), "fn must return a 0-d ten"),
        (lambda: prox(lambda V: V.detach().sum(), torch.ones(3, 2), 1.0), r"without \.detach"),
        (
            lambda: prox(lambda V: torch.ones((), requires_grad=True) * 2, torch.ones(3, 2), 1.0),
            "fn must depend on its argument through autograd",
        ),
        (
            lambda: certify_training(nn.Sequential(nn.Linear(1, 3)), lambda: 0.0, beta=1.0),
            r"layer must be a MeanFieldLayer, .*, got Sequential: .*from_linear",
        ),
        (
            lambda: MeanFieldLayer.from_neurons(torch.ones(3, 2), torch.full((3,), math.nan)),
            "alpha must be finite, got NaN",
        ),
        (
            lambda: MeanFieldLayer.from_neurons(torch.full((3, 2), math.inf), torch.ones(3)),
            "w must be finite, got NaN or infinity",
        ),
        (lambda: GridLayer("ab"), "axes must be a list of 1-d tensors"),  # type: ignore[arg-type]
        (lambda: GridLayer(["ab"]), r"axes\[0\] must be a 1-d tensor"),  # type: ignore[list-item]
        (lambda: jko(precision="double"), "precision must be torch.float64 or torch.float32, got"),
        (lambda: jko(precision=torch.int64), "precision must be torch.float64 or torch.float32"),
        (lambda: particle_groups(5), "module must be a torch.nn.Module, got int"),  # type: ignore[arg-type]
        (lambda: particle_groups(nn.ReLU(), pairs=5), "pairs must be a list of pairs"),  # type: ignore[arg-type]
        (lambda: particle_groups(nn.ReLU(), pairs=[5]), "pairs must hold pairs of submodule names"),  # type: ignore[list-item]
        (lambda: particle_groups(nn.ReLU(), pairs=[(5, 6)]), "pairs must hold pairs of submodule"),  # type: ignore[list-item]
        (lambda: wasserstein_sq("ab", torch.ones(2, 2)), "X must be a tensor, an array or lists"),
        (lambda: WassersteinProx(nn.Linear(2, 3)), r"params must be .*\.parameters\(\)"),
        (lambda: WassersteinProx(None), r"params must be .*\.parameters\(\)"),
    ],
)
def test_an_argument_of_the_wrong_kind_is_named(call: Callable[[], Any], message: str) -> None:
    with pytest.raises((TypeError, ValueError, RuntimeError), match=message):
        call()


def test_frozen_output_weights_that_are_not_finite_are_refused() -> None:
    layer = MeanFieldLayer(1, 4, parameterization="signed")
    layer.alpha = torch.full((4,), math.nan)
    with pytest.raises(ValueError, match=r"layer\.alpha, the frozen output weights, must be fin"):
        WassersteinProx(layer.parameters())


@pytest.mark.parametrize("gamma", [1e-39, 1e-44, 5e-324])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_gamma_too_small_for_the_numbers_is_no_move(gamma: float, dtype: torch.dtype) -> None:
    W = torch.tensor([[1.0, 2.0], [3.0, 5.0]], dtype=dtype)
    V, report = prox(lambda V: V.square().sum(), W, gamma)
    assert torch.equal(V, W)
    w = nn.Parameter(W.clone())
    opt = WassersteinProx([w], gamma)
    opt.step(closure_for(opt, lambda: w.square().sum()))
    assert torch.equal(w.detach(), W)
    assert opt.report is not None
    assert opt.report.status == report.status
    assert opt.report.objective == report.objective == 39.0
