"""The problems of the benchmarks as functions of a cloud (m, D), with classes of the particles."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from sklearn.datasets import load_diabetes, load_digits
from torch import Tensor
from torch.nn import functional as F

F64 = torch.float64
Batch = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Problem:
    """F(V), the anchor W (m, D), and which particles may be exchanged."""

    fn: Callable[[Tensor], Tensor]
    W: Tensor
    classes: Tensor | None = None


def sinus() -> Batch:
    """X (5, 2) with a column of ones and y (5,): the five points of a sine."""
    x = torch.linspace(-0.5, 0.5, 5, dtype=F64)
    y = torch.sin(10 * x - torch.pi / 2) + 0.2 * x - 0.5
    return torch.stack([x, torch.ones_like(x)], 1), y


def signed(x: Tensor, y: Tensor, m: int, seed: int, perturbation: int = 0) -> Problem:
    """M ReLU neurons of frozen signs (half of them +), summed, mean squared error, W ~ 1e-2.

    W is multiplied by 1 + 1e-12 g, g normal, for each perturbation > 0: an inner problem with kinks
    answers such a change with another local minimum.
    """
    W = 1e-2 * np.random.default_rng(seed).standard_normal((m, x.shape[1]))
    if perturbation:
        W *= 1 + 1e-12 * np.random.default_rng(perturbation).standard_normal(W.shape)
    signs = torch.where(torch.arange(m) < m // 2, 1.0, -1.0).to(F64)

    def fn(V: Tensor) -> Tensor:
        return (torch.relu(x @ V.T) @ signs - y).square().mean()

    return Problem(fn, torch.from_numpy(W), (signs > 0).long())


def random_data(n: int = 50, d: int = 10) -> Batch:
    """Normal inputs (n, d + 1) with a column of ones, normal labels (n,)."""
    rng = np.random.default_rng(0)
    x = torch.from_numpy(np.column_stack([rng.standard_normal((n, d)), np.ones(n)]))
    return x, torch.from_numpy(rng.standard_normal(n))


def joint(loss: Callable[[Tensor], Tensor], x: Tensor, m: int, k: int, seed: int) -> Problem:
    """M neurons (w, b, a) with k outputs, summed; the weights as torch.nn.Linear draws them."""
    rng, d = np.random.default_rng(seed), x.shape[1]
    W = np.column_stack(
        [
            rng.uniform(-1, 1, (m, d)) / np.sqrt(d),
            rng.uniform(-1, 1, (m, k)) / np.sqrt(m),
        ]
    )

    def fn(V: Tensor) -> Tensor:
        return loss(torch.relu(x @ V[:, :d].T) @ V[:, d:])

    return Problem(fn, torch.from_numpy(W))


def _split(x: np.ndarray, y: np.ndarray, train: int) -> tuple[Batch, Batch]:
    """Standardise by the training part and append a column of ones."""
    order = np.random.default_rng(0).permutation(len(x))
    x, y = x[order], y[order]
    x = (x - x[:train].mean(0)) / np.maximum(x[:train].std(0), 1e-6)
    X = torch.from_numpy(np.column_stack([np.clip(x, -5, 5), np.ones(len(x))]))
    Y = torch.from_numpy(y)
    return (X[:train], Y[:train]), (X[train:], Y[train:])


def diabetes() -> tuple[Batch, Batch]:
    """(x, y) for training and validation; y standardised."""
    x, y = load_diabetes(return_X_y=True, scaled=False)
    return _split(x, (y - y[:354].mean()) / y[:354].std(), 354)


def digits(train: int = 1000) -> tuple[Batch, Batch]:
    """(x, labels) for training and validation."""
    x, y = load_digits(return_X_y=True)
    return _split(x.astype(float), y, train)


def teacher_student(n: int = 200, d: int = 10, neurons: int = 5) -> tuple[Batch, Batch]:
    """Labels of a two-layer teacher on normal inputs."""
    rng = np.random.default_rng(0)
    x = np.column_stack([rng.standard_normal((2 * n, d)), np.ones(2 * n)])
    w, a = rng.standard_normal((d + 1, neurons)) / np.sqrt(d), rng.standard_normal(neurons)
    X, Y = torch.from_numpy(x), torch.from_numpy(np.maximum(x @ w, 0) @ a)
    return (X[:n], Y[:n]), (X[n:], Y[n:])


def squared(y: Tensor) -> Callable[[Tensor], Tensor]:
    """Mean squared error of outputs (n, 1)."""
    return lambda z: (z[:, 0] - y).square().mean()


def cross_entropy(labels: Tensor) -> Callable[[Tensor], Tensor]:
    """Cross-entropy of outputs (n, k)."""
    return lambda z: F.cross_entropy(z, labels)


def waves(n: int = 300) -> Batch:
    """Points (n, 2) in the square [-1, 1]^2 and a smooth function of them, (n,)."""
    x = torch.from_numpy(np.random.default_rng(0).uniform(-1, 1, (n, 2)))
    first, second = x[:, 0], x[:, 1]
    return x, torch.sin(3 * first) * torch.cos(2 * second) + 0.5 * torch.sin(6 * first * second)
