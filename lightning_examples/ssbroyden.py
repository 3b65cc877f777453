"""Self-scaled Broyden as published: SciPy's BFGS and line search with another update formula.

Urban, Stefanou & Pons (2025) put the formula into a copy of SciPy's ``_minimize_bfgs``. This is
the same as an optimizer of PyTorch, to compare with. It has no proximal term, and its line search
is the strong Wolfe one.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import line_search
from scipy.optimize._linesearch import line_search_wolfe1
from torch import Tensor, nn

Vector = NDArray[np.float64]


class SSBroyden(torch.optim.Optimizer):
    """Quasi-Newton iterations with the self-scaled update of a dense inverse Hessian.

    Args:
        params: Parameters of float64, on the CPU.
        max_iter: Iterations of one step.

    Source: Urban, Stefanou & Pons, Unveiling the optimization process of physics-informed neural
    networks, Journal of Computational Physics 523 (2025).
    """

    def __init__(self, params: Iterable[nn.Parameter], max_iter: int = 20) -> None:
        super().__init__(params, {"max_iter": max_iter})
        self._parameters: list[Tensor] = self.param_groups[0]["params"]
        self._at: tuple[Vector, float, Vector] | None = None
        self._before = 0.0
        self._H: NDArray[np.float64] | None = None

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Iterate; return the first loss.

        Raises:
            RuntimeError: There is no closure.
        """
        if closure is None:
            raise RuntimeError("SSBroyden.step needs a closure, as torch.optim.LBFGS does")
        evaluate = _Function(self._parameters, closure)
        if self._at is None:
            x = _flat(self._parameters)
            self._at = (x, *evaluate(x))
            self._before = self._at[1] + float(np.linalg.norm(self._at[2])) / 2
        first = self._at[1]
        for _ in range(self.param_groups[0]["max_iter"]):
            if not self._iterate(evaluate):
                break
        _write(self._parameters, self._at[0])
        return first

    def _iterate(self, evaluate: _Function) -> bool:
        """Move once; return whether there was a way down."""
        assert self._at is not None
        x, f, g = self._at
        H = np.eye(len(x)) if self._H is None else self._H
        p = -H @ g
        f_only, g_only = (lambda v: evaluate(v)[0]), (lambda v: evaluate(v)[1])
        how = {"c1": 1e-4, "c2": 0.9}
        t, *_, following, _, new = line_search_wolfe1(
            f_only, g_only, x, p, g, f, self._before, amin=1e-100, amax=1e100, **how
        )
        if t is None:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                t, *_, following, _, new = line_search(
                    f_only, g_only, x, p, g, f, self._before, **how
                )
        if t is None:
            had, self._H = self._H is not None, None
            self._before = f + float(np.linalg.norm(g)) / 2
            return had
        s = t * p
        g_new = g_only(x + s) if new is None else new
        self._H = updated(H, s, g_new - g, -t * float(s @ g))
        self._at, self._before = (x + s, float(following), g_new), f
        return True


def updated(H: NDArray[np.float64], s: Vector, y: Vector, sBs: float) -> NDArray[np.float64]:
    """Return the inverse Hessian after the pair s, y; ``sBs`` is <s, H^-1 s>."""
    sy = float(s @ y)
    if not sy > 0:
        return H
    Hy, N = H @ y, len(s)
    yHy = float(y @ Hy)
    b, h = sBs / sy, yHy / sy
    a, tau, phi = h * b - 1, 1.0, 1.0
    if a > 0 and b > 0:
        rho = min(1.0, h * (1 - math.sqrt(a / (1 + a))))
        theta = max((rho - 1) / a, min(1 / rho, (1 - b) / b))
        sigma = 1 + a * theta
        root, least = sigma ** (-1 / (N - 1)), min(1.0, 1 / b)
        tau = least * min(root, 1 / theta) if theta > 0 else min(least * root, sigma)
        phi = (1 - theta) / sigma
    v = math.sqrt(yHy) * (s / sy - Hy / yHy)
    U = np.stack([Hy, v, s])
    weights = np.array([-1 / (tau * yHy), phi / tau, 1 / sy])
    return H / tau + (U.T * weights) @ U


class _Function:
    """The closure as a function of a vector, its last value kept: SciPy asks for it twice."""

    def __init__(self, parameters: list[Tensor], closure: Callable[[], Any]) -> None:
        self._parameters, self._closure = parameters, closure
        self._at: Vector | None = None
        self._value: tuple[float, Vector] = (math.nan, np.zeros(0))

    def __call__(self, x: Vector) -> tuple[float, Vector]:
        if self._at is None or not np.array_equal(x, self._at):
            _write(self._parameters, x)
            with torch.enable_grad():
                loss = torch.as_tensor(self._closure()).item()
            grad = torch.cat([_grad(p).reshape(-1) for p in self._parameters])
            self._at, self._value = x.copy(), (loss, grad.numpy().astype(np.float64))
        return self._value


def _grad(p: Tensor) -> Tensor:
    return torch.zeros_like(p) if p.grad is None else p.grad


def _flat(parameters: list[Tensor]) -> Vector:
    return torch.cat([p.detach().reshape(-1) for p in parameters]).numpy().astype(np.float64)


def _write(parameters: list[Tensor], x: Vector) -> None:
    sizes = [p.numel() for p in parameters]
    for p, part in zip(parameters, torch.from_numpy(x).split(sizes), strict=True):
        p.copy_(part.view_as(p))
