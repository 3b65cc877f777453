"""Prices of an assignment problem: reduced costs, a proof of optimality, good prices to start from.

An assignment problem is solved from starting prices, in time that grows with their distance from
optimal ones. Those in force are far off once the cloud has moved far. But optimal prices are the
values at the anchors of a convex potential,

    p_j = max_i <V_i, W_j> - phi_i,      phi_i = <V_i, W_sigma(i)> - p_sigma(i),

which half of the particles determine nearly as well as all: so halves are solved, from the smallest
on, each from the prices that the last one extends to it. A half takes an eighth of the time.
"""

from __future__ import annotations

import numpy as np
from scipy.optimize import linear_sum_assignment

from torch_wprox.distances.clouds import Floats, Integers

# Label correcting may look at every row this many times.
_PASSES = 6


def reduced_costs(V: Floats, W: Floats, prices: Floats) -> Floats:
    """Return R_ij = p_j - <V_i, W_j> less its row minima, (m, m)."""
    R: Floats = V @ W.T
    np.subtract(prices, R, out=R)  # in place: a large new array costs more than its arithmetic
    R -= R.min(1)[:, None]
    return R


def price_rise(R: Floats, sigma: Integers, rounding: float) -> tuple[Floats, bool]:
    """Return the least rise of prices that proves ``sigma``, and whether it was found.

    sigma is proved by p + rise iff rise_j >= rise_sigma(i) - (R_ij - R_isigma(i)) for all i, j: a
    longest-path problem without positive cycles, as sigma is optimal. Label correcting: only rows
    whose own column rose can demand more of others. Clouds that move far need long paths and leave
    their proof at once, so the work is bounded; prices near a proof still speed up the next solve.
    """
    m = len(sigma)
    rise = np.zeros(m)
    row_of = np.empty(m, dtype=np.int64)
    row_of[sigma] = np.arange(m)
    own = R[np.arange(m), sigma]
    active = np.flatnonzero(own > rounding)  # a row with its minimum at sigma demands nothing
    work = _PASSES * m
    while len(active) and work > 0:
        work -= len(active)
        wanted = ((rise[sigma[active]] + own[active])[:, None] - R[active]).max(0)
        raised = np.flatnonzero(wanted > rise + rounding)
        rise[raised] = wanted[raised]
        active = row_of[raised]
    return rise, not len(active)


COARSENED = 200
"""Up to this many particles there is nothing to gain."""


# Of reduced costs, relative.
_ROUNDING = 1e-12


def coarse_prices(V: Floats, W: Floats, sigma: Integers, prices: Floats) -> Floats:
    """Return prices (m,) from which the whole problem is solved faster than from ``prices``.

    Args:
        V: Particles, (m, D).
        W: Anchors, (m, D).
        sigma: The assignment in force: its pairs are halved, so that the halves of both clouds fit.
        prices: Those in force, (m,), where the smallest part starts.
    """
    m = len(V)
    sizes = [m]
    while sizes[-1] > COARSENED:
        sizes.append(sizes[-1] // 2)
    order = np.random.default_rng(m).permutation(m)  # no structure of the order of particles
    for size in sizes[:0:-1]:
        rows = order[:size]
        columns = sigma[rows]
        x, potential = _potential(V[rows], W[columns], prices[columns])
        prices = (x @ W.T - potential[:, None]).max(0)
    return prices


def _potential(V: Floats, W: Floats, prices: Floats) -> tuple[Floats, Floats]:
    """Solve a part; return its particles and phi at them, (k,)."""
    R = reduced_costs(V, W, prices)
    sigma: Integers = linear_sum_assignment(R)[1]
    rise, _ = price_rise(R, sigma, _ROUNDING * float(R.max()))
    own: Floats = (V * W[sigma]).sum(1)
    return V, own - (prices + rise)[sigma]
