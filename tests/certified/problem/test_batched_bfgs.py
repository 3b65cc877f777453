"""Descents of many rows at once, against minima in closed form and the optimizers' own update."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from torch_wprox.certified.problem.batched_bfgs import _SelfScaled, batched_bfgs
from torch_wprox.solvers.bfgs import self_scaled

F64 = torch.float64


def stiff(size: int) -> Tensor:
    """Curvatures over four decades."""
    return torch.logspace(-2, 2, size, dtype=F64)


def with_kink(x: Tensor) -> tuple[Tensor, Tensor]:
    """sqrt(x^T A x) + x^T B x of Lewis & Overton: least, 0, at its kink at 0."""
    A = stiff(x.shape[1])
    norm = (A * x.square()).sum(1, keepdim=True).sqrt()
    value = norm[:, 0] + 0.1 * x.square().sum(1)
    return value, A * x / norm.clamp_min(1e-300) + 0.2 * x


def smooth(x: Tensor) -> tuple[Tensor, Tensor]:
    """A stiff quadratic around (1, .., 1)."""
    A = stiff(x.shape[1])
    return 0.5 * (A * (x - 1).square()).sum(1), A * (x - 1)


@pytest.mark.parametrize("self_scaling", [False, True])
def test_rows_reach_a_minimum_at_a_kink(self_scaling: bool) -> None:
    start = torch.randn(3, 8, generator=torch.Generator().manual_seed(0), dtype=F64)
    found = batched_bfgs(
        with_kink, start, 1.0, max_rounds=1500, tolerance=0.0, self_scaling=self_scaling
    )
    assert float(found.values.max()) < 1e-6  # the values fall linearly, by 1e-5 at the least


def test_many_numbers_reach_the_minimum_without_a_matrix() -> None:
    start = torch.zeros(1, 2500, dtype=F64)
    scaled = batched_bfgs(smooth, start, 1.0, max_rounds=300, tolerance=0.0, self_scaling=True)
    plain = batched_bfgs(smooth, start, 1.0, max_rounds=300, tolerance=0.0)
    # Conjugate gradients with a condition of 1e4 leave 4 exp(-4 * 300/100) = 2e-5 at most.
    assert float(scaled.values) < 2e-5 * float(smooth(start)[0])
    assert float(scaled.values) < float(plain.values)


def test_update_of_a_row_is_the_update_of_the_solver() -> None:
    g = torch.Generator().manual_seed(0)
    x = torch.zeros(2, 6, dtype=F64)
    batch = _SelfScaled(x, 1.0)
    H = torch.eye(6, dtype=F64)
    A = stiff(6)
    for turn in range(5):
        s = torch.randn(2, 6, generator=g, dtype=F64)
        y = A * s
        taken = torch.tensor([True, turn % 2 == 0])  # the second row misses some
        sBs = torch.linalg.solve(H, s[0]) @ s[0]
        if turn == 0:
            ratio = float(s[0] @ y[0] / (y[0] @ y[0]))
            H = ratio * torch.eye(6, dtype=F64)
            sBs = s[0] @ s[0] / ratio
        self_scaled(H, s[0], y[0], float(sBs))
        batch.update(s, y, taken, torch.stack([sBs, sBs]))
        torch.testing.assert_close(batch.times(x + 1.0)[0], H @ (x[0] + 1.0))
