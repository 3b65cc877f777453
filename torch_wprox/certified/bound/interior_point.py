"""A small dense convex quadratic program by a primal-dual interior-point method."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def quadratic_program(
    P: Array,
    q: Array,
    A: Array,
    h: Array,
    E: Array,
    f: Array,
    *,
    tolerance: float = 1e-9,
    max_iter: int = 60,
) -> tuple[Array, Array] | None:
    """Minimise (1/2) x^T P x + q^T x over A x <= h, E x = f.

    Mehrotra's predictor and corrector on the optimality conditions
    P x + q + A^T u + E^T v = 0, A x + y = h, E x = f, u y = 0, u, y >= 0.

    Args:
        P: Positive semidefinite, (N, N).
        q: (N,).
        A: (M, N).
        h: (M,).
        E: (L, N).
        f: (L,).
        tolerance: On residuals and complementarity, relative to the size of q, h and f.
        max_iter: Newton systems at most.

    Returns:
        x (N,) and the multipliers u (M,) of the inequalities; None if the numbers broke down.

    Example:
        >>> import numpy as np
        >>> x, u = quadratic_program(  # min |x|^2/2 over x >= 1
        ...     np.eye(1), np.zeros(1), -np.eye(1), -np.ones(1), np.zeros((0, 1)), np.zeros(0)
        ... )
        >>> x.round(6).tolist(), u.round(6).tolist()
        ([1.0], [1.0])

    Source: Mehrotra (1992); Nocedal & Wright, Numerical Optimization, chapter 16.
    """
    N, M, L = len(q), len(h), len(f)
    x, u, y, v = np.zeros(N), np.ones(M), np.maximum(h, 1.0), np.zeros(L)
    size = 1.0 + max(np.abs(q).max(), np.abs(h).max(initial=0.0), np.abs(f).max(initial=0.0))
    best: tuple[float, Array, Array] | None = None
    for _ in range(max_iter):
        dual = P @ x + q + A.T @ u + E.T @ v
        slack, equal = A @ x + y - h, E @ x - f
        mu = float(u @ y) / M
        error = max(np.abs(dual).max(), np.abs(slack).max(), np.abs(equal).max(initial=0.0), mu)
        if not np.isfinite(error):
            break
        if best is None or error < best[0]:
            best = (error, x.copy(), u.copy())
        if error <= tolerance * size:
            break
        weight = u / y
        kkt = np.zeros((N + L, N + L))
        kkt[:N, :N] = P + (A.T * weight) @ A
        kkt[:N, :N][np.diag_indices(N)] += 1e-13 * max(float(np.abs(kkt[:N, :N]).max()), 1e-300)
        kkt[N:, :N], kkt[:N, N:] = E, E.T

        system = _System(kkt, A, u, y, dual, slack, equal)
        _, _, dy, du = system.step(u * y)
        share = min(_longest(y, dy), _longest(u, du))
        centred = float((u + share * du) @ (y + share * dy)) / M
        sigma = (max(centred, 0.0) / mu) ** 3
        dx, dv, dy, du = system.step(u * y + dy * du - sigma * mu)
        share = 0.99 * min(_longest(y, dy), _longest(u, du))
        x, v, y, u = x + share * dx, v + share * dv, y + share * dy, u + share * du
    return None if best is None else (best[1], best[2])


@dataclass(frozen=True)
class _System:
    """The Newton system of one iterate."""

    kkt: Array
    A: Array
    u: Array
    y: Array
    dual: Array
    slack: Array
    equal: Array

    def step(self, centre: Array) -> tuple[Array, Array, Array, Array]:
        """Return steps of x, v, y and u that bring u y down by ``centre`` (M,)."""
        A, u, y, N = self.A, self.u, self.y, self.A.shape[1]
        right = np.append(-self.dual - A.T @ ((u * self.slack - centre) / y), -self.equal)
        try:
            solution = np.linalg.solve(self.kkt, right)
        except np.linalg.LinAlgError:
            solution = np.linalg.lstsq(self.kkt, right, rcond=None)[0]
        d: Array = np.asarray(solution, dtype=np.float64)
        dx, dv = d[:N], d[N:]
        dy = -self.slack - A @ dx
        return dx, dv, dy, -(centre + u * dy) / y


def _longest(z: Array, dz: Array) -> float:
    """Return the longest share of dz, 1/0.99 at most, that keeps z positive."""
    falling = dz < 0
    shares = -z[falling] / dz[falling]
    return float(min(1.0 / 0.99, shares.min(initial=np.inf)))
