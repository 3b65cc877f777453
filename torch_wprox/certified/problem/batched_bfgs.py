"""Nonsmooth BFGS on many starts at once: local descent on P, in arithmetic of our own.

The conditions of the line search and the update of H are those of the optimizers' own BFGS
(:mod:`torch_wprox.solvers`); the loop is another one, as rows turn at different rounds.

Source: Lewis & Overton, Nonsmooth optimization via quasi-Newton methods (2013): full BFGS with a
weak Wolfe line search by bisection needs no change to work on kinks. Al-Baali (1998) for the
self-scaled update.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from torch_wprox.solvers.bfgs import add_rank_two, rank_two, scaling
from torch_wprox.solvers.line_search import WeakWolfe

BatchFunction = Callable[[Tensor], tuple[Tensor, Tensor]]
"""x (B, N) -> values (B,) and gradients (B, N)."""

Ends = Callable[[], bool]
"""Whether time is up: asked now and then, a true answer ends what is under way."""


def unlimited() -> bool:
    """Time is never up."""
    return False


# An evaluation of the batch costs every row, so a search that nearly suits a row has to do; shorter
# searches suit the self-scaled update.
_SEARCH, _SHORT_SEARCH = WeakWolfe(curvature=0.5), WeakWolfe(curvature=0.9)
# Up to this many numbers per row the whole inverse Hessian is kept, above the last pairs; so many
# numbers all the inverse Hessians of a batch may have.
_DENSE_UP_TO, _NUMBERS = 2000, 16_000_000
_PAIRS = 20
# Rounds between two looks at the clock.
_ASKED = 16


@dataclass(frozen=True)
class BatchMinima:
    """Where every start ended.

    Attributes:
        points: (B, N).
        values: (B,).
        rounds: Evaluations of the batch.
    """

    points: Tensor
    values: Tensor
    rounds: int


def batched_bfgs(
    function: BatchFunction,
    start: Tensor,
    first_step: float,
    *,
    max_rounds: int,
    tolerance: float = 1e-9,
    self_scaling: bool = False,
    ends: Ends = unlimited,
) -> BatchMinima:
    """Descend from every row of ``start`` by (L-)BFGS with weak Wolfe steps, all rows in lockstep.

    One round evaluates every row once; a row whose step is accepted updates its inverse Hessian and
    turns, the others bisect on. Rows do not see each other. A row ends when its line search does.

    Args:
        function: What to minimise; ``inf`` marks points outside the domain.
        start: (B, N).
        first_step: Scale of the first inverse Hessian, 1/curvature.
        max_rounds: Evaluations per row.
        tolerance: A row ends when the decrease that its model promises falls below this, relative
            to its value.
        self_scaling: Whether inverse Hessians forget curvatures that were too large everywhere at
            once: for long descents across many kinks. Above 2000 numbers per row it is not done.
        ends: Asked every few rounds; all rows end with its true answer.
    """
    x = start.clone()
    f, g = function(x)
    rows, size = x.shape
    search = _SHORT_SEARCH if self_scaling else _SEARCH
    H: _Dense | _Limited = _Limited(first_step, self_scaling)
    if size <= _DENSE_UP_TO and rows * size**2 <= _NUMBERS:
        H = _SelfScaled(x, first_step) if self_scaling else _Dense(x, first_step)
    p = -first_step * g
    zero, one, infinite = f.new_zeros(rows), f.new_ones(rows), f.new_full((rows,), torch.inf)
    t, low, high, searched = one.clone(), zero.clone(), infinite.clone(), zero.clone()
    slope = (g * p).sum(1)
    alive = f.isfinite()
    rounds = 1
    while rounds < max_rounds and bool(alive.any()):
        if rounds % _ASKED == 0 and ends():
            break
        trial = torch.where(alive.unsqueeze(1), x + t.unsqueeze(1) * p, x)
        f_new, g_new = function(trial)
        rounds += 1
        too_long = ~search.falls(f_new, f, t, slope)
        too_short = ~too_long & ~search.flattens((g_new * p).sum(1), slope)
        taken = alive & ~too_long & ~too_short
        # Bisection, doubling while no upper end is known.
        high = torch.where(too_long, t, high)
        low = torch.where(too_short, t, low)
        searched = torch.where(taken, zero, searched + 1.0)
        # An interval that no longer shrinks ends the row; its best point is taken with it.
        stuck = alive & ~taken & (searched > search.max_trials)
        accept = (taken | (stuck & (f_new < f))).unsqueeze(1)
        if bool(accept.any()):
            s, y = trial - x, g_new - g
            H.update(s, y, taken, -t * (s * g).sum(1))
            x, g = torch.where(accept, trial, x), torch.where(accept, g_new, g)
            f = torch.where(accept[:, 0], f_new, f)
            p = torch.where(accept, -H.times(g), p)
            slope = (g * p).sum(1)
            moved = accept[:, 0]
            low, high = torch.where(moved, zero, low), torch.where(moved, infinite, high)
        t = torch.where(high.isinf(), torch.where(low > 0, 2.0 * low, one), 0.5 * (low + high))
        alive = alive & ~stuck & (-slope > tolerance * f.abs())
    return BatchMinima(x, f, rounds)


class _Dense:
    """Inverse Hessians (B, N, N)."""

    def __init__(self, x: Tensor, scale: float) -> None:
        rows, size = x.shape
        eye = torch.eye(size, dtype=x.dtype, device=x.device)
        self._H = (scale * eye).expand(rows, size, size).clone()

    def times(self, g: Tensor) -> Tensor:
        """Return H g."""
        return (self._H @ g.unsqueeze(2)).squeeze(2)

    def update(self, s: Tensor, y: Tensor, taken: Tensor, sBs: Tensor) -> None:
        """Take in steps s and changes y (B, N) of the rows that are taken; B = H^-1."""
        sy = (s * y).sum(1)
        counts = taken & (sy > 0)
        # The others change nothing; their gradients may even be no numbers.
        s, y = (x.where(counts.unsqueeze(1), x.new_zeros(())) for x in (s, y))
        Hy, sy = self.times(y), sy.where(counts, sy.new_ones(()))
        ss, sh, _ = (weight.unsqueeze(1) for weight in rank_two(sy, (y * Hy).sum(1)))
        self._H.addcmul_((ss * s + sh * Hy).unsqueeze(2), s.unsqueeze(1))
        self._H.addcmul_((sh * s).unsqueeze(2), Hy.unsqueeze(1))


class _SelfScaled(_Dense):
    """Inverse Hessians (B, N, N), updated as :func:`torch_wprox.solvers.bfgs.self_scaled` does."""

    def __init__(self, x: Tensor, scale: float) -> None:
        super().__init__(x, scale)
        self._is_fresh = [True] * len(x)

    def update(self, s: Tensor, y: Tensor, taken: Tensor, sBs: Tensor) -> None:
        """Take in steps s and changes y (B, N) of the rows that are taken; sBs (B,), B = H^-1."""
        Hy = self.times(y)
        columns = (
            taken,
            (s * y).sum(1),
            (y * Hy).sum(1),
            sBs,
            s.square().sum(1),
            y.square().sum(1),
        )
        numbers = torch.stack([c.to(s.dtype) for c in columns], 1).tolist()
        for i, (is_taken, sy, yHy, old, ss, yy) in enumerate(numbers):
            if not (is_taken and sy > 0 and yHy > 0 and math.isfinite(sy)):
                continue
            Hy_i = Hy[i]
            if self._is_fresh[i]:  # Nocedal & Wright (6.20): the scale of the first curvature seen
                self._is_fresh[i] = False
                ratio = sy / yy
                self._H[i].zero_().diagonal().fill_(ratio)
                Hy_i, yHy, old = ratio * y[i], ratio * yy, ss / ratio
            tau, phi = scaling(old / sy, yHy / sy, s.shape[1])
            add_rank_two(self._H[i], s[i], Hy_i, sy, yHy, tau, phi)


class _Limited:
    """The last pairs of every row; a row that was not taken leaves an empty pair."""

    def __init__(self, scale: float, self_scaling: bool = False) -> None:
        self._scaled: float | Tensor = scale
        self._self_scaling = self_scaling
        self._pairs: list[tuple[Tensor, Tensor, Tensor]] = []

    def times(self, g: Tensor) -> Tensor:
        """Return H g by the two-loop recursion."""
        q, stack = g, []
        for s, y, rho in reversed(self._pairs):
            a = rho * (s * q).sum(1, keepdim=True)
            q = q - a * y
            stack.append(a)
        q = self._scaled * q
        for (s, y, rho), a in zip(self._pairs, reversed(stack), strict=True):
            q = q + (a - rho * (y * q).sum(1, keepdim=True)) * s
        return q

    def update(self, s: Tensor, y: Tensor, taken: Tensor, sBs: Tensor) -> None:
        """Take in steps s and changes y (B, N) of the rows that are taken."""
        sy = (s * y).sum(1, keepdim=True)
        rho = torch.where(taken.unsqueeze(1) & (sy > 0), 1.0 / sy, torch.zeros_like(sy))
        if self._self_scaling:  # Nocedal & Wright (7.20)
            ratio = sy / y.square().sum(1, keepdim=True).clamp_min(1e-300)
            self._scaled = torch.where(rho > 0, ratio, self._scaled)
        self._pairs = [*self._pairs, (s, y, rho)][-_PAIRS:]
