"""A convex quadratic over the simplex, by an active set: the master problem of the atoms."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def simplex_qp(Q: Array, c: Array, start: Array | None = None, *, max_iter: int = 1000) -> Array:
    """Minimise (1/2) w^T Q w + c^T w over w >= 0, sum w = 1.

    Primal active set: minimise on the face of the positive weights; stop at the first weight that
    hits 0 and drop it; on the minimiser of a face let the most profitable atom in.

    Args:
        Q: Positive semidefinite, (J, J).
        c: (J,).
        start: Feasible weights (J,), as those of the last call; None: the best vertex.
        max_iter: Faces visited at most; the last point is feasible whatever happens.

    Returns:
        Weights w (J,), zero off the face.

    Example:
        >>> import numpy as np
        >>> simplex_qp(np.eye(2), np.zeros(2)).round(6).tolist()
        [0.5, 0.5]
    """
    size = len(c)
    if start is None:
        w = np.zeros(size)
        w[np.argmin(0.5 * np.diag(Q) + c)] = 1.0
    else:
        w = np.array(start, dtype=float)
    face = w > 0
    if not (np.isfinite(Q).all() and np.isfinite(c).all()):
        return _lowest(Q, c, w, start)
    scale = max(float(np.abs(np.diag(Q)).max()), float(np.abs(c).max()), 1e-300)
    ridge = 1e-14 * max(float(np.abs(np.diag(Q)).max()), 1e-300)
    for _ in range(max_iter):
        step, is_face_minimum = _face_direction(Q, c, w, face, ridge), True
        if not np.isfinite(step).all():
            break
        shrinking = step < 0
        if shrinking.any():
            ratios = np.where(shrinking, w / np.where(shrinking, -step, 1.0), np.inf)
            hit = int(np.argmin(ratios))
            if ratios[hit] < 1.0:
                w = w + ratios[hit] * step
                w[hit] = 0.0
                face[hit] = False
                is_face_minimum = False
        if not is_face_minimum:
            continue
        w = np.where(face, w + step, 0.0)
        slope = Q @ w + c
        level = float(w @ slope)
        slope[face] = np.inf
        enter = int(np.argmin(slope))
        if slope[enter] >= level - 1e-13 * scale:
            break
        face[enter] = True
    return _lowest(Q, c, w, start)


def _lowest(Q: Array, c: Array, w: Array, start: Array | None) -> Array:
    """Return the lowest of w, the start and all vertices.

    Where numbers of very different size meet, as 1e20 in a nearly unbounded atom, the equations of
    a face have no digits left, and w is worse than what it came from, or no number at all.
    """
    candidates = [np.clip(w, 0.0, None)]
    if start is not None:
        candidates.append(np.array(start, dtype=float))
    vertices = 0.5 * np.diag(Q) + c
    vertex = np.zeros(len(c))
    vertex[np.argmin(np.where(np.isfinite(vertices), vertices, np.inf))] = 1.0
    candidates.append(vertex)
    lowest, found = np.inf, vertex
    for candidate in candidates:
        total = float(candidate.sum())
        if not (np.isfinite(total) and total > 0):
            continue
        weights = candidate / total
        used = weights > 0  # an atom without weight may be of any size
        value = float(
            0.5 * weights[used] @ Q[np.ix_(used, used)] @ weights[used] + c[used] @ weights[used]
        )
        if value < lowest:
            lowest, found = value, weights
    return found


def _face_direction(Q: Array, c: Array, w: Array, face: NDArray[np.bool_], ridge: float) -> Array:
    """Return the step from w to the minimiser on the affine hull of its face.

    The ridge is on the step, not on w: where Q is flat along the face, the step is long and runs
    into the boundary, which is where a minimiser of a flat direction lies.
    """
    rows = np.flatnonzero(face)
    size = len(rows)
    kkt = np.zeros((size + 1, size + 1))
    kkt[:size, :size] = Q[np.ix_(rows, rows)]
    kkt[np.arange(size), np.arange(size)] += ridge
    kkt[size, :size] = kkt[:size, size] = 1.0
    # The multiplier's row is scaled like Q, so that the system is solved to Q's own precision.
    unit = max(float(np.abs(np.diag(Q)).max()), 1e-300)
    kkt[size, :size] *= unit
    kkt[:size, size] *= unit
    right = np.append(-(Q @ w + c)[rows], 0.0)
    try:
        solution = np.linalg.solve(kkt, right)
    except np.linalg.LinAlgError:
        solution = np.linalg.lstsq(kkt, right, rcond=None)[0]
    step: Array = np.zeros(len(w))
    if not np.isfinite(solution).all():
        return np.full(len(w), np.nan)
    step[rows] = solution[:size] - solution[:size].mean()  # exactly on the hull
    return step
