"""Families of functions in which an energy is sought, with their derivatives."""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations_with_replacement

import torch
from torch import Tensor

Features = Callable[[Tensor], Tensor]
"""Points (m, D) to the values of K functions, (m, K); differentiable twice by autograd."""


def polynomials(dim: int, degree: int) -> Features:
    """Return all monomials in ``dim`` variables of degree 1 to ``degree``.

    Example:
        >>> polynomials(2, 2)(torch.tensor([[2.0, 3.0]]))
        tensor([[2., 3., 4., 6., 9.]])
    """
    if degree < 1:
        raise ValueError(f"degree must be >= 1, got {degree!r}")
    powers = [
        [variables.count(axis) for axis in range(dim)]
        for d in range(1, degree + 1)
        for variables in combinations_with_replacement(range(dim), d)
    ]

    def monomials(x: Tensor) -> Tensor:
        columns = []
        for row in powers:
            factors = [x[:, axis] for axis, power in enumerate(row) for _ in range(power)]
            columns.append(torch.stack(factors).prod(0) if len(factors) > 1 else factors[0])
        return torch.stack(columns, 1)

    return monomials


def radial(centres: Tensor, width: float) -> Features:
    """Return Gaussian bumps exp(-|x - c|^2/(2 width^2)) about ``centres`` (K, D).

    Example:
        >>> radial(torch.zeros(1, 2), 1.0)(torch.zeros(1, 2))
        tensor([[1.]])
    """
    if not width > 0:
        raise ValueError(f"width must be > 0, got {width!r}")

    def bumps(x: Tensor) -> Tensor:
        apart = (x[:, None] - centres).square().sum(2)
        return torch.exp(-apart / (2 * width**2))

    return bumps


def ridges(directions: Tensor) -> Features:
    """Return relu(<u, x>) for ``directions`` u (K, D): what two-layer networks are made of.

    They have kinks, so that they cannot be used together with an entropy.

    Example:
        >>> ridges(torch.eye(2))(torch.tensor([[-1.0, 2.0]]))
        tensor([[0., 2.]])
    """
    return lambda x: torch.relu(x @ directions.t())


def gradients(features: Features, x: Tensor) -> Tensor:
    """Return the gradients of all features at x (m, D), (m, K, D): D passes forward."""
    return torch.stack([_along(features, x, axis) for axis in range(x.shape[1])], 2)


def laplacians(features: Features, x: Tensor) -> Tensor:
    """Return the Laplacians of all features at x (m, D), (m, K)."""
    seconds = [
        _along(lambda y, axis=axis: _along(features, y, axis), x, axis)  # type: ignore[misc]
        for axis in range(x.shape[1])
    ]
    return torch.stack(seconds).sum(0)


def _along(function: Features, x: Tensor, axis: int) -> Tensor:
    """Return the derivative of ``function`` along one axis at every point, (m, K).

    Forward by two passes backward: <u, J v> is the derivative of <J^T u, v> in u. (torch's own
    forward mode warns of its compiler.)
    """
    nested = x.requires_grad
    with torch.enable_grad():
        at = x if nested else x.detach().requires_grad_()
        values = function(at)
        u = torch.zeros_like(values, requires_grad=True)
        if not values.requires_grad:
            return torch.zeros_like(values)
        (pulled,) = torch.autograd.grad(
            values, at, u, create_graph=True, allow_unused=True, materialize_grads=True
        )
        if not pulled.requires_grad:
            return torch.zeros_like(values)
        (found,) = torch.autograd.grad(
            pulled[:, axis].sum(), u, create_graph=True, allow_unused=True, materialize_grads=True
        )
    return found if nested else found.detach()
