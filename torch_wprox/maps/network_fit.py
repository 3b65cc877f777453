"""The first-order condition of a step as the training loss of networks for V and U."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from torch_wprox.maps.density import fitted_mixture
from torch_wprox.maps.descent import descend
from torch_wprox.maps.learned import LearnedEnergy, Term
from torch_wprox.maps.transition import Transition, mean_over_partners
from torch_wprox.solvers import Stopping


@dataclass(frozen=True)
class _Condition:
    """The left side of the condition at the points of one cloud.

    Attributes:
        points: Where it holds, (n, D).
        velocity: (y - x)/gamma, (n, D).
        score: grad log mu, (n, D), of an estimated density; None without entropy.
    """

    points: Tensor
    velocity: Tensor
    score: Tensor | None

    def without_entropy(
        self, potential: nn.Module | None, interaction: nn.Module | None, partners: int, seed: int
    ) -> Tensor:
        """Return grad V + grad U * mu + (y - x)/gamma, (n, D), differentiable in the networks."""
        off = self.velocity
        if potential is not None:
            off = off + _gradient(potential, self.points)
        if interaction is not None:
            module = interaction
            off = off + mean_over_partners(
                lambda z: _gradient(module, z), self.points, partners, seed
            )
        return off


def fitted_networks(
    transitions: Sequence[Transition],
    potential: nn.Module | None,
    interaction: nn.Module | None,
    temperature: float | None,
    partners: int,
    max_eval: int,
    seed: int,
) -> LearnedEnergy:
    """Train the networks in place by L-BFGS and return them as an energy.

    The weak form of the entropy is of no use here: E |grad V|^2 - 2 T E Laplacian V has no minimum
    over networks that can bend at every point. So grad log mu is estimated, as in JKOnet*. A
    temperature that is not known (None) is the best one for the networks at every evaluation.
    """
    modules = [m for m in (potential, interaction) if m is not None]
    parameters = [p for m in modules for p in m.parameters() if p.requires_grad]
    if not parameters:
        raise ValueError("potential and interaction have no parameters that require a gradient")
    dtype = parameters[0].dtype
    conditions = [
        _Condition(
            t.points.to(dtype),
            t.velocity.to(dtype),
            None if temperature == 0 else _score(t.points, seed).to(dtype),
        )
        for t in transitions
    ]

    def sides() -> tuple[list[Tensor], float]:
        """Return the left sides of the condition, and T."""
        off = [c.without_entropy(potential, interaction, partners, seed) for c in conditions]
        T = _best_temperature(conditions, off) if temperature is None else temperature
        scores = [c.score for c in conditions]
        return [o if s is None else o + T * s for o, s in zip(off, scores, strict=True)], T

    def loss() -> Tensor:
        return torch.stack([side.square().sum(1).mean() for side in sides()[0]]).mean()

    def loss_and_grad(theta: Tensor) -> tuple[Tensor, Tensor]:
        # The best T is a minimum: its derivative in theta does not matter (envelope theorem).
        _write(parameters, theta)
        with torch.enable_grad():
            value = loss()
            grads = torch.autograd.grad(value, parameters, allow_unused=True)
        flat = [
            torch.zeros_like(p) if g is None else g for p, g in zip(parameters, grads, strict=True)
        ]
        return value.detach(), torch.cat([g.reshape(-1) for g in flat])

    first = torch.cat([p.detach().reshape(-1) for p in parameters])
    found = descend(loss_and_grad, first, None, Stopping(1e-6), max_eval)
    _write(parameters, found.theta)
    if temperature is None:
        with torch.enable_grad():
            temperature = sides()[1]
    speed_sq = sum(c.velocity.square().sum(1).mean().item() for c in conditions) / len(conditions)
    residual = (found.value / speed_sq) ** 0.5 if speed_sq > 0 else 0.0
    return LearnedEnergy(
        None if potential is None else Term("potential", potential),
        None if interaction is None else Term("interaction", interaction),
        temperature,
        residual,
        partners,
    )


def _score(points: Tensor, seed: int) -> Tensor:
    at = points.double()
    return fitted_mixture(at, seed).score(at)


def _best_temperature(conditions: Sequence[_Condition], off: Sequence[Tensor]) -> float:
    """Return the T >= 0 that makes sum_t E |off + T grad log mu|^2 least."""
    up = down = 0.0
    for condition, side in zip(conditions, off, strict=True):
        assert condition.score is not None
        up -= float((condition.score * side.detach()).sum(1).mean())
        down += float(condition.score.square().sum(1).mean())
    return max(up / down, 0.0) if down > 0 else 0.0


def _gradient(module: nn.Module, z: Tensor) -> Tensor:
    """Return the gradient of a scalar network at z (m, D), (m, D), differentiable."""
    z = z.detach().requires_grad_()
    (found,) = torch.autograd.grad(module(z).sum(), z, create_graph=True)
    return found


@torch.no_grad()
def _write(parameters: Sequence[Tensor], theta: Tensor) -> None:
    start = 0
    for p in parameters:
        p.copy_(theta[start : start + p.numel()].view_as(p))
        start += p.numel()
