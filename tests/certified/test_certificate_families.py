"""Certificates by families: small random steps of every kind, drawn by hypothesis.

The quick run tries a few dozen, the nightly one thousands; docs/stability.md says how many.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cases.certificate_cases import random_step, unfaithful_closure

SEEDS = st.integers(0, 10**9)


def families(quick: int, nightly: int) -> Callable[[Callable[[int], None]], Any]:
    """Run a property of a seed a few times, and many times by night."""

    def decorate(check: Callable[[int], None]) -> Any:
        def run(count: int) -> None:
            @settings(max_examples=count, deadline=None, derandomize=True, database=None)
            @given(SEEDS)
            def property_(seed: int) -> None:
                check(seed)

            property_()

        marks = [
            pytest.param(quick, id="quick"),
            pytest.param(nightly, id="nightly", marks=pytest.mark.nightly),
        ]
        run.__doc__ = check.__doc__
        return pytest.mark.parametrize("count", marks)(run)

    return decorate


def below(bound: float, value: float) -> bool:
    """A bound below a value that another solver attains, up to that value's own rounding."""
    return bound <= value + 1e-6 * abs(value)


def check_convex(seed: int, family: str) -> None:
    """bound <= answer <= answer of the local solver with half of the budget, and nothing fails."""
    step = random_step(seed, family)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="the step has no lower bound")
        report = step.taken("global")
    half = step.taken("lbfgs", max_eval=500)
    local = step.taken("lbfgs")
    # Evaluations repeat to rounding; what L-BFGS makes of it is the least that is promised.
    rounding = 1e-5 if step.x.dtype.itemsize == 4 else 1e-9
    assert report.objective <= report.loss_before
    assert report.objective <= half.objective + rounding * abs(half.objective)
    if report.lower_bound is not None:
        assert report.gap is not None
        assert report.gap >= 0
        assert below(report.lower_bound, local.objective)
    assert not report.certified or report.lower_bound is not None


@families(quick=6, nightly=1000)
def test_a_smooth_convex_step_has_a_bound_below_and_no_worse_answer_than_lbfgs(seed: int) -> None:
    check_convex(seed, "smooth")


@families(quick=3, nightly=300)
def test_a_convex_step_with_kinks_has_a_bound_below_and_no_worse_answer_than_lbfgs(
    seed: int,
) -> None:
    check_convex(seed, "kinked")


@families(quick=8, nightly=1000)
def test_a_step_that_is_not_convex_is_refused_or_its_bound_is_true_all_the_same(
    seed: int,
) -> None:
    step = random_step(seed, "nonconvex")
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="the step has no lower bound")
            report = step.taken("global")
    except ValueError as error:
        assert "not convex in the layer's output" in str(error)  # noqa: PT017
        return
    if report.lower_bound is None:
        return
    attained = [step.taken(solver).objective for solver in ("bfgs", "lbfgs", "gd")]
    assert all(below(report.lower_bound, value) for value in attained), step.name


@families(quick=8, nightly=1000)
def test_a_closure_that_is_not_one_function_is_refused_or_its_bound_is_true_all_the_same(
    seed: int,
) -> None:
    step = random_step(seed, "smooth")
    fault, closure = unfaithful_closure(step, seed)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="the step has no lower bound")
            report = step.taken("global", closure=closure)
    except ValueError as error:
        words = ("one function", "another way", "input changed", "function of the output")
        assert any(word in str(error) for word in words), fault  # noqa: PT017
        return
    assert report.lower_bound is None or not report.certified or "penalty" in fault, fault
