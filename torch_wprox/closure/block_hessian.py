"""The Hessian of a loss as a function of the output, learnt from differences of its gradients."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

Gradient = Callable[[Tensor], Tensor]
"""z (n, k) -> gradient (n, k) of the loss, n samples with k outputs each."""


@dataclass(frozen=True)
class BlockHessian:
    """A symmetric matrix H that acts on every sample alone, or on all of them as one.

    Attributes:
        blocks: One block per sample (n, k, k), or a single one (1, n k, n k).

    Example:
        >>> import torch
        >>> H = BlockHessian(torch.tensor([[[2.0]], [[4.0]]]))
        >>> H(torch.ones(2, 1)).flatten()
        tensor([2., 4.])
        >>> H.root()(torch.ones(2, 1))[1]
        tensor([2.])
    """

    blocks: Tensor

    def __call__(self, u: Tensor) -> Tensor:
        """Return H u for u (.., n, k)."""
        cut = u.reshape(*u.shape[:-2], self.blocks.shape[0], self.blocks.shape[1], 1)
        product: Tensor = self.blocks @ cut
        return product.reshape(u.shape)

    def convex(self) -> BlockHessian:
        """Return the nearest positive semidefinite H."""
        eigenvalues, vectors = torch.linalg.eigh(self.blocks)
        return BlockHessian((vectors * eigenvalues.clamp_min(0.0).unsqueeze(-2)) @ vectors.mT)

    def root(self) -> BlockHessian:
        """Return H^(1/2), negative eigenvalues taken as 0."""
        eigenvalues, vectors = torch.linalg.eigh(self.blocks)
        root = eigenvalues.clamp_min(0.0).sqrt().unsqueeze(-2)
        return BlockHessian((vectors * root) @ vectors.mT)

    def pseudo_inverse(self) -> BlockHessian:
        """Return H^+, so that H^+ g is the shortest u that minimises |H u - g|."""
        return BlockHessian(torch.linalg.pinv(self.blocks, rtol=1e-10, hermitian=True))

    def dense(self) -> Tensor:
        """Return H as one matrix (n k, n k)."""
        n, k, _ = self.blocks.shape
        H, each = self.blocks.new_zeros(n, k, n, k), torch.arange(n, device=self.blocks.device)
        H[each, :, each, :] = self.blocks
        return H.view(n * k, n * k)


def hessian_by_sample(gradient: Gradient, z: Tensor, grad: Tensor, length: float) -> BlockHessian:
    """Return the diagonal blocks of the Hessian at z, from k gradients.

    A loss that is a sum over samples has no other entries: one column of all blocks at once is a
    difference of two gradients.

    Args:
        gradient: Of the loss.
        z: Where, (n, k).
        grad: The gradient there.
        length: Of the differences.
    """
    columns = []
    for c in range(z.shape[1]):
        probe = z.clone()
        probe[:, c] += length
        columns.append((gradient(probe) - grad) / length)
    blocks = torch.stack(columns, 2)
    return BlockHessian(0.5 * (blocks + blocks.mT))


def learnt_hessian(
    gradient: Gradient,
    z: Tensor,
    grad: Tensor,
    length: float,
    *,
    tolerance: float,
    dense_up_to: int | None = None,
) -> BlockHessian:
    """Return the Hessian at z from k + 1 gradients, or n k more where the loss mixes samples.

    After the blocks one gradient at a point that the probes did not see tells whether they are all.

    Args:
        gradient: Of the loss.
        z: Where, (n, k).
        grad: The gradient there.
        length: Of the differences.
        tolerance: The loss mixes samples where the blocks miss this share of a change of gradient.
        dense_up_to: Largest n k for which the whole matrix is learnt; None: any.
    """
    H = hessian_by_sample(gradient, z, grad, length)
    if len(z) == 1:
        return H
    step = length * wave(z)
    change = gradient(z + step) - grad
    mixes = bool((change - H(step)).norm() > tolerance * change.norm())
    if not mixes or (dense_up_to is not None and z.numel() > dense_up_to):
        return H
    columns = []
    for j in range(z.numel()):
        probe = z.clone()
        probe.view(-1)[j] += length
        columns.append((gradient(probe) - grad).reshape(-1) / length)
    whole = torch.stack(columns, 1)
    return BlockHessian(0.5 * (whole + whole.T).unsqueeze(0))


def wave(z: Tensor) -> Tensor:
    """Return a fixed direction like z (n, k) that no regular set of probes contains.

    Nothing is drawn from a generator.
    """
    steps = torch.arange(z.numel(), dtype=z.dtype, device=z.device).reshape(z.shape)
    return (1.7 * steps + 0.6).sin()
