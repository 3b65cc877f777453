"""Steps on a grid at the ends of their ranges: huge gamma, methods that fail, tolerances."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import strategies as st

from cases.families import tried
from conftest import closure_of, sinus_data
from torch_wprox import EntropicJKO, GridLayer
from torch_wprox.jko import step as jko_step
from torch_wprox.report import JKOReport, Status


def sinus_grid(cells: int = 7, mass: float = 1.0, seed: int | None = None) -> GridLayer:
    axis = torch.linspace(-4, 4, cells, dtype=torch.float64)
    weight = None
    if seed is not None:
        weight = torch.rand(
            2 * cells**2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
        )
        weight /= weight.sum()
    return GridLayer([axis, axis], mass=mass, dtype=torch.float64, weight=weight)


def steps_of(layer: GridLayer, count: int = 1, **options: Any) -> list[JKOReport]:
    """Take steps on the note's data; warnings of methods that gave up are what they should be."""
    x, y = sinus_data()
    opt = EntropicJKO(layer, **options)
    reports = []
    for _ in range(count):
        opt.step(closure_of(layer, opt, x, y))
        assert opt.report is not None
        reports.append(opt.report)
    return reports


@pytest.mark.parametrize("debiased", [False, True])
@pytest.mark.parametrize(("mass", "gamma"), [(1.0, 1e9), (40.0, 1e9)])
def test_lbfgs_never_ends_above_its_start_however_large_gamma_is(
    mass: float, gamma: float, debiased: bool
) -> None:
    # At such a gamma f decides alone. Before, f rose from 3e-13 to 1460, from .74 to 3.2.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it did not converge is said, and no error
        reports = steps_of(
            sinus_grid(5, mass),
            2,
            gamma=gamma,
            epsilon=8.0,
            method="lbfgs",
            debiased=debiased,
            max_rounds=2,
            max_iterations=60,
        )
    if mass == 1.0:
        assert reports[0].loss_after < 0.48  # the minimum on this grid is .4759
    for report in reports:
        assert report.loss_after <= report.loss_before * (1 + 1e-6)


@tried(
    quick=4,
    nightly=200,
    method=st.sampled_from(["newton", "lbfgs", "krylov"]),
    debiased=st.booleans(),
    exponent=st.integers(-9, 9),
    mass=st.sampled_from([0.1, 1.0, 40.0]),
    seed=st.integers(0, 10**6),
)
def test_no_method_ends_above_its_anchor(
    method: str, debiased: bool, exponent: int, mass: float, seed: int
) -> None:
    layer = sinus_grid(5, mass, seed)
    q = layer.weight.detach().clone()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        (report,) = steps_of(
            layer,
            gamma=10.0**exponent,
            epsilon=8.0,
            method=method,
            debiased=debiased,
            max_rounds=3,
            max_iterations=30,
        )
    assert torch.isfinite(layer.weight).all()
    assert bool((layer.weight >= 0).all())
    mass_of = layer.weight.detach().view(2, -1).sum(1), q.view(2, -1).sum(1)
    assert torch.allclose(*mass_of, rtol=0, atol=1e-13)
    if debiased:  # the divergence is >= 0 and 0 at the anchor
        assert report.loss_after <= report.loss_before + 1e-9 * abs(report.loss_before)
        bound = report.tau * report.loss_before
        assert report.objective <= bound + 1e-9 * abs(bound)


@pytest.mark.parametrize("debiased", [False, True])
def test_a_method_that_ends_above_the_anchor_moves_nothing_and_says_so(
    debiased: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    solve: Callable[..., Any] = jko_step.solve_newton

    def failing(*args: Any, **limits: Any) -> Any:
        found = solve(*args, **limits)
        return dataclasses.replace(found, objective=found.objective + 1e3, status=Status.STALLED)

    monkeypatch.setitem(jko_step._OUTPUT_METHODS, "newton", failing)
    layer = sinus_grid()
    q = layer.weight.detach().clone()
    with pytest.warns(UserWarning, match="found no measure below the anchor") as seen:
        reports = steps_of(layer, 2, gamma=1.0, epsilon=2.0, debiased=debiased)
    assert len(seen) == 1
    assert torch.equal(layer.weight, q)
    assert [r.status for r in reports] == [Status.STALLED] * 2
    assert reports[0].loss_after == reports[0].loss_before


@pytest.mark.parametrize(
    ("mass", "gamma", "seed"),
    [(1.0, 1.0, 0), pytest.param(40.0, 10.0, None, marks=pytest.mark.nightly)],
)
def test_a_debiased_step_ends_as_near_to_its_minimum_as_its_tolerance_says(
    mass: float, gamma: float, seed: int | None
) -> None:
    def objective(tolerance: float | None, rounds: int) -> float:
        layer = sinus_grid(7, mass, seed)
        options = {"gamma": gamma, "epsilon": 2.0, "debiased": True, "tolerance": tolerance}
        (report,) = steps_of(layer, max_rounds=rounds, **options)
        assert report.status is Status.CONVERGED
        assert report.rounds < rounds
        return report.objective / report.tau

    least = objective(1e-9, 1000)
    for tolerance, share in ((None, 3e-5), (1e-6, 1e-6)):
        # The remaining fall is an estimate: within a factor of 5.
        assert objective(tolerance, 1000) - least <= 5 * share * max(abs(least), 0.1)


def test_rounds_that_are_used_up_are_no_convergence() -> None:
    (report,) = steps_of(sinus_grid(), gamma=1.0, epsilon=2.0, debiased=True, max_rounds=3)
    assert report.rounds == 3
    assert report.status is Status.MAX_ITER
