"""A better assignment near a given one, in time O(m log m): exchanges along random lines.

Along a line t, matching the i-th smallest <V, t> with the i-th smallest <W, t> is optimal. In the
plane and above it is only a proposal tau, taken whole if that is better. Else row i would like the
anchor tau(i), which row k has, and they exchange their anchors where that lowers the cost,

    <V_i - V_k, W_tau(i) - W_sigma(i)> > 0,

many such pairs at once, as long as no row takes part twice. Pairs of neighbours along the line are
tried in the same way. The cost falls or stays with every exchange, so the result is never worse
than what it started from. Unlike BSP-OT, which merges plans by the same rule, the directions are
drawn from a seed: equal calls give equal answers, so runs can be repeated and resumed to the bit.

Source: the merging rule of BSP-OT (Genest et al. 2025), on sliced plans.
"""

from __future__ import annotations

import numpy as np

from torch_wprox.distances.clouds import Floats, Integers

# Exchanges that a proposal may still allow after this many rounds are few.
_ROUNDS = 3


def refined(V: Floats, W: Floats, sigma: Integers, lines: int, seed: int) -> Integers:
    """Return an assignment that costs no more than ``sigma``; that very object if none was found.

    Args:
        V: Particles, (m, D).
        W: Anchors, (m, D).
        sigma: The assignment to start from, (m,).
        lines: How many are tried.
        seed: Of their directions; another one for every call of a step.
    """
    directions = np.random.default_rng(seed).standard_normal((V.shape[1], lines))
    by_row = np.argsort((V @ directions).T, axis=1)
    by_column = np.argsort((W @ directions).T, axis=1)
    found, proposal = sigma.copy(), np.empty_like(sigma)
    is_better = False
    for rows, columns in zip(by_row, by_column, strict=True):
        proposal[rows] = columns
        if np.einsum("ij,ij", V, W[proposal] - W[found]) > 0:
            found[:], is_better = proposal, True
        else:
            is_better |= _follow(V, W, found, proposal)
        for first in (0, 1):
            pairs = rows[first : first + (len(rows) - first) // 2 * 2]
            is_better |= _exchange(V, W, found, pairs[::2], pairs[1::2])
    return found if is_better else sigma


def _follow(V: Floats, W: Floats, sigma: Integers, proposal: Integers) -> bool:
    """Give rows the anchors that ``proposal`` names, where an exchange gains; return if any did."""
    m, is_better = len(sigma), False
    owner = np.empty_like(sigma)
    for _ in range(_ROUNDS):
        owner[sigma] = np.arange(m)
        partner = owner[proposal]
        gains = np.einsum("ij,ij->i", V - V[partner], W[proposal] - W[sigma])
        rows = np.flatnonzero(gains > 0)
        if not len(rows):
            break
        # Wishes form cycles, as each row has one and is the aim of one. One is granted where it
        # gains more than both its neighbours, with which it shares a row.
        aimed_at = np.empty(m)
        aimed_at[partner] = gains
        k, gain = partner[rows], gains[rows]
        is_pair = (partner[k] == rows) & (rows < k)  # a cycle of two: one exchange, wished twice
        granted = rows[(gain >= aimed_at[rows]) & ((gain > gains[k]) | is_pair)]
        is_better |= _exchange(V, W, sigma, granted, partner[granted])
    return is_better


def _exchange(V: Floats, W: Floats, sigma: Integers, a: Integers, b: Integers) -> bool:
    """Exchange the anchors of disjoint pairs of rows where that gains; return if any did."""
    own, other = sigma[a], sigma[b]
    gains = np.einsum("ij,ij->i", V[a] - V[b], W[other] - W[own])
    better = np.flatnonzero(gains > 0)
    sigma[a[better]], sigma[b[better]] = other[better], own[better]
    return bool(len(better))
