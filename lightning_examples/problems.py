"""The problems of the note and of the examples: data, networks, what is known of their minima."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.datasets import load_diabetes
from torch import Tensor, nn
from torch.nn import functional as F

from torch_wprox import MeanFieldLayer

Batch = tuple[Tensor, Tensor]


def sinus(n: int = 5) -> tuple[Tensor, Tensor]:
    """Return x, y (n, 1): y = sin(10 x - pi/2) + 0.2 x - 0.5 on [-0.5, 0.5]."""
    x = torch.linspace(-0.5, 0.5, n, dtype=torch.float64).unsqueeze(1)
    return x, torch.sin(10 * x - torch.pi / 2) + 0.2 * x - 0.5


def sine_period(n: int = 7) -> tuple[Tensor, Tensor]:
    """Return x, y (n, 1): one period of a sine, y = sin(pi x) on [-1, 1]."""
    x = torch.linspace(-1, 1, n, dtype=torch.float64)[:, None]
    return x, torch.sin(torch.pi * x)


def diabetes(train: int = 354, seed: int = 0) -> tuple[Batch, Batch]:
    """Return (x, y) for training and validation: scikit-learn's 442 patients, standardised.

    x is (n, 10), y (n, 1); both have mean 0 and variance 1 on the training part.
    """
    features, target = load_diabetes(return_X_y=True, scaled=False)
    data = torch.tensor(np.column_stack([features, target]), dtype=torch.get_default_dtype())
    data = data[torch.from_numpy(np.random.default_rng(seed).permutation(len(data)))]
    data = (data - data[:train].mean(0)) / data[:train].std(0)
    return (data[:train, :-1], data[:train, -1:]), (data[train:, :-1], data[train:, -1:])


def note_layer(m: int = 50, seed: int = 0, scale: float = 1e-2) -> MeanFieldLayer:
    """Return the network for it: frozen signs, half of them +, output summed over m neurons."""
    return signed_layer(scale * np.random.default_rng(seed).standard_normal((m, 2)))


def signed_layer(
    W: NDArray[np.float64],
    reduction: Literal["mean", "sum"] = "sum",
    *,
    bias: bool = True,
    alpha: Tensor | None = None,
) -> MeanFieldLayer:
    """Return neurons W (m, D), frozen signs alpha (m,); None: + for the first half, - after it."""
    m, columns = W.shape
    kind: dict[str, Any] = {"parameterization": "signed", "dtype": torch.float64}
    layer = MeanFieldLayer(columns - bias, m, bias=bias, reduction=reduction, **kind)
    if alpha is not None:
        layer.alpha = alpha
    with torch.no_grad():
        layer.particles.copy_(torch.from_numpy(W))
    return layer


def balanced_layer(m: int, scale: float, seed: int) -> MeanFieldLayer:
    """Return m neurons (w, b, alpha), |alpha| = |(w, b)| ~ scale, + for the first half, summed."""
    layer = MeanFieldLayer(1, m, reduction="sum", dtype=torch.float64)
    w = torch.from_numpy(scale * np.random.default_rng(seed).standard_normal((m, 2)))
    signs = torch.where(torch.arange(m) < m // 2, 1.0, -1.0)
    with torch.no_grad():
        layer.particles.copy_(torch.cat([w, (signs * w.norm(dim=1))[:, None]], dim=1))
    return layer


def extremal(x: Tensor, y: Tensor, sign: float, points: int = 36_000) -> Tensor:
    """Return the angles of the extremal vectors of Maennel, Bousquet and Gelly (2018).

    Local maxima on the circle of sign G(u), G(u) = (2/n) sum_j y_j relu<(x_j, 1), u>, to a
    hundredth of a degree; not where G = 0, which moves nothing.

    Args:
        x: Inputs (n, 1).
        y: Labels (n, 1).
        sign: Of the output weight.
        points: Angles tried.
    """
    angles = torch.arange(points, dtype=torch.float64) * (2 * torch.pi / points)
    G = sign * 2 * (y * torch.relu(x * angles.cos() + angles.sin())).mean(dim=0)
    top = (G.roll(1) < G) & (G.roll(-1) <= G) & (G.abs() > 1e-9)
    return torch.atan2(angles.sin(), angles.cos())[top]


def least_loss(x: Tensor, y: Tensor, kinks: Sequence[float]) -> float:
    """Return the least mean squared error of a continuous function, affine between the kinks."""
    A = torch.cat([torch.ones_like(x), x, *(torch.relu(x - kink) for kink in kinks)], dim=1)
    return F.mse_loss(A @ torch.linalg.lstsq(A, y).solution, y).item()


def activates(W: Tensor, x: Tensor) -> Tensor:
    """Return (m,): whether neurons (w, b) = W (m, 2) activate any of the data x (n, 1)."""
    return (W[:, :1] @ x.T + W[:, 1:] > 0).any(dim=1)


def mean_squared_error(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Equation (30) of the note."""
    return F.mse_loss(model(x), y)


class Points(nn.Module):
    """A cloud of points (m, D) that is no network: one matrix is one cloud."""

    def __init__(self, start: Tensor) -> None:
        super().__init__()
        self.points = nn.Parameter(start.clone())

    def positions(self) -> Tensor:
        return self.points.detach().clone()
