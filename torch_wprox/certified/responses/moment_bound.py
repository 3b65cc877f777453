r"""An upper bound of the best radius in any dimension, from two moments of the direction.

Over the directions in which some samples have decided signs sigma_k t_k >= 0, t = X u,

    r(u) = <w, u> + sum_j c_j relu(t_j),       |u| = 1,

is bounded term by term by a quadratic in u, with t_j in [-l_j, h_j]:

    undecided, c > 0    c relu(t)    <= c t/2 + d t^2/4 + c^2/(4 d) + e (t + l)(h - t),   d > 0
    undecided, c < 0    -|c| relu(t) <= -s t - e t^2,          e l <= s <= |c| - e h
    decided             c relu(t)    <= c t [sigma > 0] + mu sigma t + e t (f - t),       mu >= 0

with e >= 0 and f the end of the interval on the decided side. The sum is <b, u> + u^T A u/2 +
const, and its maximum over the sphere is at most

    (1/2) b^T (lam I - A)^-1 b + lam/2 + const       for every lam > lambda_max(A).

This is convex in all multipliers (d, s, mu, e, lam) together: it is the dual of the relaxation that
knows of u only the moments E u and E u u^T, a semidefinite program. It is minimised by Newton's
method with a logarithmic barrier, many nodes at once. Every iterate is a bound.

Source: Shor (1987); Raghunathan, Steinhardt & Liang (2018) for semidefinite bounds of ReLU terms.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from torch_wprox.certified.responses.newton_system import NewtonSystem, svec_squares

_DECREASE, _SHORTER, _TRIALS = 1e-4, 0.4, 8
# Share of the way to the boundary of the multipliers' domain that one step may go.
_INSIDE = 0.95
_BISECTIONS = 18
# Relative margins for the rounding of eigenvalues, and of the sum of all terms.
_EIGENVALUE, _SUM = 1e-12, 1e-11


@dataclass(frozen=True)
class Multipliers:
    """Multipliers of B nodes.

    Attributes:
        first: d, s or mu, whichever the sample's term has, (B, n).
        second: e, (B, n).
        level: lam, (B,).
    """

    first: Tensor
    second: Tensor
    level: Tensor

    def rows(self, index: Tensor) -> Multipliers:
        """Return the multipliers of some nodes."""
        return Multipliers(self.first[index], self.second[index], self.level[index])

    def moved(self, step: Tensor, direction: Multipliers) -> Multipliers:
        """Return the multipliers after a step (B,) along a direction."""
        return Multipliers(
            self.first + step.unsqueeze(1) * direction.first,
            self.second + step.unsqueeze(1) * direction.second,
            self.level + step * direction.level,
        )


@dataclass(frozen=True)
class Nodes:
    """Sets of directions, each with its decided signs.

    Attributes:
        sign: sigma (B, n), 0 where undecided.
        below: l (B, n).
        above: h (B, n).
        anchor: w (B, D).
    """

    sign: Tensor
    below: Tensor
    above: Tensor
    anchor: Tensor

    def rows(self, index: Tensor) -> Nodes:
        """Return some of the nodes."""
        return replace(self, **{f.name: getattr(self, f.name)[index] for f in fields(self)})


@dataclass(frozen=True)
class Quadratic:
    """The bounding quadratic <b + w, u> + u^T A u/2 + const of every node, w left open.

    Attributes:
        slope: b (B, D).
        curvature: A (B, D, D).
        constant: (B,).
        size: Sum of the sizes of all its terms (B,): rounding errors are a share of it.
    """

    slope: Tensor
    curvature: Tensor
    constant: Tensor
    size: Tensor


class MomentBound:
    """Bounds max over |u| = 1 of <w, u> + sum_j c_j relu(<x_j, u>) on many nodes at once.

    Args:
        features: X (n, D), unit vectors.
        weights: c (n,).
    """

    def __init__(self, features: Tensor, weights: Tensor) -> None:
        self._X, self._c = features, weights
        self._squares = (features.unsqueeze(2) * features.unsqueeze(1)).flatten(1)  # x x^T
        self._svec = svec_squares(features)
        inner = features @ features.T
        # The largest <x_j, u> once <x_k, u> >= 0 (or <= 0) is known.
        beside = (1.0 - inner.square()).clamp_min(0.0).sqrt()
        self._if_positive = torch.where(inner < 0, beside, 1.0)
        self._if_negative = torch.where(inner > 0, beside, 1.0)

    def nodes(self, sign: Tensor, anchor: Tensor) -> Nodes:
        """Return nodes with their intervals for sigma (B, n), w (B, D).

        Every decided sign cuts the ball in half; an interval is the least over the half balls.
        """

        def ends(positive: Tensor, negative: Tensor) -> Tensor:
            end = torch.ones_like(sign)
            for table, decided in ((positive, sign > 0), (negative, sign < 0)):
                cut = torch.where(decided.unsqueeze(1), table, 1.0).amin(2)
                end = torch.minimum(end, cut)
            # Wider by rounding: then the ends hold for the numbers as they are stored.
            return end + 1e-12

        above = ends(self._if_positive, self._if_negative)
        below = ends(self._if_negative, self._if_positive)
        return Nodes(sign, below, above, anchor)

    def start(self, nodes: Nodes) -> Multipliers:
        """Return multipliers inside their domain for nodes without history."""
        rises, falls, _ = self._kinds(nodes)
        c = self._c.abs()
        usual = c * math.sqrt(self._X.shape[1])  # t is about 1/sqrt(D)
        first = torch.where(rises, usual, torch.where(falls, 0.5 * c, torch.full_like(c, 0.02)))
        second = torch.where(falls, 0.1 * c, torch.full_like(c, 0.002))
        return self.recentred(nodes, Multipliers(first, second, first.new_zeros(len(first))), 0.1)

    def recentred(self, nodes: Nodes, x: Multipliers, barrier: float) -> Multipliers:
        """Return the multipliers with the lam that minimises the barrier function."""
        q = self.quadratic(nodes, x)
        values, vectors = torch.linalg.eigh(q.curvature)
        beta = (vectors.mT @ (q.slope + nodes.anchor).unsqueeze(2))[:, :, 0].square()
        low = values[:, -1]
        high = low + beta.sum(1).sqrt() + 2.0 * barrier * values.shape[1]
        for _ in range(_BISECTIONS):
            level = 0.5 * (low + high)
            gap = level.unsqueeze(1) - values
            too_low = (beta / gap.square() + 2.0 * barrier / gap).sum(1) > 1.0
            low, high = torch.where(too_low, level, low), torch.where(too_low, high, level)
        return replace(x, level=high)

    def quadratic(self, nodes: Nodes, x: Multipliers) -> Quadratic:
        """Return the bounding quadratic."""
        rises, falls, decided = self._kinds(nodes)
        c, d = self._c, x.first
        linear = torch.where(
            rises,
            0.5 * c + x.second * (nodes.above - nodes.below),
            torch.where(
                decided,
                nodes.sign * d + c * (nodes.sign > 0) + x.second * _far_end(nodes),
                torch.where(falls, -d, torch.zeros_like(d)),
            ),
        )
        bent = torch.where(rises, 0.5 * d, 0.0) - 2.0 * x.second
        constant = torch.where(
            rises, 0.25 * c.square() / d + x.second * nodes.below * nodes.above, 0.0
        ).sum(1)
        dimension = self._X.shape[1]
        size = constant + linear.abs().sum(1) + bent.abs().sum(1)
        return Quadratic(
            linear @ self._X,
            (bent @ self._squares).view(-1, dimension, dimension),
            constant,
            size,
        )

    def minimised(self, nodes: Nodes, x: Multipliers, barrier: float, steps: int) -> Multipliers:
        """Return the multipliers after Newton steps on the bound plus ``barrier`` times -log."""
        for _ in range(steps):
            x = self._stepped(nodes, x, barrier)
        return x

    def moments(self, nodes: Nodes, x: Multipliers, barrier: float) -> tuple[Tensor, Tensor]:
        """Return the relaxation's E u (B, D), and E t_j^2 (B, n), on the central path."""
        q = self.quadratic(nodes, x)
        M = torch.linalg.inv(_shifted(q, x))
        u = (M @ (q.slope + nodes.anchor).unsqueeze(2))[:, :, 0]
        spread = ((self._X @ M) * self._X).sum(2)
        return u, (u @ self._X.T).square() + 2.0 * barrier * spread

    def _kinds(self, nodes: Nodes) -> tuple[Tensor, Tensor, Tensor]:
        """Return which samples are undecided with c > 0, undecided with c < 0, decided."""
        free = nodes.sign == 0
        return free & (self._c > 0), free & (self._c <= 0), ~free

    def _slacks(self, nodes: Nodes, x: Multipliers) -> tuple[Tensor, Tensor]:
        """Return what must stay positive beside d, e: s - e l (or mu), and |c| - e h - s (or 1)."""
        _, falls, _ = self._kinds(nodes)
        lower = torch.where(falls, x.first - x.second * nodes.below, x.first)
        upper = self._c.abs() - x.second * nodes.above - x.first
        return lower, torch.where(falls, upper, 1.0)

    def _barriers(self, nodes: Nodes, x: Multipliers, barrier: float) -> Tensor:
        """Return bound + barrier function (B,), inf outside the domain."""
        rises, _, _ = self._kinds(nodes)
        q = self.quadratic(nodes, x)
        factor, info = torch.linalg.cholesky_ex(_shifted(q, x))
        half = torch.linalg.solve_triangular(
            factor, (q.slope + nodes.anchor).unsqueeze(2), upper=False
        )
        value = 0.5 * half.square().sum((1, 2)) + 0.5 * x.level + q.constant
        lower, upper = self._slacks(nodes, x)
        logs = torch.where(rises, 0.0, lower.clamp_min(1e-300).log())
        logs = (logs + upper.clamp_min(1e-300).log() + x.second.clamp_min(1e-300).log()).sum(1)
        logs = logs + 2.0 * factor.diagonal(dim1=1, dim2=2).clamp_min(1e-300).log().sum(1)
        inside = (info == 0) & ((lower > 0) & (upper > 0) & (x.second > 0)).all(1)
        return torch.where(inside, value - barrier * logs, torch.inf)

    def _stepped(self, nodes: Nodes, x: Multipliers, barrier: float) -> Multipliers:
        """Return the multipliers after one damped Newton step."""
        direction, decrease = self._newton(nodes, x, barrier)
        lower, upper = self._slacks(nodes, x)
        ahead = self._slacks(nodes, x.moved(torch.ones_like(x.level), direction))
        longest = torch.full_like(x.level, torch.inf)
        for now, then in ((lower, ahead[0]), (upper, ahead[1]), (x.second, None)):
            change = direction.second if then is None else then - now
            reach = torch.where(change < 0, -now / change, torch.inf)
            longest = torch.minimum(longest, reach.amin(1))
        step = (_INSIDE * longest).clamp_max(1.0)
        before = self._barriers(nodes, x, barrier)
        best = torch.zeros_like(step)
        for _ in range(_TRIALS):
            after = self._barriers(nodes, x.moved(step, direction), barrier)
            enough = after <= before - _DECREASE * step * decrease + 1e-12 * before.abs()
            best = torch.where(enough & (best == 0), step, best)
            if bool((best > 0).all()):
                break
            step = _SHORTER * step
        still = (best == 0).unsqueeze(1)
        moved = x.moved(best, direction)
        return Multipliers(
            torch.where(still, x.first, moved.first),
            torch.where(still, x.second, moved.second),
            torch.where(still[:, 0], x.level, moved.level),
        )

    def _newton(self, nodes: Nodes, x: Multipliers, barrier: float) -> tuple[Multipliers, Tensor]:
        """Return Newton's direction and the decrease that it promises (B,).

        Each multiplier has the effect (beta x_j) on b and (eta x_j x_j^T) on A. With M = (lam I -
        A)^-1, v = M b and t = X v, the bound's Hessian is that of J^T M J with columns J = (beta +
        eta t_j) x_j, and the barrier's adds tau eta eta' (x_j^T M x_j')^2 and a diagonal.
        """
        X, c, tau = self._X, self._c, barrier
        rises, falls, decided = self._kinds(nodes)
        q = self.quadratic(nodes, x)
        M = torch.linalg.inv(_shifted(q, x))
        v = (M @ (q.slope + nodes.anchor).unsqueeze(2))[:, :, 0]
        t, XM = v @ X.T, X @ M
        own = (XM * X).sum(2)  # x_j^T M x_j
        zero = torch.zeros_like(t)
        beta1 = torch.where(falls, -1.0, torch.where(decided, nodes.sign, zero))
        eta1 = torch.where(rises, 0.5, zero)
        beta2 = torch.where(
            rises, nodes.above - nodes.below, torch.where(decided, _far_end(nodes), zero)
        )
        lower, upper = self._slacks(nodes, x)
        d, e = x.first, x.second
        pushed, pulled = tau / lower, torch.where(falls, tau / upper, 0.0)
        g1 = beta1 * t + eta1 * (0.5 * t.square() + tau * own)
        g1 = g1 + torch.where(rises, -0.25 * (c / d).square(), pulled - pushed)
        g2 = beta2 * t - t.square() - 2.0 * tau * own - tau / e
        g2 = g2 + torch.where(rises, nodes.below * nodes.above, 0.0)
        g2 = g2 + torch.where(falls, nodes.below * pushed + nodes.above * pulled, 0.0)
        g3 = 0.5 - 0.5 * v.square().sum(1) - tau * M.diagonal(dim1=1, dim2=2).sum(1)

        J = torch.stack([beta1 + eta1 * t, beta2 - 2.0 * t], 1)
        eta = torch.stack([eta1, zero - 2.0], 1)
        Mv = (M @ v.unsqueeze(2))[:, :, 0]
        border = -J * (Mv @ X.T).unsqueeze(1) - tau * eta * XM.square().sum(2).unsqueeze(1)
        push, pull = pushed.square() / tau, pulled.square() / tau
        diagonal1 = torch.where(rises, 0.5 * c.square() / d**3, push + pull)
        bent = nodes.below.square() * push + nodes.above.square() * pull
        diagonal2 = tau / e.square() + torch.where(falls, bent, 0.0)
        system = NewtonSystem(
            features=X,
            squares=self._svec,
            shifted=_shifted(q, x),
            inverse=M,
            barrier=tau,
            slopes=J,
            bends=eta,
            diagonal=torch.stack([diagonal1, diagonal2], 1),
            mixed=torch.where(falls, nodes.above * pull - nodes.below * push, 0.0),
            border=border,
            corner=(v * Mv).sum(1) + tau * M.square().sum((1, 2)),
        )
        gradient = torch.stack([g1, g2], 1)
        p, level = system.solve(gradient, g3)
        # Where rounding has made the Hessian indefinite the node stays where it is.
        usable = p.isfinite().all((1, 2)) & level.isfinite()
        p = torch.where(usable.view(-1, 1, 1), p, 0.0)
        level = torch.where(usable, level, 0.0)
        decrease = -(gradient * p).sum((1, 2)) - g3 * level
        return Multipliers(p[:, 0], p[:, 1], level), decrease


def at_anchors(q: Quadratic, anchors: Tensor) -> Tensor:
    """Return the bounds (B, m) of all nodes for anchors w (m, D), rounding included.

    For every anchor the best lam is found by bisection; any lam above the largest eigenvalue gives
    a bound.
    """
    values, vectors = torch.linalg.eigh(q.curvature)
    beta = ((q.slope.unsqueeze(1) + anchors) @ vectors).square()  # (B, m, D)
    width = q.size + values.abs().amax(1)
    low = (values[:, -1] + _EIGENVALUE * width).unsqueeze(1).expand(beta.shape[:2])
    floor = low
    high = low + beta.sum(2).sqrt()
    for _ in range(_BISECTIONS):
        level = 0.5 * (low + high)
        length = (beta / (level.unsqueeze(2) - values.unsqueeze(1)).square()).sum(2)
        low, high = torch.where(length > 1, level, low), torch.where(length > 1, high, level)
    level = torch.maximum(high, floor + 1e-15 * width.unsqueeze(1))
    bound: Tensor = 0.5 * (beta / (level.unsqueeze(2) - values.unsqueeze(1))).sum(2) + 0.5 * level
    margin: Tensor = (q.constant + _SUM * (width + q.size)).unsqueeze(1)
    return bound + margin


def _far_end(nodes: Nodes) -> Tensor:
    return torch.where(nodes.sign > 0, nodes.above, -nodes.below)


def _shifted(q: Quadratic, x: Multipliers) -> Tensor:
    """Return lam I - A (B, D, D)."""
    eye = torch.eye(q.curvature.shape[1], dtype=q.curvature.dtype, device=q.curvature.device)
    return x.level.view(-1, 1, 1) * eye - q.curvature
