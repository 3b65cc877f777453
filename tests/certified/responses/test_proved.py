"""Proved numbers below the minimum over the particles, where best responses are searched."""

from __future__ import annotations

import itertools
import time

import numpy as np
import pytest
import torch
from scipy.optimize import lsq_linear
from torch import Tensor

from torch_wprox.certified.problem.particle_problem import ParticleProblem
from torch_wprox.certified.responses.best_response import BestResponse
from torch_wprox.certified.responses.proved import trained_values

F64 = torch.float64


def normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def problem(
    X: Tensor, W: Tensor, a: Tensor | None, k: int = 1, labels: Tensor | None = None
) -> ParticleProblem:
    return ParticleProblem(
        features=X,
        anchors=W,
        stiffness=0.5,
        coefficients=a,
        scale=1.0,
        outputs=k,
        offset=torch.zeros(k, dtype=F64),
        labels=labels,
    )


def smallest(X: Tensor, g: Tensor, w: Tensor, kappa: float) -> float:
    """min_v <g, relu(X v)> + (kappa/2)|v - w|^2 over all patterns of activation."""
    best = np.inf
    A, weights, anchor = X.numpy(), g.numpy(), w.numpy()
    for signs in itertools.product((1.0, -1.0), repeat=len(A)):
        s = np.array(signs)
        free = anchor - A.T @ (weights * (s > 0)) / kappa
        cone = (s[:, None] * A).T
        v = free + cone @ lsq_linear(cone, -free, (0, np.inf), "bvls", tol=1e-14).x
        value = weights @ np.maximum(A @ v, 0) + 0.5 * kappa * np.sum((v - anchor) ** 2)
        best = min(best, float(value))
    return best


@pytest.mark.parametrize("seed", range(3))
def test_proof_is_just_below_the_minimum_for_every_multiple_of_the_gradient(seed: int) -> None:
    X, W, a = normal(seed, 6, 4), normal(seed + 1, 3, 4), normal(seed + 2, 3, 2)
    lam = normal(seed + 3, 6, 2)
    p = problem(X, W, a, k=2)
    respond = BestResponse(p)
    assert not respond.is_exact
    slopes = [lam, 0.7 * lam, 0.3 * lam + 1e-6 * normal(seed + 4, 6, 2)]
    found = respond.proved(slopes, seconds=30.0, tolerance=1e-4)
    assert found is not None
    for i, (number, slope) in enumerate(zip(found, slopes, strict=True)):
        exact = sum(smallest(X, slope @ a[j], W[j], p.stiffness) for j in range(3))
        assert number <= exact + 1e-12
        if i == 0:  # the tolerance holds for the gradient itself
            assert number >= exact - 1e-3 * (abs(exact) + float(W.square().sum()))


def test_proof_with_exchange_is_below_every_assignment() -> None:
    X, W, lam = normal(0, 5, 4), normal(1, 3, 4), normal(2, 5, 1)
    a = torch.tensor([[1.0], [-1.0], [-2.0]], dtype=F64)
    p = problem(X, W, a, labels=torch.zeros(3, dtype=torch.long))
    found = BestResponse(p).proved([lam], seconds=30.0, tolerance=1e-4)
    assert found is not None
    exact = min(
        sum(smallest(X, lam @ a[i], W[j], p.stiffness) for i, j in enumerate(order))
        for order in itertools.permutations(range(3))
    )
    assert exact - 1e-2 * abs(exact) <= found[0] <= exact + 1e-12


@pytest.mark.parametrize("size", [0.02, 0.1])
def test_proof_for_trained_output_weights_is_below_the_exact_response(size: float) -> None:
    X, W = normal(0, 8, 2), 0.5 * normal(1, 5, 3)
    lam = size * normal(2, 8, 1)
    p = problem(X, W, None)
    slopes = [lam, 0.5 * lam]
    until = time.monotonic() + 30.0
    found = trained_values(p, slopes, W, X, tolerance=1e-3, until=until).sum(1)
    respond = BestResponse(p)
    assert respond.is_exact
    for number, slope in zip(found.tolist(), slopes, strict=True):
        exact = respond(slope).value
        assert number <= exact
        # Loose, as the docstring says, but no worse than the size of the anchors.
        assert number >= exact - 2.0 * float(W.square().sum()) * p.stiffness


def test_nothing_is_proved_where_the_dual_is_not_finite() -> None:
    X, W = normal(0, 8, 4), normal(1, 5, 5)
    found = BestResponse(problem(X, W, None)).proved([5.0 * normal(2, 8, 1)], seconds=5.0)
    assert found == [-np.inf]


def test_several_outputs_with_trained_weights_have_no_proof() -> None:
    X, W = normal(0, 8, 4), normal(1, 5, 6)
    assert BestResponse(problem(X, W, None, k=2)).proved([normal(2, 8, 2)], seconds=5.0) is None


def test_exact_responses_are_their_own_proof() -> None:
    X, W, a, lam = normal(0, 8, 3), normal(1, 5, 3), normal(2, 5, 1), normal(3, 8, 1)
    respond = BestResponse(problem(X, W, a))
    assert respond.proved([lam], seconds=0.0) == [respond(lam).value]
