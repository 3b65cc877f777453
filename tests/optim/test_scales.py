"""Steps whatever the scales: gammas that differ by orders, gradients that overflow or vanish.

The oracle is the minimum of two quadratics, block by block: V = (s T + kappa W)/(s + kappa) with
kappa = 1/(m gamma).
"""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import strategies as st
from torch import Tensor, nn

from cases.families import tried
from conftest import closure_for
from torch_wprox import FrobeniusProx, prox
from torch_wprox.report import Status, StepReport

F32, F64 = torch.float32, torch.float64


def two_blocks(
    gammas: tuple[float, float], solver: str, dtype: torch.dtype, seed: int
) -> tuple[float, StepReport]:
    """Return how far above its minimum P is after one step, as a share of its fall."""
    torch.manual_seed(seed)
    shapes = ((6, 2), (4, 3))
    params = [nn.Parameter(torch.randn(*shape, dtype=F64).to(dtype)) for shape in shapes]
    targets = [torch.randn(*shape, dtype=F64).to(dtype) for shape in shapes]
    anchors = [p.detach().clone().double() for p in params]
    kappas = [1.0 / (len(p) * gamma) for p, gamma in zip(params, gammas, strict=True)]
    opt = FrobeniusProx(
        [{"params": [p], "gamma": gamma} for p, gamma in zip(params, gammas, strict=True)],
        solver=solver,
    )

    def loss() -> Tensor:
        pairs = zip(params, targets, strict=True)
        return torch.stack([(p - t).square().sum() for p, t in pairs]).sum() / 2

    opt.step(closure_for(opt, loss))
    assert opt.report is not None

    def value(points: list[Tensor]) -> float:
        return sum(
            0.5 * float((v - t.double()).square().sum() + kappa * (v - w).square().sum())
            for v, t, w, kappa in zip(points, targets, anchors, kappas, strict=True)
        )

    exact = [
        (t.double() + kappa * w) / (1 + kappa)
        for t, w, kappa in zip(targets, anchors, kappas, strict=True)
    ]
    least = value(exact)
    return (value([p.detach().double() for p in params]) - least) / (
        value(anchors) - least
    ), opt.report


@tried(
    quick=15,
    nightly=600,
    exponents=st.tuples(st.integers(-12, 6), st.integers(-12, 6)),
    solver=st.sampled_from(["gd", "bfgs", "lbfgs", "auto"]),
    seed=st.integers(0, 10**6),
)
def test_groups_reach_the_minimum_in_float32_whatever_their_gammas(
    exponents: tuple[int, int], solver: str, seed: int
) -> None:
    # float32 stores the anchor, so a move shorter than its rounding is lost with all its fall.
    gammas = (10.0 ** exponents[0], 10.0 ** exponents[1])
    above, _ = two_blocks(gammas, solver, F32, seed)
    largest = max(gammas)
    assert above <= (1e-5 if largest >= 1e-2 else 1e-2 if largest >= 1e-5 else 1.0)


@pytest.mark.parametrize("solver", ["bfgs", "lbfgs"])
@pytest.mark.parametrize("gammas", [(1e-6, 1.0), (1e-8, 1.0), (1e-6, 1e6), (1.0, 1e-4)])
def test_gammas_that_differ_by_orders_cost_no_more_evaluations_than_equal_ones(
    solver: str, gammas: tuple[float, float]
) -> None:
    above, report = two_blocks(gammas, solver, F64, seed=0)
    assert above <= 1e-12
    assert report.evaluations <= 8  # equal ones take 5; before, 31 to 190


@tried(
    quick=20,
    nightly=400,
    dtype=st.sampled_from([F32, F64]),
    share=st.floats(-0.95, 0.85),
    solver=st.sampled_from(["gd", "bfgs", "auto"]),
)
def test_a_gradient_whose_norm_overflows_or_vanishes_is_a_gradient(
    dtype: torch.dtype, share: float, solver: str
) -> None:
    # s up to the 0.85th power of the largest number: its square is none.
    scale = 10.0 ** (share * math.log10(torch.finfo(dtype).max))
    W = torch.tensor([[1.0, 2.0], [3.0, -1.0], [0.5, 0.0]], dtype=dtype)
    T = torch.tensor([[2.0, 2.0], [3.0, 1.0], [-0.5, 1.0]], dtype=dtype)
    V, report = prox(
        lambda V: scale * (V - T).square().sum() / 2,
        W,
        1.0 / (3.0 * scale),
        distance="frobenius",
        solver=solver,
    )
    # kappa = s: half way. Where squares of gradients vanish a method may give up, never lie.
    if share > -0.45 or report.status is Status.CONVERGED:
        assert torch.allclose(V, (W + T) / 2, atol=1e-3)
    assert report.objective < report.loss_before
    assert 0 <= report.residual < math.inf
