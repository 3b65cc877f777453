"""Small networks whose proximal step is solved by enumeration: the oracle of the global solver.

With every particle held in a closed cell of constant activation the output is linear in V and P is
convex; a cell of the plane is the cone of its two rays, so for a squared error each tuple of cells
is one nonnegative least squares problem. The least of their minima is min P, exactly.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import minimize, nnls
from torch import Tensor
from torch.nn import functional as F

from torch_wprox import MeanFieldLayer

F64 = torch.float64


def cones(X: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    """Rays (2, 2) and activation pattern (n,) of the cells that the lines of X (n, 2) cut."""
    lines = np.arctan2(X[:, 0], -X[:, 1])[np.abs(X).sum(1) > 0]
    lines = np.concatenate([lines, [0.3, 0.3 + np.pi / 2]])  # cells narrower than a half plane
    angles = np.sort(np.concatenate([lines, lines + np.pi]) % (2 * np.pi))
    angles = angles[np.append(True, np.diff(angles) > 1e-12)]
    found = []
    for a, b in zip(angles, np.append(angles[1:], angles[0] + 2 * np.pi), strict=True):
        rays = np.array([[np.cos(a), np.sin(a)], [np.cos(b), np.sin(b)]])
        found.append((rays, (X @ rays.sum(0) > 0).astype(float)))
    return found


@dataclass
class Case:
    """A layer, a loss R of its output, an anchor (the layer's particles) and a step size."""

    layer: MeanFieldLayer
    x: Tensor
    loss: Callable[[Tensor], Tensor]
    gamma: float
    target: Tensor | None = None
    is_squared: bool = False

    def closure(self) -> Tensor:
        self.layer.zero_grad()
        loss = self.loss(self.layer(self.x))
        loss.backward()
        return loss

    def evaluated(self) -> Tensor:
        """One evaluation with gradients, wherever it is called from."""
        with torch.enable_grad():
            return self.closure()

    @property
    def features(self) -> np.ndarray:
        X = self.x.numpy()
        return np.hstack([X, np.ones((len(X), 1))]) if self.layer.has_bias else X

    @property
    def anchor(self) -> Tensor:
        return self.layer.particles.detach().clone()

    def smallest(self) -> float:
        """min P over the particles with frozen output weights in the plane, by enumeration."""
        layer, X, W = self.layer, self.features, self.anchor.numpy()
        coefficients = (layer.scale * layer.neurons()[1]).detach().numpy()  # (m, k)
        kappa = 1 / (layer.width * self.gamma)
        blocks = [
            # columns of d z/d r, (n k, 2), and of V_i, for V_i = r_0 ray_0 + r_1 ray_1
            [np.kron((on[:, None] * X) @ rays.T, a[:, None]) for rays, on in cones(X)]
            for a in coefficients
        ]
        all_rays = [rays for rays, _ in cones(X)]
        values = []
        for choice in itertools.product(range(len(all_rays)), repeat=layer.width):
            A = np.hstack([blocks[i][c] for i, c in enumerate(choice)])
            moves = np.zeros((2 * layer.width, 2 * layer.width))
            for i, c in enumerate(choice):
                moves[2 * i : 2 * i + 2, 2 * i : 2 * i + 2] = all_rays[c].T
            values.append(self._on_cell(A, moves, W.reshape(-1), kappa))
        return min(values)

    def _on_cell(self, A: np.ndarray, moves: np.ndarray, W: np.ndarray, kappa: float) -> float:
        """min over r >= 0 of R(A r) + (kappa/2)|moves r - W|^2."""
        root = np.sqrt(kappa / 2)
        if self.is_squared and self.target is not None:
            y = self.target.numpy().reshape(-1)
            weight = np.sqrt(1 / len(y))
            stacked = np.vstack([weight * A, root * moves])
            _, residual = nnls(stacked, np.concatenate([weight * y, root * W]))
            return float(residual**2)

        def function(r: np.ndarray) -> tuple[float, np.ndarray]:
            z = torch.tensor(A @ r).reshape(len(self.x), -1).requires_grad_()
            value = self.loss(z)
            value.backward()
            moved = moves @ r - W
            grad = A.T @ z.grad.numpy().reshape(-1) + kappa * moves.T @ moved
            return float(value.detach()) + 0.5 * kappa * moved @ moved, grad

        start = np.clip(np.linalg.solve(moves, W), 0.0, None)
        options = {"ftol": 1e-15, "gtol": 1e-10, "maxiter": 1000}
        found = minimize(
            function,
            start,
            jac=True,
            method="L-BFGS-B",
            bounds=[(0, None)] * len(W),
            options=options,
        )
        return float(found.fun)


def squared(target: Tensor) -> Callable[[Tensor], Tensor]:
    return lambda z: (z - target).square().mean()


def random_case(
    seed: int,
    *,
    m: int = 2,
    n: int = 3,
    k: int = 1,
    d: int = 1,
    form: str = "signed",
    loss: str = "squared",
    gamma: float | None = None,
    reduction: str = "sum",
    output_bias: bool = False,
    dead: bool = False,
    no_bias: bool = False,
    scale: float | None = None,
) -> Case:
    """Draw data, anchor, step size (log-uniform on [.01, 100]) and scale of the anchor."""
    g = torch.Generator().manual_seed(1000 * seed + 7)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=g, dtype=F64)

    d += no_bias
    x = normal(n, d)
    layer = MeanFieldLayer(
        d, m, k, parameterization=form, reduction=reduction, output_bias=output_bias,
        bias=not no_bias, generator=g, dtype=F64,
    )  # fmt: skip
    if scale is None:
        scale = 10 ** float(torch.empty(1, dtype=F64).uniform_(-2, 0.5, generator=g))
    if gamma is None:
        gamma = 10 ** float(torch.empty(1, dtype=F64).uniform_(-2, 2, generator=g))
    with torch.no_grad():
        layer.particles.copy_(scale * normal(*layer.particles.shape))
        if dead:  # no neuron is active on any sample
            layer.particles[:, :d] = 0.0
            layer.particles[:, d] = -scale
    if loss == "squared":
        target = normal(n, k)
        R = squared(target)
    elif loss == "logistic":
        target = normal(n, k).sign()
        R = lambda z: F.softplus(-target * z).mean()  # noqa: E731
    else:
        classes = torch.randint(k, (n,), generator=g)
        target = F.one_hot(classes, k).to(F64)
        R = lambda z: F.cross_entropy(z, classes)  # noqa: E731
    return Case(layer, x, R, gamma, target, loss == "squared")
