"""wasserstein_sq at the edges: every scale, every kind of input, masses that are none."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import strategies as st
from scipy.optimize import linprog
from torch import Tensor

from cases.families import tried
from conftest import label
from torch_wprox import wasserstein_sq

F64 = torch.float64


def clouds(seed: int, m: int, n: int, D: int = 2) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Two clouds with masses of total 1."""
    generator = torch.Generator().manual_seed(seed)
    X, Y = (torch.randn(k, D, generator=generator, dtype=F64) for k in (m, n))
    a, b = (torch.rand(k, generator=generator, dtype=F64) + 0.1 for k in (m, n))
    return X, Y, a / a.sum(), b / b.sum()


def least_cost(X: Tensor, Y: Tensor, a: Tensor, b: Tensor) -> float:
    """The transport cost by scipy's linear program."""
    m, n = len(X), len(Y)
    cost = torch.cdist(X, Y).square().numpy().ravel()
    rows = np.kron(np.eye(m), np.ones(n))
    columns = np.kron(np.ones(m), np.eye(n))
    found = linprog(cost, A_eq=np.vstack([rows, columns])[:-1], b_eq=np.append(a, b)[:-1])
    return float(found.fun)


CASES: dict[str, Any] = {
    "seed": st.integers(0, 10**6),
    "m": st.integers(1, 7),
    "n": st.integers(1, 7),
    "weighted": st.booleans(),
}


@tried(
    quick=25,
    nightly=2000,
    exponent=st.integers(-480, 480),
    masses=st.integers(-900, 900),
    **CASES,
)
def test_it_is_homogeneous_to_the_bit_in_points_and_masses(
    seed: int, m: int, n: int, weighted: bool, exponent: int, masses: int
) -> None:
    # Powers of two: W2^2 of 2^k X and 2^k Y is 2^2k W2^2, of masses 2^l a and 2^l b it is 2^l W2^2.
    X, Y, a, b = clouds(seed, m, n)
    scale = 2.0**exponent
    plain = wasserstein_sq(X, Y, a, b) if weighted else wasserstein_sq(X, Y)
    if weighted and abs(2 * exponent + masses) < 900:
        mass = 2.0**masses
        scaled = wasserstein_sq(scale * X, scale * Y, mass * a, mass * b)
        expected = math.ldexp(plain.item(), 2 * exponent + masses)
        assert scaled.item() == pytest.approx(expected, rel=1e-14)
    scaled = wasserstein_sq(scale * X, scale * Y, a, b) if weighted else None
    scaled = wasserstein_sq(scale * X, scale * Y) if scaled is None else scaled
    assert scaled.item() == math.ldexp(plain.item(), 2 * exponent)


@tried(quick=15, nightly=1000, exponent=st.integers(-20, 20), **CASES)
def test_it_is_the_optimum_of_the_linear_program_at_every_scale(
    seed: int, m: int, n: int, weighted: bool, exponent: int
) -> None:
    X, Y, a, b = clouds(seed, m, n)
    if not weighted:
        a, b = torch.full((m,), 1 / m, dtype=F64), torch.full((n,), 1 / n, dtype=F64)
    scale = 10.0**exponent
    found = (
        wasserstein_sq(scale * X, scale * Y, a, b)
        if weighted
        else wasserstein_sq(scale * X, scale * Y)
    )
    # scipy's own tolerances are 1e-7.
    assert found.item() / scale**2 == pytest.approx(least_cost(X, Y, a, b), rel=1e-6)


@pytest.mark.parametrize("scale", [1e-300, 1e-20, 1e-12, 1e300])
def test_tiny_masses_are_masses(scale: float) -> None:
    # POT's simplex method ends early on them, and crashes the process below 1e-200.
    X, Y, a, b = clouds(0, 7, 5)
    expected = wasserstein_sq(X, Y, a, b).item()
    assert wasserstein_sq(X, Y, scale * a, scale * b).item() / scale == pytest.approx(expected)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("n", [3, 4])
@pytest.mark.parametrize("which", ["X", "Y"])
def test_points_that_are_not_finite_are_refused(bad: float, n: int, which: str) -> None:
    # Before, W2^2 was 0 or -1.
    X, Y = torch.ones(3, 2), torch.ones(n, 2)
    (X if which == "X" else Y)[1, 0] = bad
    with pytest.raises(ValueError, match=f"{which} must be finite, got NaN or infinity in 1 of"):
        wasserstein_sq(X, Y)


@pytest.mark.parametrize("n", [3, 4])
def test_complex_points_are_real_ones_of_twice_the_dimension(n: int) -> None:
    X, Y = torch.randn(3, 2, dtype=torch.complex128), torch.randn(n, 2, dtype=torch.complex128)
    real = [torch.view_as_real(P).flatten(1) for P in (X, Y)]
    assert wasserstein_sq(X, Y).item() == wasserstein_sq(*real).item() > 0
    assert wasserstein_sq(X.conj(), X.conj()).item() == 0


@pytest.mark.parametrize(
    "of",
    [
        lambda P: P,
        lambda P: P.tolist(),
        lambda P: P.numpy(),
        lambda P: P.long(),
        lambda P: P.to(torch.int8).numpy(),
        lambda P: tuple(map(tuple, P.tolist())),
        lambda P: P.half(),
        lambda P: P.bfloat16(),
    ],
    ids=["tensor", "lists", "numpy", "integers", "small integers", "tuples", "half", "bfloat16"],
)
@pytest.mark.parametrize("masses", [False, True])
def test_whatever_holds_numbers_is_a_cloud(of: Any, masses: bool) -> None:
    X, Y = torch.tensor([[0.0, 0.0], [4.0, 0.0]]), torch.tensor([[1.0, 0.0], [4.0, 2.0]])
    a, b = ([1, 3], np.array([1, 3])) if masses else (None, None)
    expected = 1 * 1 + 3 * 4 if masses else (1 + 4) / 2
    assert wasserstein_sq(of(X), of(Y), a, b).item() == expected


def test_nothing_is_written_into_what_the_caller_gave() -> None:
    X, Y, a, b = clouds(0, 4, 5)
    b = b * (1 + 1e-8)  # another total, within rounding
    given = [t.clone() for t in (X, Y, a, b)]
    wasserstein_sq(X, Y, a, b)
    assert all(torch.equal(t, before) for t, before in zip((X, Y, a, b), given, strict=True))


@pytest.mark.parametrize(
    ("masses", "message"),
    [
        ((torch.zeros(3), torch.zeros(2)), "a must have mass, got a total of 0"),
        ((torch.ones(3) / 3, torch.zeros(2)), "b must have mass, got a total of 0"),
        ((torch.tensor([1.0, -1.0, 1.0]), torch.ones(2) / 2), "a must be finite masses >= 0"),
        ((torch.tensor([math.nan, 0, 1]), torch.ones(2) / 2), "a must be finite masses >= 0"),
        ((torch.tensor([math.inf, 0, 1]), torch.ones(2) / 2), "a must be finite masses >= 0"),
        ((torch.ones(3), torch.ones(2)), "one total mass, got 3.0 and 2.0"),
        ((torch.ones(2), None), r"a must be \(3,\) real masses"),
        ((torch.ones(3) * 1j, None), r"a must be \(3,\) real masses"),
        (("ab", None), "a must be a tensor, an array or a list of masses, got 'ab'"),
    ],
)
def test_masses_that_are_none_are_refused(masses: Any, message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        wasserstein_sq(torch.ones(3, 2), torch.ones(2, 2), *masses)


@pytest.mark.parametrize("points", ["ab", None, [[1.0], [1.0, 2.0]], object()], ids=label)
def test_what_is_no_array_is_refused(points: Any) -> None:
    with pytest.raises((TypeError, ValueError), match="X"):
        wasserstein_sq(points, torch.ones(2, 1))


@pytest.mark.parametrize("n", [4, 6])
def test_the_gradient_is_that_of_the_plan_held_fixed_at_tiny_scales_too(n: int) -> None:
    X, Y, _, _ = clouds(1, 4, n)
    grads = []
    for scale in (1.0, 2.0**-40):
        P = (scale * X).requires_grad_()
        wasserstein_sq(P, scale * Y).backward()
        assert P.grad is not None
        grads.append(P.grad / scale)
    assert torch.equal(*grads)
    shift = torch.full_like(X, 1e-6)
    difference = wasserstein_sq(X + shift, Y) - wasserstein_sq(X - shift, Y)
    assert float((grads[0] * shift).sum()) == pytest.approx(float(difference) / 2, rel=1e-6)
