"""The master problem of the rays: lengths in groups, against nonnegative least squares."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.optimize import nnls

from torch_wprox.certified.bound.cone_qp import ConeQP


def drawn(samples: int, groups: int, each: int, free: int, seed: int) -> tuple[ConeQP, np.ndarray]:
    """A problem, and its minimiser by SciPy: free lengths are differences of two."""
    rng = np.random.default_rng(seed)
    size = groups * each
    group = np.append(np.repeat(np.arange(groups), each), groups + np.arange(free))
    A = rng.standard_normal((samples, size + free))
    K = rng.uniform(0.5, 2.0, groups + free)
    target = rng.standard_normal(samples)
    sums = np.sqrt(K)[:, None] * (group == np.arange(groups + free)[:, None])
    pull = rng.standard_normal(groups + free)
    stacked = np.vstack([A, sums])
    right = np.concatenate([target, pull])
    signed = np.hstack([stacked, -stacked[:, size:]])
    x, _ = nnls(signed, right)
    x[size : size + free] -= x[size + free :]
    program = ConeQP(
        torch.from_numpy(A.T.copy()),
        torch.from_numpy(-stacked.T @ right),
        torch.from_numpy(group),
        torch.from_numpy(K),
        torch.arange(size + free) >= size,
    )
    return program, x[: size + free]


# few samples and many groups: groups are eliminated; many samples: the Gram matrix is factored
@pytest.mark.parametrize(
    ("samples", "groups", "each", "free"),
    [(3, 40, 3, 0), (4, 60, 2, 2), (60, 5, 6, 0), (50, 4, 8, 2)],
)
def test_lengths_are_those_of_nonnegative_least_squares(
    samples: int, groups: int, each: int, free: int
) -> None:
    for seed in range(5):
        program, expected = drawn(samples, groups, each, free, seed)
        found = program.minimizer(torch.zeros(len(expected), dtype=torch.float64))
        # Minimisers may differ where columns depend on each other; values may not.
        assert program.value(found) == pytest.approx(
            program.value(torch.from_numpy(expected)), rel=1e-9, abs=1e-9
        )
        assert bool((found[: groups * each] >= 0).all())


def test_a_start_on_the_minimising_face_takes_one_system() -> None:
    program, expected = drawn(60, 5, 6, 0, 0)
    start = torch.from_numpy(expected)
    found = program.minimizer(start, max_solves=1)
    assert torch.allclose(found, start, atol=1e-9)


def test_gradient_is_that_of_the_value() -> None:
    program, expected = drawn(8, 4, 3, 1, 2)
    s = torch.from_numpy(expected)
    step = torch.linspace(-1, 1, len(s), dtype=torch.float64)
    slope = (program.value(s + 1e-6 * step) - program.value(s - 1e-6 * step)) / 2e-6
    assert slope == pytest.approx(float(program.gradient(s) @ step), rel=1e-6)
