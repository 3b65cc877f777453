"""Best responses in any dimension by a dictionary of directions: an estimate, not a proof."""

from __future__ import annotations

import torch
from torch import Tensor

from torch_wprox.solvers.particle_problem import Answer, ParticleProblem
from torch_wprox.solvers.polish import polished

_RANDOM = 512
_REMEMBERED = 1024
_REFINEMENT = 40


class Dictionary:
    """Unit vectors u (S, d) with relu(X u): random ones, the data, the anchors, past responses."""

    def __init__(self, features: Tensor, anchors: Tensor) -> None:
        X = features
        generator = torch.Generator().manual_seed(0)
        random = torch.randn(_RANDOM, X.shape[1], generator=generator, dtype=torch.float64)
        data = X[:_RANDOM]
        self._features = X
        self._fixed = _unit(torch.cat([random.to(X), data, -data, anchors[:_REMEMBERED]]))
        self._learnt = self._fixed[:0]
        self._tabulate()

    def learn(self, points: Tensor) -> None:
        """Add the directions of points (b, d) that were good once."""
        found = _unit(points)
        self._learnt = torch.cat([self._learnt, found])[-_REMEMBERED:]
        self._tabulate()

    def _tabulate(self) -> None:
        self.directions = torch.cat([self._fixed, self._learnt])
        self.values = (self.directions @ self._features.T).clamp_min(0.0)  # (S, n)


class Directions:
    """Best responses of particles with frozen output weights.

    Along a unit vector u the best radius is r = max(0, <u, W> - <g, relu(X u)>/kappa), of value
    (kappa/2)(|W|^2 - r^2): one matrix product for all particles. The winner is refined by nonsmooth
    descent, one row per particle.
    """

    is_exact = False

    def __init__(self, problem: ParticleProblem) -> None:
        self._dictionary = Dictionary(problem.features, problem.anchors[:, : problem.inputs])
        self._problem = problem

    def respond(self, lam: Tensor, coefficient: Tensor | None, anchors: Tensor) -> Answer:
        """Return points (b, d) and values (b,) for lam (n, k), a (k,), W (b, d)."""
        assert coefficient is not None
        X, kappa = self._problem.features, self._problem.stiffness
        g, table = lam @ coefficient, self._dictionary
        radius = anchors @ table.directions.T - (table.values @ g) / kappa
        best, which = radius.max(1)
        start = best.clamp_min(0.0).unsqueeze(1) * table.directions[which]

        def function(v: Tensor) -> tuple[Tensor, Tensor]:
            hidden, moved = v @ X.T, v - anchors
            value = hidden.clamp_min(0.0) @ g + 0.5 * kappa * moved.square().sum(1)
            return value, ((hidden > 0) * g) @ X + kappa * moved

        # Local descent at the anchor as well: the answer is never worse than staying.
        starts = torch.stack([start, anchors])
        values = torch.stack([function(v)[0] for v in starts])
        chosen = values.argmin(0)
        v = starts[chosen, torch.arange(len(anchors), device=anchors.device)]
        found = polished(function, v, 1.0 / kappa, max_rounds=_REFINEMENT)
        table.learn(found.points)
        return found.points, found.values


class JointDirections:
    """Best responses of particles (w, alpha) that train their output weights.

    With q(w) = scale lam^T relu(X w) the best output weight is alpha = alpha_0 - q(w)/kappa, which
    leaves (kappa/2)|w - w_0|^2 + <q(w), alpha_0> - |q(w)|^2/(2 kappa): along a unit vector a
    parabola in the radius, convex while |q(u)| < kappa; if that fails somewhere, the value is -inf.
    """

    is_exact = False

    def __init__(self, problem: ParticleProblem) -> None:
        self._dictionary = Dictionary(problem.features, problem.anchors[:, : problem.inputs])
        self._problem = problem

    def respond(self, lam: Tensor, coefficient: Tensor | None, anchors: Tensor) -> Answer:
        """Return points (b, d + k) and values (b,) for lam (n, k), (w_0, alpha_0) (b, d + k)."""
        p, table = self._problem, self._dictionary
        X, kappa, d = p.features, p.stiffness, p.inputs
        weights = p.scale * lam
        w0, alpha0 = anchors[:, :d], anchors[:, d:]
        q = table.values @ weights  # (S, k)
        bend = kappa - q.square().sum(1) / kappa
        if bool((bend <= 0).any()):
            return anchors, torch.full_like(anchors[:, 0], -torch.inf)
        pull = kappa * (w0 @ table.directions.T) - alpha0 @ q.T
        gain = pull.clamp_min(0.0).square() / (2.0 * bend)
        which = gain.argmax(1)
        rows = torch.arange(len(anchors), device=anchors.device)
        radius = pull[rows, which].clamp_min(0.0) / bend[which]

        def function(w: Tensor) -> tuple[Tensor, Tensor]:
            hidden, moved = w @ X.T, w - w0
            q = hidden.clamp_min(0.0) @ weights
            alpha = alpha0 - q / kappa
            value = 0.5 * kappa * moved.square().sum(1) + (q * (alpha0 - 0.5 * q / kappa)).sum(1)
            return value, ((hidden > 0) * (alpha @ weights.T)) @ X + kappa * moved

        start = radius.unsqueeze(1) * table.directions[which]
        found = polished(function, start, 1.0 / kappa, max_rounds=_REFINEMENT)
        w = found.points
        table.learn(w)
        steepest = (_unit(w) @ X.T).clamp_min(0.0) @ weights
        if bool((steepest.norm(dim=1) >= kappa).any()):
            return anchors, torch.full_like(anchors[:, 0], -torch.inf)
        alpha = alpha0 - ((w @ X.T).clamp_min(0.0) @ weights) / kappa
        return torch.cat([w, alpha], 1), found.values


def _unit(v: Tensor) -> Tensor:
    norm = v.norm(dim=1, keepdim=True)
    return v / torch.where(norm > 0, norm, torch.ones_like(norm))
