"""One exact assignment, solved afresh."""

from __future__ import annotations

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from torch_wprox.distances.clouds import as_float64, class_rows


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
