"""The master problem of the atoms: feasible and not above its start, whatever the numbers are."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from torch_wprox.certified.bound.simplex_qp import simplex_qp


def value(Q: np.ndarray, c: np.ndarray, w: np.ndarray) -> float:
    used = w > 0
    return float(0.5 * w[used] @ Q[np.ix_(used, used)] @ w[used] + c[used] @ w[used])


@settings(max_examples=150, deadline=None, derandomize=True)
@given(
    size=st.integers(1, 12),
    rank=st.integers(0, 6),
    spread=st.floats(0.0, 25.0),
    seed=st.integers(0, 10_000),
)
def test_weights_are_feasible_and_not_above_the_start_at_any_spread_of_sizes(
    size: int, rank: int, spread: float, seed: int
) -> None:
    g = np.random.default_rng(seed)
    A = g.standard_normal((size, rank)) * 10.0 ** g.uniform(0, spread, (size, 1))
    Q, c = A @ A.T, g.standard_normal(size) * 10.0 ** g.uniform(0, spread, size)
    start = g.dirichlet(np.ones(size))
    w = simplex_qp(Q, c, start)
    assert w.min() >= 0
    assert w.sum() == pytest.approx(1.0, rel=1e-12)
    best = min(value(Q, c, start), float((0.5 * np.diag(Q) + c).min()))
    assert value(Q, c, w) <= best + 1e-12 * (abs(best) + value(Q, np.abs(c), start))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_an_atom_that_is_no_number_has_no_weight(bad: float) -> None:
    Q, c = np.eye(3), np.array([0.0, bad, 0.5])
    w = simplex_qp(Q, c, np.array([0.0, 0.0, 1.0]))
    assert np.isfinite(w).all()
    assert w[1] == 0
    assert w.sum() == 1
