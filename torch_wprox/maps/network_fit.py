"""The first-order condition of a step as the training loss of networks for V and U."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from torch_wprox.maps.descent import descend
from torch_wprox.maps.learned import LearnedEnergy, Term
from torch_wprox.maps.transition import Transition, mean_over_partners
from torch_wprox.solvers import Stopping


def fitted_networks(
    transitions: Sequence[Transition],
    potential: nn.Module | None,
    interaction: nn.Module | None,
    partners: int,
    max_eval: int,
    seed: int,
) -> LearnedEnergy:
    """Train the networks in place by L-BFGS and return them as an energy."""
    modules = [m for m in (potential, interaction) if m is not None]
    parameters = [p for m in modules for p in m.parameters() if p.requires_grad]
    if not parameters:
        raise ValueError("potential and interaction have no parameters that require a gradient")

    def loss() -> Tensor:
        total = parameters[0].new_zeros(())
        for step in transitions:
            total = total + _condition(step, potential, interaction, partners, seed)
        return total / len(transitions)

    def loss_and_grad(theta: Tensor) -> tuple[Tensor, Tensor]:
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
    speed_sq = sum(t.velocity.square().sum(1).mean().item() for t in transitions) / len(transitions)
    residual = (found.value / speed_sq) ** 0.5 if speed_sq > 0 else 0.0
    return LearnedEnergy(
        None if potential is None else Term("potential", potential),
        None if interaction is None else Term("interaction", interaction),
        0.0,
        residual,
        partners,
    )


def _condition(
    step: Transition,
    potential: nn.Module | None,
    interaction: nn.Module | None,
    partners: int,
    seed: int,
) -> Tensor:
    """Return E |g + (y - x)/gamma|^2 for g = grad V + grad U * mu."""
    like = next(p for m in (potential, interaction) if m is not None for p in m.parameters())
    y, off = step.end.to(like.dtype), step.velocity.to(like.dtype)
    if potential is not None:
        off = off + _gradient(potential, y)
    if interaction is not None:
        module = interaction
        off = off + mean_over_partners(lambda z: _gradient(module, z), y, partners, seed)
    return off.square().sum(1).mean()


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
