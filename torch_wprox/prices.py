"""Prices of an assignment problem: reduced costs, and a proof of optimality by label correcting."""

from __future__ import annotations

import numpy as np

from torch_wprox.proof import Floats, Integers

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
