"""Two differential equations for networks to solve: data, loss, exact solution.

A physics-informed network u_theta(x) is trained on the mean squared residual of the equation at
points inside, plus the mean squared error of its boundary and initial values.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor, nn

SIZES = (2, 20, 20, 20, 1)
VISCOSITY = 0.01 / math.pi
F64 = torch.float64


def network(seed: int, sizes: Sequence[int] = SIZES) -> nn.Sequential:
    """Return tanh layers of 20 neurons, 921 numbers, drawn as Glorot and Bengio (2010) do."""
    generator, layers = torch.Generator().manual_seed(seed), []
    for inputs, outputs in pairwise(sizes):
        layer = nn.Linear(inputs, outputs, dtype=F64)
        nn.init.xavier_normal_(layer.weight, generator=generator)
        nn.init.zeros_(layer.bias)
        layers += [layer, nn.Tanh()]
    return nn.Sequential(*layers[:-1])


def derivatives(net: nn.Sequential, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return u (n,), its first and its pure second derivatives (2, n) in both coordinates.

    The chain rule, layer by layer: with z = W h + b and h+ = tanh(z),
    h+' = (1 - h+^2) z' and h+'' = (1 - h+^2) (z'' - 2 h+ z'^2). One backward pass is left for the
    gradient, where differentiating by autograd would need three.

    Args:
        net: Linear and tanh layers in turn.
        x: Points, (n, 2).
    """
    n = len(x)
    h, first = x, torch.eye(2, dtype=x.dtype)[:, None, :].expand(2, n, 2)
    second = torch.zeros_like(first)
    for layer in net:
        if isinstance(layer, nn.Linear):
            products = torch.cat([h[None], first, second]) @ layer.weight.T
            h, first, second = products[0] + layer.bias, products[1:3], products[3:]
        else:
            h = torch.tanh(h)
            slope = 1.0 - h * h
            second = slope * (second - 2.0 * h * first * first)
            first = slope * first
    return h[:, 0], first[..., 0], second[..., 0]


@dataclass(frozen=True)
class Equation:
    """An equation with its data.

    Attributes:
        name: What it is called.
        inside: Points at which its residual counts, (n, 2).
        edge: Points whose values are given, (k, 2).
        values: Those values, (k,).
        residual: Its residual (n,) from u, first and second derivatives.
        weight: Of the residual in the loss.
        exact: The solution at points (n, 2).
    """

    name: str
    inside: Tensor
    edge: Tensor
    values: Tensor
    residual: Callable[[Tensor, Tensor, Tensor], Tensor]
    weight: float
    exact: Callable[[Tensor], Tensor]

    def loss(self, net: nn.Sequential) -> Tensor:
        """Return weight mean residual^2 + mean squared error at the edge."""
        residual = self.residual(*derivatives(net, self.inside))
        apart = net(self.edge)[:, 0] - self.values
        return self.weight * residual.square().mean() + apart.square().mean()

    def error(self, net: nn.Sequential, x: Tensor) -> float:
        """Return |u - exact|/|exact| over the points ``x`` (n, 2)."""
        with torch.no_grad():
            exact = self.exact(x)
            return ((net(x)[:, 0] - exact).norm() / exact.norm()).item()


def square_edges(*, lower: float) -> Tensor:
    """Return 25 points on each of two opposite sides, first coordinate +-1 or ``lower`` and 1."""
    s = torch.linspace(0, 1, 25, dtype=F64)
    return torch.cat([torch.stack([torch.full_like(s, end), s], 1) for end in (lower, 1.0)])


def poisson() -> Equation:
    """Return -(u_xx + u_yy) = 2 pi^2 sin(pi x) sin(pi y) on the unit square, u = 0 on its edge."""

    def exact(x: Tensor) -> Tensor:
        return torch.sin(math.pi * x[:, 0]) * torch.sin(math.pi * x[:, 1])

    inside = torch.rand(400, 2, generator=torch.Generator().manual_seed(0), dtype=F64)
    source = 2 * math.pi**2 * exact(inside)
    sides = square_edges(lower=0.0)
    edge = torch.cat([sides, sides.flip(1)])
    return Equation(
        name="Poisson",
        inside=inside,
        edge=edge,
        values=torch.zeros(len(edge), dtype=F64),
        residual=lambda u, first, second: second.sum(0) + source,
        weight=0.01,
        exact=exact,
    )


def burgers() -> Equation:
    """Return u_t + u u_x = (0.01/pi) u_xx on [-1, 1] x [0, 1], u(x, 0) = -sin(pi x), u(+-1) = 0."""
    inside = torch.rand(500, 2, generator=torch.Generator().manual_seed(0), dtype=F64)
    inside[:, 0] = 2 * inside[:, 0] - 1
    x = torch.linspace(-1, 1, 50, dtype=F64)
    sides = square_edges(lower=-1.0)
    return Equation(
        name="Burgers",
        inside=inside,
        edge=torch.cat([torch.stack([x, torch.zeros_like(x)], 1), sides]),
        values=torch.cat([-torch.sin(math.pi * x), torch.zeros(len(sides), dtype=F64)]),
        residual=lambda u, first, second: first[1] + u * first[0] - VISCOSITY * second[0],
        weight=1.0,
        exact=cole_hopf,
    )


def cole_hopf(x: Tensor, nodes: int = 100) -> Tensor:
    """Return the solution of :func:`burgers` at points (x, t) (n, 2).

    u = -int sin(pi (x - eta)) f(x - eta) k(eta) d eta / int f(x - eta) k(eta) d eta with the heat
    kernel k of variance 2 nu t and f(y) = exp(-cos(pi y)/(2 pi nu)), by Gauss-Hermite quadrature
    (Basdevant et al. 1986).
    """
    z, w = np.polynomial.hermite.hermgauss(nodes)
    y = x[:, :1] - (4 * VISCOSITY * x[:, 1:]).sqrt() * torch.from_numpy(z)
    exponent = -torch.cos(math.pi * y) / (2 * math.pi * VISCOSITY)
    f = torch.exp(exponent - exponent.max(1, keepdim=True).values) * torch.from_numpy(w)
    return -(torch.sin(math.pi * y) * f).sum(1) / f.sum(1)


EQUATIONS = {"Poisson": poisson, "Burgers": burgers}
