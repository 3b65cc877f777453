"""Exact transport between two clouds of equally many particles of equal mass, class by class."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from torch_wprox.report import TransportCounts


@dataclass(frozen=True)
class TransportState:
    """The assignment in force.

    Attributes:
        sigma: (m,), on the CPU.
        classes: (m,) labels or None.
        counts: Assignments certified, repaired, solved so far.
        certified: Whether ``sigma`` is proved optimal for the last V.
    """

    sigma: Tensor
    classes: Tensor | None
    counts: TransportCounts = field(default_factory=TransportCounts)
    certified: bool = True


def start(W: Tensor, classes: Tensor | None) -> TransportState:
    """Return the identity, optimal at V = W (m, D)."""
    return TransportState(torch.arange(len(W)), classes)


def assign(V: Tensor, W: Tensor, state: TransportState) -> tuple[Tensor, TransportState]:
    """Return an optimal sigma (m,) for V and W, both (m, D), and the new state."""
    sigma = solve(V, W, state.classes)
    if torch.equal(sigma, state.sigma):
        sigma = state.sigma
    counts = state.counts + TransportCounts(solved=1)
    return sigma, TransportState(sigma, state.classes, counts)


def solve(V: Tensor, W: Tensor, classes: Tensor | None) -> Tensor:
    """Return argmin_sigma sum_i |V_i - W_sigma(i)|^2 inside the classes, by scipy, in float64."""
    X, Y = (P.detach().to("cpu", torch.float64).numpy() for P in (V, W))
    sigma = np.arange(len(X))
    labels = np.zeros(len(X), int) if classes is None else classes.cpu().numpy()
    for label in np.unique(labels):
        rows = np.flatnonzero(labels == label)
        centre = Y[rows].mean(0)
        x, y = X[rows] - centre, Y[rows] - centre
        cost = ((x[:, None] - y[None]) ** 2).sum(2)
        _, columns = linear_sum_assignment(cost)
        if cost[np.arange(len(rows)), columns].sum() < np.trace(cost):  # ties prefer fixed points
            sigma[rows] = rows[columns]
    return torch.from_numpy(sigma)


def is_certified(V: Tensor, W: Tensor, state: TransportState) -> bool:
    """Return whether ``state.sigma`` is proved optimal for V and W, both (m, D)."""
    return torch.equal(solve(V, W, state.classes), state.sigma)
