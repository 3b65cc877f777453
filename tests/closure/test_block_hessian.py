"""The Hessian of a loss as a function of the output, against automatic differentiation."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from torch_wprox.closure.block_hessian import BlockHessian, Gradient, learnt_hessian

F64 = torch.float64
LENGTH = 1e-6  # differences are exact to about 1e-6: the third derivatives here are of order one


def cloud(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=F64, generator=torch.Generator().manual_seed(0))


def by_sample(z: Tensor) -> Tensor:
    return torch.logsumexp(z, 1).sum()


def mixing(z: Tensor) -> Tensor:
    return z.square().sum() + z.exp().sum().log()


def gradient_of(loss: Callable[[Tensor], Tensor], calls: list[Tensor]) -> Gradient:
    def gradient(z: Tensor) -> Tensor:
        calls.append(z)
        return torch.func.grad(loss)(z)

    return gradient


@pytest.mark.parametrize(
    ("loss", "gradients", "blocks"), [(by_sample, 3 + 1, 4), (mixing, 3 + 1 + 12, 1)]
)
def test_a_hessian_is_that_of_autograd_and_costs_as_many_gradients_as_it_has_columns(
    loss: Callable[[Tensor], Tensor], gradients: int, blocks: int
) -> None:
    z, calls = cloud(4, 3), []
    gradient = gradient_of(loss, calls)
    H = learnt_hessian(gradient, z, torch.func.grad(loss)(z), LENGTH, tolerance=1e-3)
    exact = torch.autograd.functional.hessian(loss, z).reshape(12, 12)
    assert len(calls) == gradients
    assert len(H.blocks) == blocks
    torch.testing.assert_close(H.dense(), exact, rtol=1e-5, atol=1e-6)
    u = cloud(2, 4, 3)
    torch.testing.assert_close(H(u).reshape(2, 12), u.reshape(2, 12) @ H.dense())


def test_a_loss_too_large_to_learn_whole_keeps_its_blocks() -> None:
    z, calls = cloud(4, 3), []
    gradient = gradient_of(mixing, calls)
    H = learnt_hessian(gradient, z, gradient(z), LENGTH, tolerance=1e-3, dense_up_to=11)
    assert H.blocks.shape == (4, 3, 3)


@pytest.mark.parametrize("shape", [(3, 2, 2), (1, 6, 6)])
def test_roots_and_inverses_are_those_of_the_dense_matrix(shape: tuple[int, int, int]) -> None:
    A = cloud(*shape)
    H = BlockHessian(A + A.mT)  # indefinite
    values, vectors = torch.linalg.eigh(H.dense())
    positive = (vectors * values.clamp_min(0.0)) @ vectors.T
    torch.testing.assert_close(H.convex().dense(), positive)
    root = H.root().dense()
    torch.testing.assert_close(root @ root, positive)
    inverse = torch.linalg.pinv(positive, rtol=1e-10, hermitian=True)
    torch.testing.assert_close(H.convex().pseudo_inverse().dense(), inverse)
