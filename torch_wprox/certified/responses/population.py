"""Good directions for a class of particles, improved while the loss gradient changes.

The radius r(u) = <u, W> - <lam, psi(u)>/kappa of a particle has hundreds of local maxima among
hundreds of samples. Ascents from random directions rarely end at the best of them; ascents from
near good maxima do far more often. So a population is kept: every search ascends from its members,
from members turned a little, and from the best of many random directions.
"""

from __future__ import annotations

import torch
from torch import Tensor

from torch_wprox.certified.problem.batched_bfgs import batched_bfgs
from torch_wprox.certified.problem.particle_problem import ParticleProblem
from torch_wprox.certified.responses.directions import unit

# Members per class, and how many of the best, turned ones and random ones a search ascends from.
_MEMBERS, _BEST, _TURNED, _FRESH = 1500, 64, 192, 32
# Up to so many classes get these numbers; with more they share them, but get so many at least.
_FULL, _LEAST = 4, 8
# Random directions of which the best are taken; the length of a turn; evaluations of an ascent.
_DRAWN, _TURN, _ASCENT = 1024, 0.4, 40
# Directions of at least this cosine count as one.
_ALIKE = 1.0 - 1e-6


class Population:
    """Directions in which the particles of each output coefficient answer a loss gradient well.

    Args:
        problem: The particles; output weights frozen.
        classes: Of the particles (m,), by equal coefficients.
    """

    def __init__(self, problem: ParticleProblem, classes: Tensor) -> None:
        assert problem.coefficients is not None
        self._problem = problem
        self._members = [(classes == q).nonzero()[:, 0] for q in range(int(classes.max()) + 1)]
        self._coefficients = [problem.coefficients[rows[0]] for rows in self._members]
        self._kept = [problem.anchors[:0] for _ in self._members]
        self._generator = torch.Generator().manual_seed(0)
        share = min(1.0, _FULL / len(self._members))
        self._best, self._turned, self._fresh = (
            max(_LEAST, int(share * count)) for count in (_BEST, _TURNED, _FRESH)
        )

    def improved(self, lam: Tensor, known: list[Tensor], rounds: int = 1) -> list[Tensor]:
        """Return the best directions (b, d) of every class for lam (n, k), best first.

        Args:
            lam: Loss gradient.
            known: Other directions (b, d) of every class to ascend from.
            rounds: Searches, each from what the one before has found.
        """
        for q in range(len(self._members)):
            for _ in range(rounds):
                self._kept[q] = self._searched(q, lam, known[q])
        return self._kept

    def _searched(self, q: int, lam: Tensor, known: Tensor) -> Tensor:
        X, kappa = self._problem.features, self._problem.stiffness
        pull = (lam @ self._coefficients[q]) / kappa
        anchors = self._problem.anchors[self._members[q]]
        mean = anchors.mean(0)

        def radii(u: Tensor) -> Tensor:
            return u @ mean - (u @ X.T).clamp_min(0.0) @ pull

        directions = unit(torch.cat([self._normal(_DRAWN, X.shape[1]), X, -X, anchors]))
        fresh = directions[radii(directions).topk(min(self._fresh, len(directions))).indices]
        good = torch.cat([self._kept[q], known])
        good = good[radii(good).topk(min(self._best, len(good))).indices]
        if not len(good):
            good = fresh
        parents = good[
            torch.arange(self._turned, device=X.device) % min(len(good), max(1, self._turned // 3))
        ]
        turned = unit(parents + _TURN * unit(self._normal(self._turned, X.shape[1])))
        start = torch.cat([good, turned, fresh])
        # Each ascent is for the anchor of one particle: together they see all of them.
        drawn = torch.randint(len(anchors), (len(start),), generator=self._generator)
        own = anchors[drawn.to(X.device)]
        length = (radii(start) + ((own - mean) * start).sum(1)).clamp_min(0.0)
        usual = float(length.max())
        length = length.clamp_min(0.1 * usual).unsqueeze(1)

        def function(v: Tensor) -> tuple[Tensor, Tensor]:
            hidden, moved = v @ X.T, v - own
            value = hidden.clamp_min(0.0) @ pull + 0.5 * moved.square().sum(1)
            return value, ((hidden > 0) * pull) @ X + moved

        noise = 1e-6 * usual * self._normal(*start.shape)
        ends = batched_bfgs(function, length * start + noise, 1.0, max_rounds=_ASCENT).points
        found = torch.cat([self._kept[q], known, unit(ends[ends.norm(dim=1) > 0])])
        found = found[radii(found).argsort(descending=True)]
        return distinct(found, _ALIKE)[:_MEMBERS]

    def _normal(self, *shape: int) -> Tensor:
        drawn = torch.randn(*shape, generator=self._generator, dtype=torch.float64)
        return drawn.to(self._problem.features)


def distinct(units: Tensor, cosine: float) -> Tensor:
    """Return the unit vectors (b, d) that have no earlier one within the cosine."""
    if len(units) < 2:
        return units
    near = (units @ units.T >= cosine).tril(-1)
    return units[~near.any(1)]
