"""Properties tried by families of cases: a few in every run of the tests, many at night."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings

QUICK, NIGHTLY = 20, 1000


def tried(quick: int = QUICK, nightly: int = NIGHTLY, **strategies: Any) -> Callable[[Any], Any]:
    """Try a property on ``quick`` cases in every run and on ``nightly`` ones at night.

    The property is a function of the drawn cases, by keyword, after its parametrised arguments.

    Args:
        quick: Cases in every run.
        nightly: Cases of the same test under ``make nightly``.
        strategies: What each argument is drawn from.
    """
    often = [pytest.param(quick), pytest.param(nightly, marks=pytest.mark.nightly)]

    def decorated(prove: Callable[..., None]) -> Callable[..., None]:
        drawn = given(**strategies)

        def test(examples: int, **fixed: Any) -> None:
            def once(**cases: Any) -> None:
                prove(**fixed, **cases)

            checks = [HealthCheck.too_slow, HealthCheck.filter_too_much]
            settings(max_examples=examples, deadline=None, suppress_health_check=checks)(
                drawn(once)
            )()

        test.__name__, test.__doc__, test.__module__ = (
            prove.__name__,
            prove.__doc__,
            prove.__module__,
        )
        # What pytest fills in: the parametrised arguments, and how many cases to try.
        arguments = [*(set(inspect.signature(prove).parameters) - set(strategies)), "examples"]
        keyword = inspect.Parameter.KEYWORD_ONLY
        parameters = [inspect.Parameter(name, keyword) for name in arguments]
        test.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        return pytest.mark.parametrize("examples", often)(test)

    return decorated
