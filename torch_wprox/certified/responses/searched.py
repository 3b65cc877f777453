"""Best responses in any dimension by a dictionary of directions: an estimate, not a proof."""

from __future__ import annotations

import torch
from torch import Tensor

from torch_wprox.certified.problem.batched_bfgs import batched_bfgs
from torch_wprox.certified.problem.particle_problem import Answer, ParticleProblem
from torch_wprox.certified.responses.directions import unit

_RANDOM = 512
_REMEMBERED = 4096
# Directions of at least this cosine count as one.
_ALIKE = 1.0 - 1e-5
_REFINEMENT = 40
# Best entries of the dictionary that are refined, per particle.
_REFINED = 8
_OFF_KINKS = 1e-6
# (entries refined per particle, rounds, first step in units of 1/kappa). A short first step
# comes to the nearest minimum soon, a long one jumps over kinks and finds more of them.
_QUICK = ((4, 40, 1e-2),)
_THOROUGH = ((8, 60, 1e-2), (4, 120, 1.0))


class Dictionary:
    """Unit vectors u (S, d) with relu(X u): random ones, the data, the anchors, past responses."""

    def __init__(self, features: Tensor, anchors: Tensor) -> None:
        X = features
        generator = torch.Generator().manual_seed(0)
        random = torch.randn(_RANDOM, X.shape[1], generator=generator, dtype=torch.float64)
        data = X[:_RANDOM]
        self._features = X
        self._fixed = unit(torch.cat([random.to(X), data, -data, anchors[:_RANDOM]]))
        self._learnt = self._fixed[:0]
        self._tabulate()

    def learn(self, points: Tensor) -> None:
        """Add the directions of points (b, d) that were good once, those that are new.

        Copies would crowd others out of the best entries that are refined.
        """
        found = unit(points[points.norm(dim=1) > 0])
        found = found[((found @ self.directions.T).max(1).values < _ALIKE)]
        near = (found @ found.T >= _ALIKE).tril(-1)
        self._learnt = torch.cat([self._learnt, found[~near.any(1)]])[-_REMEMBERED:]
        self._tabulate()

    def _tabulate(self) -> None:
        self.directions = torch.cat([self._fixed, self._learnt])
        self.values = (self.directions @ self._features.T).clamp_min(0.0)  # (S, n)


class Directions:
    """Best responses of particles with frozen output weights.

    Along a unit vector u the best radius is r = max(0, <u, W> - <g, relu(X u)>/kappa), of value
    (kappa/2)(|W|^2 - r^2): one matrix product for all particles. The best and the anchor are then
    refined by nonsmooth descent, one row each.
    """

    is_exact = False

    def __init__(self, problem: ParticleProblem) -> None:
        self.is_thorough = True
        self._dictionary = Dictionary(problem.features, problem.anchors[:, : problem.inputs])
        self._problem = problem
        self._generator = torch.Generator().manual_seed(1)

    def learn(self, directions: Tensor) -> None:
        """Add directions (b, d) to the dictionary."""
        self._dictionary.learn(directions)

    def respond(self, lam: Tensor, coefficient: Tensor | None, anchors: Tensor) -> Answer:
        """Return points (b, d) and values (b,) for lam (n, k), a (k,), W (b, d)."""
        assert coefficient is not None
        X, kappa = self._problem.features, self._problem.stiffness
        g, table = lam @ coefficient, self._dictionary
        radius = anchors @ table.directions.T - (table.values @ g) / kappa
        points, values = anchors, torch.full_like(anchors[:, 0], torch.inf)
        for refined, rounds, first in _THOROUGH if self.is_thorough else _QUICK:
            best, which = radius.topk(min(refined, radius.shape[1]), dim=1)  # (b, r)
            starts = best.clamp_min(0.0).unsqueeze(2) * table.directions[which]
            # Local descent at the anchor as well: the answer is never worse than staying.
            starts = torch.cat([starts, anchors.unsqueeze(1)], 1)
            # Entries lie on kinks, where one gradient is no guide.
            noise = torch.randn(starts.shape, generator=self._generator, dtype=torch.float64)
            starts = starts + _OFF_KINKS * starts.abs().amax() * noise.to(starts)
            W = anchors.repeat_interleave(starts.shape[1], 0)

            def function(v: Tensor, W: Tensor = W) -> tuple[Tensor, Tensor]:
                hidden, moved = v @ X.T, v - W
                value = hidden.clamp_min(0.0) @ g + 0.5 * kappa * moved.square().sum(1)
                return value, ((hidden > 0) * g) @ X + kappa * moved

            found = batched_bfgs(function, starts.flatten(0, 1), first / kappa, max_rounds=rounds)
            lowest, winner = found.values.view(starts.shape[:2]).min(1)
            rows = torch.arange(len(anchors), device=X.device)
            ends = found.points.view(starts.shape)[rows, winner]
            lower = lowest < values
            points = torch.where(lower.unsqueeze(1), ends, points)
            values = torch.where(lower, lowest, values)
        table.learn(points)
        return points, values


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
        which = gain.topk(min(_REFINED, gain.shape[1]), dim=1).indices  # (b, r)
        radius = pull.gather(1, which).clamp_min(0.0) / bend[which]
        starts = radius.unsqueeze(2) * table.directions[which]
        count = starts.shape[1]
        w_from, alpha_from = (t.repeat_interleave(count, 0) for t in (w0, alpha0))

        def function(w: Tensor) -> tuple[Tensor, Tensor]:
            hidden, moved = w @ X.T, w - w_from
            q = hidden.clamp_min(0.0) @ weights
            alpha = alpha_from - q / kappa
            value = 0.5 * kappa * moved.square().sum(1)
            value = value + (q * (alpha_from - 0.5 * q / kappa)).sum(1)
            return value, ((hidden > 0) * (alpha @ weights.T)) @ X + kappa * moved

        found = batched_bfgs(function, starts.flatten(0, 1), 1.0 / kappa, max_rounds=_REFINEMENT)
        steepest = (unit(found.points) @ X.T).clamp_min(0.0) @ weights
        if bool((steepest.norm(dim=1) >= kappa).any()):
            table.learn(found.points[steepest.norm(dim=1) >= kappa])
            return anchors, torch.full_like(anchors[:, 0], -torch.inf)
        values, winner = found.values.view(-1, count).min(1)
        w = found.points.view(starts.shape)[torch.arange(len(anchors), device=X.device), winner]
        table.learn(w)
        alpha = alpha0 - ((w @ X.T).clamp_min(0.0) @ weights) / kappa
        return torch.cat([w, alpha], 1), values
