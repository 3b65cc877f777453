"""The note's two-point example, every step in closed form.

f(x, y) = (x - 4)^2/2, (x, y)_0 = (0, 1), g = m gamma with m = 2 (the note sums over the particles).
"""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from torch_wprox import prox

STEPS = 7
GAMMAS = (0.05, 0.1, 0.2, 0.3, 0.5, 1.0, 10.0)


def f(V: Tensor) -> Tensor:
    return (V[0, 0] - 4).square() / 2


def iterates(g: float, distance: str, solver: str = "gd") -> list[tuple[float, float]]:
    W = torch.tensor([[0.0], [1.0]], dtype=torch.float64)
    found = []
    for _ in range(STEPS):
        W, _ = prox(
            f, W, g / 2, distance=distance, solver=solver, max_eval=4000, tolerance_grad=1e-12
        )
        found.append((W[0, 0].item(), W[1, 0].item()))
    return found


def frobenius_iterates(g: float) -> list[tuple[float, float]]:
    return [(4 - 4 / (1 + g) ** t, 1.0) for t in range(1, STEPS + 1)]


def wasserstein_iterates(g: float) -> list[tuple[float, float]]:
    """Local inner descent from the anchor: one swap, in the step that first passes y."""
    x, y, swapped, found = 0.0, 1.0, False, []
    for _ in range(STEPS):
        if swapped:
            x = 4 - (4 - x) / (1 + g)
        elif (x + 4 * g) / (1 + g) > 1:  # the particle passes y: it takes y's anchor
            x, y, swapped = (1 + 4 * g) / (1 + g), x, True
        else:
            x = (x + 4 * g) / (1 + g)
        found.append((x, y))
    return found


@pytest.mark.parametrize("g", GAMMAS)
def test_frobenius_iterates_are_the_closed_form(g: float) -> None:
    # A residual of 1e-12 |grad f| leaves at most that times g in the point.
    assert torch.allclose(
        torch.tensor(iterates(g, "frobenius"), dtype=torch.float64),
        torch.tensor(frobenius_iterates(g), dtype=torch.float64),
        rtol=0,
        atol=1e-9,
    )


@pytest.mark.parametrize("g", GAMMAS)
def test_wasserstein_iterates_are_the_closed_form_with_one_swap(g: float) -> None:
    assert torch.allclose(
        torch.tensor(iterates(g, "emd"), dtype=torch.float64),
        torch.tensor(wasserstein_iterates(g), dtype=torch.float64),
        rtol=0,
        atol=1e-9,
    )


@pytest.mark.parametrize("g", GAMMAS)
def test_first_wasserstein_step_is_the_notes_equation_9_above_one_third(g: float) -> None:
    x, y = iterates(g, "emd")[0]
    if g > 1 / 3:
        assert (x, y) == pytest.approx((1 + 3 * g / (1 + g), 0.0), abs=1e-9)
    else:
        assert (x, y) == pytest.approx((4 * g / (1 + g), 1.0), abs=1e-9)


def branch_minimum(g: float, anchor: tuple[float, float]) -> float:
    """min over x, y of f + |(x, y) - anchor|^2/(2 g) in closed form."""
    a, _ = anchor
    x = (a + 4 * g) / (1 + g)
    return (x - 4) ** 2 / 2 + (x - a) ** 2 / (2 * g)


@pytest.mark.parametrize("g", [1e-3, *GAMMAS])
def test_the_swapped_branch_is_the_lower_one_for_every_gamma(g: float) -> None:
    identity, swapped = (branch_minimum(g, a) for a in itertools.permutations((0.0, 1.0)))
    assert swapped < identity
    # Relabelling alone costs nothing and lowers f from 8 to 4.5.
    W = torch.tensor([[0.0], [1.0]], dtype=torch.float64)
    assert (f(W).item(), f(W.flip(0)).item()) == (8.0, 4.5)


@pytest.mark.parametrize("g", GAMMAS)
@pytest.mark.parametrize("solver", ["gd", "auto"])
def test_every_solver_ends_on_one_of_the_two_branches(g: float, solver: str) -> None:
    W = torch.tensor([[0.0], [1.0]], dtype=torch.float64)
    V, report = prox(f, W, g / 2, solver=solver, max_eval=4000, tolerance_grad=1e-12)
    values = [branch_minimum(g, a) for a in itertools.permutations((0.0, 1.0))]
    assert min(abs(report.objective - v) for v in values) < 1e-9
    assert V.isfinite().all()
