"""Three inputs: all cells of space are found, and no direction is better than the exact one."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import lsq_linear
from torch import Tensor

from torch_wprox.certified.responses.arrangement import Arrangement
from torch_wprox.certified.responses.spatial import farthest

F64 = torch.float64


def normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def radius(u: Tensor, X: Tensor, c: Tensor, W: Tensor) -> Tensor:
    """<u_s, W_i> + sum_j c_j relu(<x_j, u_s>), (s, i)."""
    return u @ W.T + ((u @ X.T).clamp_min(0) @ c).unsqueeze(1)


def patterns(X: np.ndarray) -> np.ndarray:
    """Signs of all cells: the four cells around every vertex, in general position."""
    found = set()
    for j, k in itertools.combinations(range(len(X)), 2):
        vertex = np.cross(X[j], X[k])
        for side in (1.0, -1.0):
            signs = np.sign(side * (X @ vertex))
            for a, b in itertools.product((1.0, -1.0), repeat=2):
                signs[j], signs[k] = a, b
                found.add(tuple(signs))
    return np.array(sorted(found))


def largest(X: np.ndarray, c: np.ndarray, W: np.ndarray) -> float:
    """max over |u| <= 1, as the length of the longest projection of W + p on a cell."""
    best = 0.0
    for s in patterns(X):
        slope = W + X.T @ (c * (s > 0))
        cone = (s[:, None] * X).T
        v = slope + cone @ lsq_linear(cone, -slope, (0, np.inf), "bvls", tol=1e-14).x
        best = max(best, float(np.linalg.norm(v)))
    return best


@given(seed=st.integers(0, 2**31), size=st.sampled_from([0.0, 0.1, 3.0]))
@settings(max_examples=6, deadline=None)
def test_maximum_is_the_largest_over_all_cells(seed: int, size: float) -> None:
    X, c, W = normal(seed, 10, 3), normal(seed + 1, 10), size * normal(seed + 2, 2, 3)
    u, found = farthest(Arrangement.of(X), c, W)
    expected = [largest(X.numpy(), c.numpy(), w) for w in W.numpy()]
    assert found.clamp_min(0).numpy() == pytest.approx(np.array(expected), rel=1e-9, abs=1e-9)
    attained = radius(u, X, c, W).diagonal()
    # Where every direction pulls inwards the best radius is 0, whatever the direction.
    assert attained.clamp_min(0).numpy() == pytest.approx(
        found.clamp_min(0).numpy(), rel=1e-12, abs=1e-12
    )


@pytest.mark.parametrize("n", [1, 5, 40])
def test_planes_in_general_position_cut_space_into_the_known_number_of_cells(n: int) -> None:
    planes = n + 3  # the coordinate planes as well
    cells = Arrangement.of(normal(n, n, 3)).cells
    assert len(cells.centres) == planes * (planes - 1) + 2


def test_every_point_of_a_cell_lies_in_its_cap() -> None:
    X = normal(0, 15, 3)
    cells = Arrangement.of(X).cells
    u = normal(1, 5000, 3)
    u = u / u.norm(dim=1, keepdim=True)
    planes = torch.cat([X, torch.eye(3, dtype=F64)]).T
    agree = ((u @ planes).sign() @ (cells.centres @ planes).sign().T) == 18
    point, cell = agree.nonzero().unbind(1)
    assert point.tolist() == list(range(5000))
    distance = (u[point] - cells.centres[cell]).norm(dim=1)
    assert bool((distance <= cells.chords[cell] * (1 + 1e-12)).all())


def test_slopes_are_those_of_the_samples_that_are_active_in_the_cell() -> None:
    X, c = normal(3, 30, 3), normal(4, 30)
    space = Arrangement.of(X)
    _, _, slopes = space.slopes(c)
    centres = space.cells.centres  # inside its cell: a cell is convex
    expected = ((centres @ X.T > 0) * c) @ X
    torch.testing.assert_close(slopes, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("spread", [0.01, 5.0])
def test_no_direction_is_better_with_150_samples_and_50_particles(spread: float) -> None:
    X = torch.cat([normal(0, 150, 2), torch.ones(150, 1, dtype=F64)], 1)
    c, W = normal(1, 150), spread * normal(2, 50, 3)
    u, found = farthest(Arrangement.of(X), c, W)
    tried = normal(3, 20_000, 3)
    tried = tried / tried.norm(dim=1, keepdim=True)
    near = u.repeat_interleave(200, 0) + 0.02 * normal(4, 200 * len(u), 3)
    near = near / near.norm(dim=1, keepdim=True)
    others = radius(torch.cat([tried, near]), X, c, W).amax(0)
    assert bool((others <= found * (1 + 1e-12)).all())
    assert bool((others >= 0.995 * found).all())


def test_equal_opposite_parallel_and_zero_samples_change_no_maximum() -> None:
    X, c, W = normal(0, 12, 3), normal(1, 12), normal(2, 5, 3)
    u, found = farthest(Arrangement.of(X), c, W)
    # relu(t)/2 + relu(t/2) = relu(t), and 2 relu(t) - relu(-t) = relu(t) + t.
    split = torch.cat([X, 0 * X[:1], 0.5 * X[:1], -X[1:2]])
    share = torch.cat([c, c[:1], c[:1], -c[1:2]])
    share[0] *= 0.5
    share[1] *= 2
    u_split, same = farthest(Arrangement.of(split), share, W - c[1] * X[1])
    torch.testing.assert_close(same, found, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(u_split, u, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("angle", [1e-15, 1e-12, 1e-9, 1e-6])
def test_nearly_parallel_samples_are_no_trouble(angle: float) -> None:
    X, c, W = normal(0, 10, 3), normal(1, 10), normal(2, 4, 3)
    merged = c.clone()
    merged[0] += c[9]
    moved = X.clone()
    moved[9] = X[0] + angle * normal(5, 3)
    _, found = farthest(Arrangement.of(moved), c, W)
    _, expected = farthest(Arrangement.of(X[:9]), merged[:9], W)
    torch.testing.assert_close(found, expected, rtol=10 * angle + 1e-12, atol=1e-12)
