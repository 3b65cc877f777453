"""The separable, blocked, log-domain kernel against the dense one."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from torch_wprox.jko.kernel import GridKernel
from torch_wprox.jko.plan import plan_of

F64 = torch.float64


def dense_exponent(shape: tuple[int, ...], spacing: list[float], epsilon: float) -> Tensor:
    """-|x_i - x_j|^2/epsilon, (N, N)."""
    axes = [dx * torch.arange(n, dtype=F64) for n, dx in zip(shape, spacing, strict=True)]
    x = torch.cartesian_prod(*axes).reshape(-1, len(shape))
    return -(x[:, None] - x[None]).square().sum(-1) / epsilon


def dense_lse(u: Tensor, exponent: Tensor) -> Tensor:
    return torch.logsumexp(u.flatten(1)[:, None, :] + exponent, dim=-1).view_as(u)


def potential(shape: tuple[int, ...], slope: float, seed: int, blocks: int = 2) -> Tensor:
    """A random direction's ramp of this slope a cell, and noise of size 1."""
    g = torch.Generator().manual_seed(seed)
    u = torch.rand(blocks, *shape, generator=g, dtype=F64)
    for axis, n in enumerate(shape):
        ramp = slope * (2 * torch.rand(blocks, generator=g, dtype=F64) - 1)
        where = torch.arange(n, dtype=F64).view(-1, *[1] * (len(shape) - axis - 1))
        u += ramp.view(-1, *[1] * len(shape)) * where
    return u


@settings(max_examples=40, deadline=None)
@given(
    shape=st.lists(st.integers(1, 9), min_size=1, max_size=3).map(tuple),
    cells=st.floats(0.1, 50.0),
    slope=st.floats(0.0, 40.0),
    seed=st.integers(0, 10**6),
)
def test_kernel_equals_the_dense_log_sum_exp(
    shape: tuple[int, ...], cells: float, slope: float, seed: int
) -> None:
    spacing = [0.5, 0.3, 0.7][: len(shape)]
    epsilon = cells * 0.25
    u = potential(shape, slope, seed)
    kernel = GridKernel(spacing, shape, epsilon)
    found = kernel.lse(u, kernel.windows(kernel.slopes(u)))
    exact = dense_lse(u, dense_exponent(shape, spacing, epsilon))
    # Rounding of exponents, whose size is that of the potential and of one block's kernel.
    torch.testing.assert_close(found, exact, rtol=1e-14, atol=2e-13)


@pytest.mark.parametrize(("slope", "cells"), [(2.0, 2.0), (40.0, 2.0), (30.0, 0.1), (5.0, 20.0)])
def test_kernel_is_exact_where_the_potential_spans_more_than_1000(
    slope: float, cells: float
) -> None:
    shape, spacing = (40, 30), [0.1, 0.1]
    u = torch.zeros(1, *shape, dtype=F64) + slope * torch.arange(40, dtype=F64).view(-1, 1)
    u += potential(shape, 0.0, 0, blocks=1)
    kernel = GridKernel(spacing, shape, cells * 0.01)
    found = kernel.lse(u, kernel.windows(kernel.slopes(u)))
    exact = dense_lse(u, dense_exponent(shape, spacing, cells * 0.01))
    assert slope < 30 or float(u.max() - u.min()) > 1000
    torch.testing.assert_close(found, exact, rtol=1e-15, atol=2e-13)


def test_kernel_is_exact_with_cells_of_no_mass() -> None:
    shape, spacing = (12, 10), [0.1, 0.1]
    u = potential(shape, 3.0, 1)
    u[0, 4:] = -math.inf
    u[1] = -math.inf
    kernel = GridKernel(spacing, shape, 0.02)
    found = kernel.lse(u, kernel.windows([math.inf, math.inf]))
    exact = dense_lse(u, dense_exponent(shape, spacing, 0.02))
    torch.testing.assert_close(found, exact, rtol=1e-14, atol=2e-13)
    _, mean = kernel.expectation(u, torch.ones(1, 1, *shape, dtype=F64), kernel.windows([3.0, 3.0]))
    assert bool(mean.isfinite().all())
    assert not mean[0, 1].any()


def test_float32_kernel_has_six_digits_of_the_potential() -> None:
    shape, spacing = (40, 30), [0.1, 0.1]
    u = potential(shape, 4.0, 2)
    kernel = GridKernel(spacing, shape, 0.02, dtype=torch.float32)
    found = kernel.lse(u.float(), kernel.windows(kernel.slopes(u)))
    exact = dense_lse(u.float().double(), dense_exponent(shape, spacing, 0.02))
    scale = float(u.max() - u.min()) + 100.0
    torch.testing.assert_close(found.double(), exact, rtol=0.0, atol=1e-6 * scale)


def test_expectation_equals_the_dense_mean() -> None:
    shape, spacing, epsilon = (9, 7), [0.2, 0.3], 0.3
    u, v = potential(shape, 5.0, 3), potential(shape, 1.0, 4, blocks=3).unsqueeze(1) - 0.5
    kernel = GridKernel(spacing, shape, epsilon)
    log_sum, mean = kernel.expectation(u, v, kernel.windows(kernel.slopes(u)))
    exponent = dense_exponent(shape, spacing, epsilon)
    weights = torch.softmax(u.flatten(1)[:, None, :] + exponent, dim=-1)
    exact = torch.einsum("bij,cj->cbi", weights, v.flatten(1)).view(3, 2, *shape)
    torch.testing.assert_close(log_sum, dense_lse(u, exponent), rtol=1e-14, atol=1e-13)
    torch.testing.assert_close(mean, exact, rtol=1e-12, atol=1e-12)
    assert kernel.applications == 3


@pytest.mark.parametrize("slope", [0.0, 3.0, 300.0])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_plan_keeps_the_mass_of_every_block(slope: float, dtype: torch.dtype) -> None:
    shape = (30, 20)
    q = torch.rand(2, *shape, generator=torch.Generator().manual_seed(0), dtype=F64)
    q[:, :5] = 0
    q[1] *= 1e-3
    q = (q / q.sum()).to(dtype)
    kernel = GridKernel([0.1, 0.1], shape, 0.02, dtype=dtype)
    plan = plan_of(kernel, q, potential(shape, slope, 5).to(dtype))
    error = (plan.p.flatten(1).sum(1) - q.flatten(1).sum(1)).abs().max()
    # exp of logarithms of size slope x cells: their rounding is a relative error of the mass.
    assert float(error) <= torch.finfo(dtype).eps * (10 + 20 * slope)


def test_covariance_is_the_derivative_of_the_answer_and_symmetric() -> None:
    shape = (8, 6)
    g = torch.Generator().manual_seed(0)
    q = torch.rand(2, *shape, generator=g, dtype=F64)
    q /= q.sum()
    kernel = GridKernel([0.1, 0.1], shape, 0.02)
    log_a, v, w = (potential(shape, 2.0, seed) for seed in (6, 7, 8))
    plan = plan_of(kernel, q, log_a)
    step = 1e-5
    ahead, behind = (plan_of(kernel, q, log_a + s * step * v).p for s in (1, -1))
    torch.testing.assert_close(
        plan.covariance(v), (ahead - behind) / (2 * step), rtol=1e-6, atol=1e-9
    )
    left, right = (plan.covariance(v) * w).sum(), (plan.covariance(w) * v).sum()
    torch.testing.assert_close(left, right, rtol=1e-10, atol=1e-14)
    assert float((plan.covariance(v) * v).sum()) >= 0
    assert float(plan.covariance(torch.ones_like(v)).abs().max()) < 1e-15


def test_kernel_refuses_half_precision() -> None:
    with pytest.raises(ValueError, match="dtype must be"):
        GridKernel([0.1], [3], 1.0, dtype=torch.float16)
