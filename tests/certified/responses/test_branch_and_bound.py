"""Branch and bound proves best radii: against all sign patterns, exact cells and ascents."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy.optimize import lsq_linear
from torch import Tensor

from torch_wprox.certified.responses.arrangement import Arrangement
from torch_wprox.certified.responses.branch_and_bound import Radii, proved_radii
from torch_wprox.certified.responses.moment_bound import MomentBound, Multipliers, at_anchors
from torch_wprox.certified.responses.newton_system import NewtonSystem, svec_squares
from torch_wprox.certified.responses.spatial import farthest

F64 = torch.float64


def normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def radius(u: Tensor, X: Tensor, c: Tensor, W: Tensor) -> Tensor:
    """<u_s, w_i> + sum_j c_j relu(<x_j, u_s>), (s, i)."""
    return u @ W.T + ((u @ X.T).clamp_min(0) @ c).unsqueeze(1)


def largest(X: np.ndarray, c: np.ndarray, w: np.ndarray) -> float:
    """max over |u| <= 1 over all 2^n patterns: the longest projection of w + slope on a cone."""
    best = 0.0
    for signs in itertools.product((1.0, -1.0), repeat=len(X)):
        s = np.array(signs)
        slope, cone = w + X.T @ (c * (s > 0)), (s[:, None] * X).T
        v = slope + cone @ lsq_linear(cone, -slope, (0, np.inf), "bvls", tol=1e-14).x
        best = max(best, float(np.linalg.norm(v)))
    return best


def solved(
    X: Tensor, c: Tensor, W: Tensor, tolerance: float = 1e-3, seconds: float = 60.0
) -> Radii:
    return proved_radii(X, c, W, X, tolerance=tolerance, seconds=seconds)


@pytest.mark.parametrize("dimension", [2, 3, 4])
@given(seed=st.integers(0, 2**31), signs=st.sampled_from(["mixed", "positive", "negative"]))
@example(seed=2**31, signs="negative")  # nothing to branch on: the barrier alone decides
@settings(max_examples=4, deadline=None)
def test_proved_radius_is_the_largest_over_all_patterns(
    dimension: int, seed: int, signs: str
) -> None:
    X, c, W = normal(seed, 6, dimension), normal(seed + 1, 6), normal(seed + 2, 3, dimension)
    c = {"mixed": c, "positive": c.abs(), "negative": -c.abs()}[signs]
    X[0], X[1] = 0.0, -2.0 * X[2]
    W[0] = 0.0
    found = solved(X, c, W)
    exact = np.array([largest(X.numpy(), c.numpy(), w) for w in W.numpy()])
    proved = found.proved.numpy()
    assert bool((proved >= exact - 1e-12).all())  # the oracle itself has rounding
    # Small radii are proved within a share of the largest one, or of what all terms add up to.
    terms = float(c.clamp_min(0) @ X.norm(dim=1)) + float(W.norm(dim=1).max())
    size = np.maximum(exact, max(0.11 * exact.max(), 0.011 * terms))
    assert bool((proved <= exact + 1e-3 * size).all())
    attained = radius(found.directions, X, c, W).diagonal()
    torch.testing.assert_close(attained, found.reached, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("spread", [0.02, 2.0])
def test_one_tree_proves_all_particles_as_the_cells_of_space_do(spread: float) -> None:
    X = torch.cat([normal(0, 30, 2), torch.ones(30, 1, dtype=F64)], 1)
    c, W = normal(1, 30), spread * normal(2, 12, 3)
    _, exact = farthest(Arrangement.of(X), c, W)
    found = solved(X, c, W, tolerance=0.01)
    assert bool((found.reached <= exact * (1 + 1e-12)).all())
    assert bool((found.proved >= exact).all())
    assert bool((found.proved <= exact + 0.0101 * exact.clamp_min(0.1 * exact.max())).all())


def test_no_ascent_beats_what_is_proved_with_fifty_samples_and_eleven_inputs() -> None:
    X = torch.cat([normal(0, 50, 10), torch.ones(50, 1, dtype=F64)], 1)
    c, W = normal(1, 50), 0.01 * normal(2, 20, 11)
    found = solved(X, c, W, tolerance=0.02)
    assert bool((found.proved <= 1.02 * found.reached * (1 + 1e-12)).all())
    assert found.nodes < 3000
    u = normal(3, 10_000, 11)
    u = u / u.norm(dim=1, keepdim=True)
    for _ in range(60):  # ascent for the first particle
        g = W[0] + ((u @ X.T > 0) * c) @ X
        trial = u + 0.1 * g / g.norm(dim=1, keepdim=True)
        trial = trial / trial.norm(dim=1, keepdim=True)
        better = radius(trial, X, c, W[:1])[:, 0] > radius(u, X, c, W[:1])[:, 0]
        u = torch.where(better.unsqueeze(1), trial, u)
    assert bool((radius(u, X, c, W).amax(0) <= found.proved).all())


@pytest.mark.parametrize("seconds", [0.0, 0.3])
def test_bounds_hold_whenever_time_is_up(seconds: float) -> None:
    X = torch.cat([normal(0, 200, 10), torch.ones(200, 1, dtype=F64)], 1)
    c, W = normal(1, 200), 0.1 * normal(2, 3, 11)
    found = solved(X, c, W, seconds=seconds)
    assert bool((found.proved >= found.reached).all())
    u = normal(3, 20_000, 11)
    u = u / u.norm(dim=1, keepdim=True)
    assert bool((radius(u, X, c, W).amax(0) <= found.proved).all())
    # A bound, not a formality: no term alone is so far from the truth.
    assert float(found.proved.max()) < 0.5 * float(c.clamp_min(0) @ X.norm(dim=1))


def test_without_weights_the_radius_is_the_length_of_the_anchor() -> None:
    W = normal(0, 4, 5)
    found = solved(normal(1, 6, 5), torch.zeros(6, dtype=F64), W)
    torch.testing.assert_close(found.proved, W.norm(dim=1))


def random_node(seed: int) -> tuple[MomentBound, Tensor, Tensor, Tensor, Multipliers, Tensor]:
    """A bound, X, c, w, multipliers drawn inside their domain, and decided signs."""
    g = torch.Generator().manual_seed(seed)
    X, c, w = normal(seed, 9, 4), normal(seed + 1, 9), normal(seed + 2, 4)
    X = X / X.norm(dim=1, keepdim=True)
    u = normal(seed + 3, 4)
    sign = (X @ u).sign() * (torch.rand(9, generator=g, dtype=F64) < 0.4)
    bound = MomentBound(X, c)
    nodes = bound.nodes(sign.unsqueeze(0), w.unsqueeze(0))
    first, second = torch.rand(2, 1, 9, generator=g, dtype=F64)
    falls = (sign == 0) & (c <= 0)
    second = torch.where(falls, second * c.abs() / (nodes.above + nodes.below), second)
    low, high = second * nodes.below, c.abs() - second * nodes.above
    first = torch.where(falls, low + first * (high - low), first + 0.1)
    x = Multipliers(first, second, torch.full((1,), 8.0, dtype=F64))
    return bound, X, c, w, x, sign


@given(seed=st.integers(0, 2**31))
@settings(max_examples=25, deadline=None)
def test_any_multipliers_bound_every_direction_of_their_node(seed: int) -> None:
    bound, X, c, w, x, sign = random_node(seed)
    nodes = bound.nodes(sign.unsqueeze(0), w.unsqueeze(0))
    proved = float(at_anchors(bound.quadratic(nodes, x), w.unsqueeze(0)))
    u = normal(seed + 9, 20_000, 4)
    u = u / u.norm(dim=1, keepdim=True)
    inside = ((u @ X.T) * sign >= 0).all(1)
    if bool(inside.any()):
        values = radius(u[inside], X, c, w.unsqueeze(0))
        assert float(values.max()) <= proved


@pytest.mark.parametrize("seed", range(4))
def test_newtons_steps_reach_the_minimum_of_the_barrier_function(seed: int) -> None:
    bound, _, c, w, x, sign = random_node(seed)
    nodes = bound.nodes(sign.unsqueeze(0), w.unsqueeze(0))
    barrier = 1e-2
    x = bound.minimised(nodes, bound.recentred(nodes, x, barrier), barrier, 40)
    rises, falls = (sign == 0) & (c > 0), (sign == 0) & (c <= 0)
    leaves = [t.clone().requires_grad_(True) for t in (x.first, x.second, x.level)]
    q = bound.quadratic(nodes, Multipliers(*leaves))
    Q = leaves[2].view(1, 1, 1) * torch.eye(4, dtype=F64) - q.curvature
    b = q.slope + w
    value = 0.5 * (b @ torch.linalg.inv(Q[0]) @ b.T).sum() + 0.5 * leaves[2].sum()
    value = value + q.constant.sum()
    lower = leaves[0] - torch.where(falls, leaves[1] * nodes.below, torch.zeros(9, dtype=F64))
    upper = (c.abs() - leaves[1] * nodes.above - leaves[0])[:, falls]
    logs = lower[:, ~rises].log().sum() + upper.log().sum() + leaves[1].log().sum()
    (value - barrier * (logs + torch.logdet(Q[0]))).backward()
    for leaf in leaves:  # stationary, by another derivation of the gradient
        assert leaf.grad is not None
        assert float(leaf.grad.abs().max()) < 1e-6


def test_low_rank_and_dense_solutions_of_newtons_system_agree() -> None:
    B, n, D = 3, 40, 4
    X, root = normal(0, n, D), normal(1, B, D, D)
    Q = root @ root.mT + 0.1 * torch.eye(D, dtype=F64)
    system = NewtonSystem(
        features=X,
        squares=svec_squares(X),
        shifted=Q,
        inverse=torch.linalg.inv(Q),
        barrier=0.01,
        slopes=normal(2, B, 2, n),
        bends=normal(3, B, 2, n),
        diagonal=1.0 + normal(4, B, 2, n).abs(),
        mixed=0.9 * normal(5, B, n).tanh(),
        border=normal(6, B, 2, n),
        corner=torch.full((B,), 1e3, dtype=F64),
    )
    right = normal(7, B, 2, n, 2)
    torch.testing.assert_close(
        system._by_rank(right), system._densely(right), rtol=1e-9, atol=1e-11
    )
