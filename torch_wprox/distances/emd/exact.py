"""One exact assignment, solved afresh."""

from __future__ import annotations

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from torch_wprox.distances.clouds import as_float64, centred, class_rows
from torch_wprox.distances.emd.proof import Anchor, tolerance


def solve(V: Tensor, W: Tensor, classes: Tensor | None) -> Tensor:
    """Return argmin_sigma sum_i |V_i - W_sigma(i)|^2 inside the classes, from nothing, by scipy.

    Ties prefer fixed points only as a whole: the identity is returned if nothing is better.

    Args:
        V: (m, D), finite.
        W: (m, D), finite.
        classes: Labels (m,) or None.
    """
    X, Y = as_float64(V), as_float64(W)
    sigma = np.arange(len(X))
    for rows in class_rows(classes, len(X)):
        x, y = X[rows] - Y[rows].mean(0), Y[rows] - Y[rows].mean(0)
        cost = ((x[:, None] - y[None]) ** 2).sum(2)
        _, columns = linear_sum_assignment(cost)
        if cost[np.arange(len(x)), columns].sum() < np.trace(cost):
            sigma[rows] = sigma[rows][columns]
    return torch.from_numpy(sigma)


def is_tied(V: Tensor, W: Tensor, sigma: Tensor) -> bool:
    """Return whether the identity costs no more than ``sigma`` (m,), to rounding.

    Args:
        V: (m, D).
        W: (m, D).
        sigma: An optimal assignment.
    """
    X, anchor = centred(as_float64(V)), Anchor(as_float64(W))
    gain = (X * (anchor.W[sigma.cpu().numpy()] - anchor.W)).sum()
    return bool(gain <= len(X) * tolerance(anchor, X))
