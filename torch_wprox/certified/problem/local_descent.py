"""Local descent on the prox objective of a layer: nonsmooth BFGS on all particles."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from torch_wprox.certified.problem.batched_bfgs import Ends, batched_bfgs, unlimited
from torch_wprox.certified.problem.particle_problem import Configuration, ParticleProblem
from torch_wprox.certified.problem.quadratic_model import QuadraticRisk

Descent = Callable[[list[Configuration], QuadraticRisk], list[Configuration]]
"""Starts and a model of the loss -> where the descents from them end."""


# Best responses lie on kinks, where one gradient is no guide: starts of a descent are moved off.
_OFF_KINKS = 1e-6


def bfgs_descent(
    problem: ParticleProblem, rounds: int, generator: torch.Generator, ends: Ends = unlimited
) -> Descent:
    """Return the descent by nonsmooth BFGS on all particles, anchors held, until time is up."""

    def descend(batch: list[Configuration], model: QuadraticRisk) -> list[Configuration]:
        sigma = torch.stack([x.sigma for x in batch])
        points = torch.stack([x.points for x in batch])
        noise = torch.randn(points.shape, generator=generator, dtype=torch.float64).to(points)
        points = points + _OFF_KINKS * float(points.abs().max()) * noise
        moves_offset = problem.offset_stiffness is not None
        offsets = torch.stack([x.offset for x in batch])
        start = points.flatten(1)
        if moves_offset:
            start = torch.cat([start, offsets], 1)
        size = points[0].numel()

        def function(x: Tensor) -> tuple[Tensor, Tensor]:
            V = x[:, :size].view(-1, *points.shape[1:])
            c = x[:, size:] if moves_offset else offsets
            value, lam = model.values_and_grads(problem.output(V, c))
            moved = V - problem.anchors[sigma]
            value = value + 0.5 * problem.stiffness * moved.square().sum((1, 2))
            grad = (problem.pull(V, lam) + problem.stiffness * moved).flatten(1)
            if problem.offset_stiffness is None:
                return value, grad
            shifted = c - problem.offset
            value = value + 0.5 * problem.offset_stiffness * shifted.square().sum(1)
            return value, torch.cat([grad, lam.sum(1) + problem.offset_stiffness * shifted], 1)

        found = batched_bfgs(
            function,
            start,
            1.0 / problem.stiffness,
            max_rounds=rounds,
            self_scaling=True,
            ends=ends,
        )
        settled = []
        for x, given, order in zip(found.points, batch, sigma, strict=True):
            V = x[:size].view(points.shape[1:])
            settled.append(Configuration(V, x[size:] if moves_offset else given.offset, order))
        return settled

    return descend
