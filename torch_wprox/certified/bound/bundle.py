"""The relaxed step for losses with kinks: cuts from below, atoms from above, a proximal bundle.

Every evaluation of R gives a cut R(z) >= r_k + <g_k, z>, every best response an atom (z_j, c_j):

    min over w in the simplex   max_k [r_k + <g_k, z>] + c w + (rho/2)|z - centre|^2

with z = sum_j w_j z_j is a small quadratic program. It needs no second derivative, which a kink has
not. The multipliers mu of its cuts are a convex combination of them, so sum_k mu_k (r_k + <g_k, z>)
is an affine function below R, and best responses to its slope bound P from below.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from torch_wprox.certified.bound.interior_point import Array, quadratic_program
from torch_wprox.certified.bound.minorant import Minorant, lower_bound
from torch_wprox.certified.bound.mixture import Relaxed
from torch_wprox.certified.bound.spread import Tell
from torch_wprox.certified.problem.particle_problem import Configuration, ParticleProblem, Risk
from torch_wprox.certified.responses.best_response import BestResponse
from torch_wprox.certified.responses.steepest import Steepest
from torch_wprox.objective import BudgetExhausted

# A step of the centre is taken for this share of the decrease that the model promised.
_SERIOUS = 0.1
# Cuts and atoms that are kept.
_KEPT = 120
# Halvings towards a slope whose bound is finite.
_TOWARDS_FINITE = 12
# A ray's own slope is kept this much inside the domain of the dual, so that bounds are finite.
_MARGIN = 1e-3


@dataclass(frozen=True)
class Bundled:
    """A solution of the relaxed step by cuts and atoms.

    Attributes:
        relaxed: The mixture.
        below: The affine function below R that gave the bound.
        lower_bound: The bound of P.
    """

    relaxed: Relaxed
    below: Minorant
    lower_bound: float


def bundled(
    problem: ParticleProblem,
    respond: BestResponse,
    risk: Risk,
    cuts: Sequence[Minorant],
    atoms: Sequence[Configuration],
    *,
    tolerance: float,
    max_rounds: int,
    precision: float,
    tell: Tell,
) -> Bundled:
    """Solve the relaxed step from values and gradients alone.

    One round is one small quadratic program, one sweep of best responses and one evaluation of R.

    Args:
        problem: The particles.
        respond: Their best responses.
        risk: R and its gradient.
        cuts: Tangents of R met before.
        atoms: Configurations met before.
        tolerance: Gap at which to stop, relative.
        max_rounds: Rounds at most.
        precision: Relative rounding error of R.
        tell: Called at every round with value and bound; a true answer ends it.
    """
    state = _Bundle(problem, respond, cuts, atoms, precision)
    try:
        state.evaluate(risk)
        for _ in range(max_rounds):
            ends = tell(*state.interval) and math.isfinite(state.interval[1])
            if ends or state.is_solved(tolerance) or not state.advance(risk):
                break
    except BudgetExhausted:
        pass
    return state.result()


class _Bundle:
    """Cuts, atoms and rays, the centre, and the best bound so far."""

    def __init__(
        self,
        problem: ParticleProblem,
        respond: BestResponse,
        cuts: Sequence[Minorant],
        atoms: Sequence[Configuration],
        precision: float,
    ) -> None:
        self._problem, self._respond, self._precision = problem, respond, precision
        self._cuts = [c for c in cuts if math.isfinite(c.intercept)][-_KEPT:]
        self._atoms = [problem.start(), *atoms][-_KEPT:]
        self._outputs = [problem.output(a.points, a.offset).flatten() for a in self._atoms]
        self._prices = [problem.price(a) for a in self._atoms]
        self._rays: list[tuple[Tensor, float]] = []
        self._steepest = (
            Steepest(problem.features, problem.outputs) if problem.trains_output else None
        )
        self._weights = np.zeros(len(self._atoms))
        self._weights[0] = 1.0
        self._tails = np.zeros(0)
        self._rho = 0.0
        self._value = math.inf
        self._bound = -math.inf
        self._below: Minorant | None = None

    @property
    def interval(self) -> tuple[float, float]:
        """Value and bound so far."""
        return self._value, self._bound

    def is_solved(self, tolerance: float) -> bool:
        return self._value - self._bound <= tolerance * abs(self._value)

    def _mixed(self, weights: Array, tails: Array) -> tuple[Tensor, float]:
        """Return output (n k,) and price of weights (J,) on atoms and (r,) on rays."""
        z = torch.from_numpy(weights).to(self._outputs[0]) @ torch.stack(self._outputs)
        price = float(weights @ np.array(self._prices))
        for share, (h, p) in zip(tails.tolist(), self._rays, strict=True):
            z, price = z + share * h, price + share * p
        return z, price

    def _shape(self) -> tuple[int, int]:
        return len(self._problem.features), self._problem.outputs

    def evaluate(self, risk: Risk) -> None:
        """Evaluate R at the centre."""
        z, price = self._mixed(self._weights, self._tails)
        value, slope = risk(z.view(self._shape()))
        self._cuts.append(Minorant.tangent(z.view(self._shape()), value, slope))
        self._centre, self._value = z, value + price

    def advance(self, risk: Risk) -> bool:
        """Do one round; return whether it can go on."""
        if self._rho == 0.0:
            # At first the proximal term is the size of the loss over a move to the first atom,
            # or along a ray for that price.
            lengths = [float((z - self._centre).norm()) for z in self._outputs]
            lengths += [float(h.norm()) * abs(self._value) / p for h, p in self._rays]
            self._rho = abs(self._value) / max(lengths) ** 2 if max(lengths) > 0 else 0.0
        solved = self._master()
        if solved is None:
            return False
        weights, tails, mu = solved
        z, price = self._mixed(weights, tails)
        modelled = max(c.intercept + float(c.slope.flatten() @ z) for c in self._cuts)
        promised = self._value - (modelled + price)
        self._bound_from(mu)
        value, slope = risk(z.view(self._shape()))
        if not math.isfinite(value):
            return False
        gained = self._value - (value + price)
        # Weights of the atoms that were added since are 0.
        weights = np.append(weights, np.zeros(len(self._atoms) - len(weights)))
        tails = np.append(tails, np.zeros(len(self._rays) - len(tails)))
        if gained >= _SERIOUS * promised and gained > 0:
            self._centre, self._value = z, value + price
            self._weights, self._tails = weights, tails
            self._rho *= 0.5
        else:
            self._weights = np.append(
                self._weights, np.zeros(len(self._atoms) - len(self._weights))
            )
            self._tails = np.append(self._tails, np.zeros(len(self._rays) - len(self._tails)))
            self._rho *= 1.3
        self._cuts.append(Minorant.tangent(z.view(self._shape()), value, slope))
        self._forget(mu)
        return True

    def _master(self) -> tuple[Array, Array, Array] | None:
        """Return weights of atoms and rays and the multipliers of the cuts."""
        J, r, K = len(self._atoms), len(self._rays), len(self._cuts)
        columns = torch.stack([*self._outputs, *(h for h, _ in self._rays)]).cpu().numpy()
        prices = np.array(self._prices + [p * (1.0 - _MARGIN) for _, p in self._rays])
        slopes = torch.stack([c.slope.flatten() for c in self._cuts]).cpu().numpy()
        heights = np.array([c.intercept for c in self._cuts])
        centre = self._centre.cpu().numpy()
        # In units of the value, with cuts relative to the centre, where they are the most precise.
        unit = max(abs(self._value), 1e-300)
        at = heights + slopes @ centre
        moves = columns.copy()
        moves[:J] -= centre  # weights of atoms sum to 1
        P = np.zeros((J + r + 1, J + r + 1))
        P[:-1, :-1] = self._rho / unit * moves @ moves.T
        q = np.append(prices / unit, 1.0)
        base = at.max()
        A = np.zeros((J + r + K, J + r + 1))
        A[: J + r, : J + r] = -np.eye(J + r)
        A[J + r :, :-1] = slopes @ moves.T / unit
        A[J + r :, -1] = -1.0
        h = np.append(np.zeros(J + r), (base - at) / unit)
        E = np.zeros((1, J + r + 1))
        E[0, :J] = 1.0
        if not all(np.isfinite(part).all() for part in (P, q, A, h)):
            return None
        solved = quadratic_program(P, q, A, h, E, np.ones(1))
        if solved is None:
            return None
        x, multipliers = solved
        weights, mu = np.clip(x[:J], 0.0, None), np.clip(multipliers[J + r :], 0.0, None)
        if not (weights.sum() > 0 and mu.sum() > 0):
            return None
        return weights / weights.sum(), np.clip(x[J : J + r], 0.0, None), mu / mu.sum()

    def _bound_from(self, mu: Array) -> None:
        """Bound P by a combination (K,) of the cuts, and take in the best response to it."""
        used = [(m, c) for m, c in zip(mu.tolist(), self._cuts, strict=True) if m > 1e-12]
        total = sum(m for m, _ in used)
        below = Minorant.combined([m / total for m, _ in used], [c for _, c in used])
        bound = self._tried(below)
        if math.isfinite(bound) or self._below is None:
            return
        # Between a slope whose bound is finite and this one there is always such a slope.
        share = 0.5
        for _ in range(_TOWARDS_FINITE):
            between = Minorant.combined([share, 1.0 - share], [below, self._below])
            if math.isfinite(self._tried(between)):
                break
            share *= 0.5

    def _tried(self, below: Minorant) -> float:
        answer = self._respond(below.slope)
        if not answer.value > -math.inf:
            self._add_ray(below.slope)
            return -math.inf
        x = answer.configuration
        self._atoms.append(x)
        self._outputs.append(self._problem.output(x.points, x.offset).flatten())
        self._prices.append(self._problem.price(x))
        bound = lower_bound(self._problem, self._respond, below, self._precision)
        if bound > self._bound:
            self._bound, self._below = bound, below
        return bound

    def _add_ray(self, lam: Tensor) -> None:
        """Add the direction in which a trained particle lowers the dual without end.

        w = t u and alpha = -t q/|q|, q = lam^T relu(X u), change the output by
        -t^2 scale relu(X u) q^T/|q| at the price of kappa t^2, up to terms in t.
        """
        if self._steepest is None:
            return
        u, _ = self._steepest(lam)
        hidden = (self._problem.features @ u).clamp_min(0.0)
        q = hidden @ lam
        step = -self._problem.scale * hidden.unsqueeze(1) * (q / q.norm().clamp_min(1e-300))
        self._rays.append((step.flatten(), self._problem.stiffness))

    def _forget(self, mu: Array) -> None:
        """Keep the cuts and atoms in use and the last of the others."""
        if len(self._cuts) > _KEPT:
            mu = np.append(mu, np.ones(len(self._cuts) - len(mu)))
            first = int(np.argmin(mu[: _KEPT // 2]))
            del self._cuts[first]
        if len(self._atoms) > _KEPT:
            first = int(np.argmin(self._weights[: _KEPT // 2]))
            if self._weights[first] <= 1e-9:
                self._weights = np.delete(self._weights, first)
                del self._atoms[first], self._outputs[first], self._prices[first]

    def result(self) -> Bundled:
        """Return the mixture at the centre with the best bound."""
        weights = np.append(self._weights, np.zeros(len(self._atoms) - len(self._weights)))
        kept = weights > 1e-9
        share = torch.from_numpy(weights[kept] / weights[kept].sum()).to(self._outputs[0])
        z = self._centre.view(self._shape())
        below = self._cuts[-1] if self._below is None else self._below
        chosen = [a for a, keep in zip(self._atoms, kept, strict=True) if keep]
        relaxed = Relaxed(
            chosen, share, z, self._value, self._bound, below.slope, z, self._atoms[-60:]
        )
        return Bundled(relaxed, below, self._bound)
