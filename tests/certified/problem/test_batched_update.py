"""The update of many inverse Hessians at once, against the optimizers' own one by one."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from torch_wprox.certified.problem.batched_bfgs import batched_bfgs
from torch_wprox.solvers.bfgs import self_scaled

F64 = torch.float64


def test_a_batch_descends_on_a_quadratic_as_bfgs_does_row_by_row() -> None:
    A = torch.tensor([[1.2, 0.3], [0.3, 0.9]], dtype=F64)
    starts = torch.tensor([[1.0, -2.0], [40.0, 3.0]], dtype=F64)
    seen: list[Tensor] = []

    def quadratic(x: Tensor) -> tuple[Tensor, Tensor]:
        seen.append(x)
        return 0.5 * (x @ A * x).sum(1), x @ A

    batched_bfgs(quadratic, starts, 1.0, max_rounds=4, tolerance=0.0)
    for row in (0, 1):  # here every first trial is taken, so each round is an iteration
        H = torch.eye(2, dtype=F64)
        x = starts[row]
        for trial in seen[1:]:
            following = x - H @ (A @ x)
            torch.testing.assert_close(trial[row], following)
            self_scaled(H, following - x, A @ (following - x), None)
            x = following


def test_a_row_that_leaves_the_domain_comes_back_with_its_curvature_intact() -> None:
    def barrier(x: Tensor) -> tuple[Tensor, Tensor]:
        inside = (x > 0).all(1)
        value = torch.where(inside, (x - x.log()).sum(1), math.inf)
        return value, torch.where(inside.unsqueeze(1), 1 - 1 / x, math.nan)

    starts = torch.tensor([[4.0, 9.0], [1e-3, 0.5]], dtype=F64)
    found = batched_bfgs(barrier, starts, 10.0, max_rounds=100, tolerance=0.0)
    torch.testing.assert_close(found.points, torch.ones(2, 2, dtype=F64))
