"""The lazy assignment against fresh exact solves: never wrong, whatever the clouds."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment
from scipy.spatial import cKDTree
from torch import Tensor

from torch_wprox.distances.emd import exchangeable
from torch_wprox.distances.emd.assignment import Assignment
from torch_wprox.distances.emd.exact import solve
from torch_wprox.distances.emd.prices import coarse_prices
from torch_wprox.distances.emd.proof import Anchor
from torch_wprox.distances.emd.refine import refined
from torch_wprox.report import TransportCounts

M = 24


def cloud(m: int, D: int, seed: int) -> Tensor:
    return torch.randn(m, D, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def cost(V: Tensor, W: Tensor, sigma: Tensor) -> float:
    return (V - W[sigma]).square().sum().item()


def scipys_cost(V: Tensor, W: Tensor, classes: Tensor | None = None) -> float:
    """Fresh optimum by scipy on direct differences, class by class."""
    labels = torch.zeros(len(V)) if classes is None else classes
    total = 0.0
    for label in labels.unique():
        v, w = V[labels == label].numpy(), W[labels == label].numpy()
        matrix = ((v[:, None] - w[None]) ** 2).sum(2)
        total += matrix[linear_sum_assignment(matrix)].sum()
    return total


def assert_optimal(V: Tensor, W: Tensor, sigma: Tensor, classes: Tensor | None = None) -> None:
    assert torch.equal(sigma.sort().values, torch.arange(len(V)))
    if classes is not None:
        assert torch.equal(classes[sigma], classes)
    # 1e-12 of the scale of the problem: the sums of squares that any solver adds up.
    scale = V.square().sum().item() + W.square().sum().item()
    assert cost(V, W, sigma) <= scipys_cost(V, W, classes) + 1e-12 * scale


def rotation(angle: float) -> Tensor:
    c, s = np.cos(angle), np.sin(angle)
    return torch.tensor([[c, -s], [s, c]], dtype=torch.float64)


def hard_cases(M: int = 24) -> dict[str, tuple[Tensor, Tensor]]:
    W = cloud(M, 2, 0)
    twice = cloud(M // 2, 2, 1).repeat(2, 1)
    pairs = torch.cat([W[: M // 2], W[: M // 2] + 1e-9])
    half_zero = W.clone()
    half_zero[::2] = 0.0
    line = torch.cat([W[:, :1], 2 * W[:, :1]], 1)
    grid = torch.cartesian_prod(torch.arange(5.0), torch.arange(5.0)).double()
    noise = cloud(M, 2, 2)
    cases = {
        "at the anchor": (W, W),
        "translated": (W + torch.tensor([3.0, -1.0]), W),
        "scaled up": (7 * W, W),
        "scaled down": (0.01 * W, W),
        "permuted": (W[torch.randperm(M, generator=torch.Generator().manual_seed(3))], W),
        "mirrored": (-W, W),
        "all anchors equal": (noise, W[:1].repeat(M, 1)),
        "all points equal": (W[:1].repeat(M, 1), W),
        "each anchor twice": (twice + 0.3 * noise, twice),
        "pairs 1e-9 apart": (pairs + 0.1 * noise, pairs),
        "half at zero": (half_zero + 0.5 * noise, half_zero),
        "tiny": (1e-2 * (W + noise), 1e-2 * W),
        "tinier": (1e-150 * (W + noise), 1e-150 * W),
        "far offset": (W + 0.1 * noise + 1e6, W + 1e6),
        "on a line": (line + 0.5 * torch.cat([noise[:, :1], 2 * noise[:, :1]], 1), line),
        "integer grid": (grid.flip(0) + 1.0, grid),
        "one particle": (noise[:1], W[:1]),
        "two-point tie": (
            torch.tensor([[0.0, 1.0], [0.0, -1.0]], dtype=torch.float64),
            torch.tensor([[1.0, 0.0], [-1.0, 0.0]], dtype=torch.float64),
        ),
        "independent": (noise, W),
    }
    for k in range(1, 9):
        cases[f"rotated by {k} pi/8"] = (W @ rotation(k * np.pi / 8).T, W)
    return cases


@pytest.mark.parametrize("name", hard_cases())
def test_assignment_is_optimal_on_hard_case(name: str) -> None:
    V, W = hard_cases()[name]
    transport = Assignment(W, None)
    sigma = transport.trial(V)
    assert transport.is_proved
    assert_optimal(V, W, sigma)
    assert transport.trial(V) is sigma
    assert_optimal(V, W, solve(V, W, None))


@pytest.mark.parametrize("name", hard_cases())
def test_a_large_class_is_optimal_on_hard_case_from_any_prices(name: str) -> None:
    V, W = hard_cases(320)[name]
    transport = Assignment(W, None)
    transport.settle(-3.0 * V.flip(0))  # prices from far away
    sigma = transport.settle(V)
    assert transport.is_proved
    assert_optimal(V, W, sigma)
    assert_optimal(V, W, Assignment(W, None).settle(V))


def test_a_large_far_class_in_the_plane_is_optimal() -> None:
    m = 1000  # from here on by POT's network simplex
    W, V = cloud(m, 2, 70), cloud(m, 2, 71).pow(3)
    assert_optimal(V, W, Assignment(W, None).settle(V))


@pytest.mark.parametrize("D", [1, 2, 3])
def test_coarse_prices_are_nearer_to_the_optimum_than_those_from_far_away(D: int) -> None:
    # The dual value of prices, sum_i min_j R_ij - sum_j p_j, is at most minus the optimum.
    m = 800
    W, V = cloud(m, D, 60).numpy(), cloud(m, D, 61).pow(3).numpy()
    old = 0.5 * (W * W).sum(1)

    def dual(prices: NDArray[np.float64]) -> float:
        return float((prices - V @ W.T).min(1).sum() - prices.sum())

    optimum = -float((V * W[solve(torch.from_numpy(V), torch.from_numpy(W), None)]).sum())
    coarse = coarse_prices(V, W, np.arange(m), old)
    assert dual(coarse) <= optimum + 1e-9
    assert optimum - dual(coarse) < 0.2 * (optimum - dual(old))


@pytest.mark.parametrize(
    "name",
    [
        "at the anchor",
        "translated",
        "scaled up",
        "scaled down",
        "all anchors equal",
        "all points equal",
        "one particle",
        "two-point tie",
    ],
)
def test_the_identity_stays_where_nothing_is_better(name: str) -> None:
    for m in (24, 320):
        V, W = hard_cases(m)[name]
        assert torch.equal(Assignment(W, None).settle(V), torch.arange(len(V)))


def test_known_values() -> None:
    cases = hard_cases()
    V, W = cases["translated"]
    assert cost(V, W, Assignment(W, None).trial(V)) / M == pytest.approx(10.0)
    V, W = cases["permuted"]
    assert cost(V, W, Assignment(W, None).trial(V)) == 0.0
    V, W = cases["two-point tie"]
    assert cost(V, W, Assignment(W, None).trial(V)) / 2 == pytest.approx(2.0)


@pytest.mark.parametrize("step", [1e-3, 0.03, 1.0])
@pytest.mark.parametrize("D", [1, 2, 7])
def test_a_certificate_is_never_wrong_along_a_random_walk(step: float, D: int) -> None:
    W = cloud(M, D, 10)
    generator = torch.Generator().manual_seed(11)
    V, transport = W.clone(), Assignment(W, None)
    for _ in range(200):
        V = V + step * torch.randn(M, D, dtype=torch.float64, generator=generator)
        sigma = transport.trial(V)
        assert transport.is_proved  # small clouds are never held
        assert_optimal(V, W, sigma)
    assert transport.counts.solved == 200


@pytest.mark.parametrize("D", [2, 7])
@pytest.mark.parametrize("step", [1e-4, 1e-2, 1.0])
def test_a_large_class_settles_optimally_wherever_its_trials_were(step: float, D: int) -> None:
    m = 300
    W = cloud(m, D, 13)
    generator = torch.Generator().manual_seed(14)
    V, transport = W.clone(), Assignment(W, None)
    for k in range(60):
        V = V + step * torch.randn(m, D, dtype=torch.float64, generator=generator)
        sigma = transport.trial(V)
        if transport.is_proved:
            assert_optimal(V, W, sigma)
        if k % 20 == 19:
            assert_optimal(V, W, transport.settle(V))
            assert transport.is_proved
            assert transport.settle(V) is transport.settle(V)
    assert transport.counts.proved > 0 or step > 1e-4


def test_small_moves_of_a_large_class_cost_no_solve() -> None:
    m = 200
    W = cloud(m, 2, 12)
    transport = Assignment(W, None)
    radius = 0.49 * (torch.cdist(W, W) + 1e9 * torch.eye(m)).min().item()
    for k in range(20):
        V = W + radius * torch.tensor([np.cos(k), np.sin(k)])
        assert torch.equal(transport.settle(V), torch.arange(m))
    assert transport.counts == TransportCounts(proved=20)


@given(
    sizes=st.lists(st.integers(0, 5), min_size=1, max_size=4),
    seed=st.integers(0, 10_000),
    D=st.integers(1, 3),
    rounded=st.booleans(),
)
@settings(max_examples=80, deadline=None)
def test_classes_of_any_size_and_order_are_solved_apart(
    sizes: list[int], seed: int, D: int, rounded: bool
) -> None:
    labels = torch.cat([torch.full((n,), 7 * k - 3) for k, n in enumerate(sizes)])
    m = len(labels)
    if m == 0:
        return
    labels = labels[torch.randperm(m, generator=torch.Generator().manual_seed(seed))]
    W, V = cloud(m, D, seed), cloud(m, D, seed + 1)
    if rounded:  # ties
        W, V = W.round(), V.round()
    transport = Assignment(W, labels)
    for point in (W + 0.1 * V, V, -V, W):
        sigma = transport.trial(point)
        assert transport.is_proved
        assert_optimal(point, W, sigma, labels)


@pytest.mark.parametrize(("m", "D"), [(100, 2), (400, 2), (400, 5)])
def test_large_classes_are_held_a_few_evaluations_and_settle_exactly(m: int, D: int) -> None:
    W, V = cloud(m, D, 20), cloud(m, D, 21)
    transport = Assignment(W, None)
    identity = sigma = transport.trial(V)
    assert torch.equal(identity, torch.arange(m))
    assert not transport.is_proved
    held = 1
    while sigma is identity:
        sigma = transport.trial(V)
        held += 1
    assert 1 < held < 20
    assert cost(V, W, sigma) < cost(V, W, identity)
    assert transport.trial(V + 0.5 * cloud(m, D, 22)) is sigma
    assert not transport.is_proved
    end = V + cloud(m, D, 23)
    sigma = transport.settle(end)
    assert transport.is_proved
    assert_optimal(end, W, sigma)


def test_a_plane_class_is_refined_to_nearly_the_optimum_at_trial_points() -> None:
    # The quality that a solver sees while V moves away.
    m = 600
    W = cloud(m, 2, 24)
    end = 3 * cloud(m, 2, 25)
    transport = Assignment(W, None)
    for k in range(1, 401):
        V = W + min(k / 200, 1.0) * (end - W)
        sigma = transport.trial(V)
    assert transport.counts.repaired == transport.counts.solved == 0
    assert transport.counts.refined >= 5
    assert torch.equal(sigma.sort().values, torch.arange(m))
    assert cost(end, W, sigma) < 1.05 * scipys_cost(end, W)
    assert cost(end, W, torch.arange(m)) > 1.5 * scipys_cost(end, W)


@given(
    seed=st.integers(0, 10_000), m=st.integers(2, 60), D=st.integers(1, 4), rounded=st.booleans()
)
@settings(max_examples=80, deadline=None)
def test_a_refinement_is_a_permutation_that_costs_no_more(
    seed: int, m: int, D: int, rounded: bool
) -> None:
    W, V = cloud(m, D, seed), 3 * cloud(m, D, seed + 1)
    if rounded:  # ties
        W, V = W.round(), V.round()
    old = np.random.default_rng(seed).permutation(m)
    before = old.copy()
    found = refined(V.numpy(), W.numpy(), old, lines=4, seed=seed)
    assert (old == before).all()
    assert (np.sort(found) == np.arange(m)).all()
    assert (found == refined(V.numpy(), W.numpy(), old, lines=4, seed=seed)).all()
    now, then = (cost(V, W, torch.from_numpy(sigma)) for sigma in (found, old))
    assert now <= then + 1e-12 * (V.square().sum() + W.square().sum())
    assert now < then or found is old


def test_a_refinement_in_one_dimension_sorts() -> None:
    W, V = cloud(500, 1, 26), cloud(500, 1, 27)
    found = refined(V.numpy(), W.numpy(), np.arange(500), lines=8, seed=0)
    assert cost(V, W, torch.from_numpy(found)) == pytest.approx(scipys_cost(V, W), rel=1e-3)


def test_the_first_prices_prove_only_what_is_true() -> None:
    W = cloud(100, 2, 30)
    transport = Assignment(W, None)
    assert transport.proves_identity(W + 5.0)
    assert not transport.proves_identity(-W)
    assert not transport.proves_identity(W * float("nan"))


@pytest.mark.parametrize("m", [M, 300])
def test_a_point_that_is_not_finite_keeps_the_assignment_unproved(m: int) -> None:
    W = cloud(m, 2, 31)
    V = W.clone()
    V[3, 0] = float("nan")
    for assign in (Assignment.trial, Assignment.settle):
        transport = Assignment(W, None)
        assert torch.equal(assign(transport, V), torch.arange(m))
        assert not transport.is_proved


def test_above_the_exact_size_there_is_an_upper_bound_that_is_never_called_exact(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(exchangeable, "LARGEST_EXACT", 100)
    m = 500
    W, V = cloud(m, 3, 40), cloud(m, 3, 41)
    transport = Assignment(W, None)
    sigma = transport.settle(V)
    assert not transport.is_proved
    assert torch.equal(sigma.sort().values, torch.arange(m))
    exact = scipys_cost(V, W)
    assert exact <= cost(V, W, sigma) <= cost(V, W, torch.arange(m))
    assert cost(V, W, sigma) < 1.5 * exact
    near = Assignment(W, None)
    assert torch.equal(near.settle(1.001 * W + 3.0), torch.arange(m))
    assert near.is_proved  # the balls of the identity prove it in any size


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_arithmetic_is_float64_whatever_the_parameters_are(dtype: torch.dtype) -> None:
    W = (cloud(M, 2, 50) * 1e-3 + 1.0).to(dtype).float()
    V = (W.double() + 1e-3 * cloud(M, 2, 51)).float()
    transport = Assignment(W, None)
    sigma = transport.trial(V)
    assert transport.is_proved
    assert_optimal(V.double(), W.double(), sigma)


def test_balls_of_large_clouds_stay_below_half_the_distance_to_the_nearest_other() -> None:
    # Above 20 000 anchors only near neighbours are looked for: a lower bound, and 0 for duplicates.
    W = cloud(21_000, 2, 80).numpy()
    W[5] = W[7]
    anchor = Anchor(W)
    exact = cKDTree(anchor.W).query(anchor.W, k=2)[0][:, 1]
    found = anchor.nearest_other()
    assert (found <= exact).all()
    assert found[5] == found[7] == 0
    assert (found == exact)[exact < found.max()].all()
    assert found.max() > 0.1 * np.median(exact)
    assert (Anchor(np.ones((21_000, 2))).nearest_other() == 0).all()
