"""The first-order condition of a step as a linear least squares in the features' coefficients."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from torch_wprox.maps.features import Features, gradients, laplacians
from torch_wprox.maps.learned import LearnedEnergy, Term
from torch_wprox.maps.transition import Transition, mean_over_partners

# Directions in which the features' gradients are this small (relative to the largest, squared) say
# nothing about a temperature.
_SEEN = 1e-8


@dataclass(frozen=True)
class _Moments:
    """Means over one cloud; g_a are the gradient fields of the features.

    Attributes:
        gram: E <g_a, g_b>, (K, K).
        spread: E <g_a, grad log mu> = -E div g_a, (K,).
        pull: -E <g_a, (y - x)/gamma>, (K,).
        speed_sq: E |(y - x)/gamma|^2.
    """

    gram: Tensor
    spread: Tensor
    pull: Tensor
    speed_sq: float


def fitted_coefficients(
    transitions: Sequence[Transition],
    terms: Sequence[Term],
    temperature: float | None,
    partners: int,
    ridge: float,
    seed: int,
) -> LearnedEnergy:
    """Return the energy in the span of the features; ``temperature`` None: it is found, too."""
    needs_spread = temperature is None or temperature > 0
    moments = [_moments(t, terms, partners, seed, needs_spread) for t in transitions]
    gram = torch.stack([m.gram for m in moments]).sum(0)
    spread = torch.stack([m.spread for m in moments]).sum(0)
    pull = torch.stack([m.pull for m in moments]).sum(0)
    # Columns of length 1: the ridge then means the same for all features.
    length = gram.diagonal().clamp_min(torch.finfo(gram.dtype).tiny).sqrt()
    scaled = gram / length / length[:, None]
    scaled = scaled + (ridge + 1e-14) * torch.eye(len(gram)).to(gram)

    def solve(b: Tensor) -> Tensor:
        found: Tensor = torch.linalg.solve(scaled, b / length) / length
        return found

    plain, shift = solve(pull), solve(spread)  # coefficients are plain - T shift
    if temperature is None:
        temperature = _temperature(moments, plain, shift)
    found = plain - temperature * shift
    residual = _relative_residual(moments, found, temperature)
    sizes = [m.shape[1] for m in (_values(term, transitions[0]) for term in terms)]
    parts = dict(
        zip(
            (term.name for term in terms),
            (
                replace(term, coefficients=part)
                for term, part in zip(terms, found.split(sizes), strict=True)  # type: ignore[no-untyped-call]
            ),
            strict=True,
        )
    )
    return LearnedEnergy(
        parts.get("potential"), parts.get("interaction"), temperature, residual, partners
    )


def _moments(
    step: Transition, terms: Sequence[Term], partners: int, seed: int, needs_spread: bool
) -> _Moments:
    y, velocity = step.points.double(), step.velocity.double()
    fields, spreads = [], []
    for term in terms:
        assert term.features is not None
        fields.append(_field(term, y, gradients, partners, seed))
        if needs_spread:
            spreads.append(-_field(term, y, laplacians, partners, seed).mean(0))
    field = torch.cat(fields, 1)  # (n, K, D)
    n = len(y)
    columns = field.permute(0, 2, 1).reshape(-1, field.shape[1])
    return _Moments(
        gram=columns.t() @ columns / n,
        spread=torch.cat(spreads) if needs_spread else columns.new_zeros(columns.shape[1]),
        pull=-(columns.t() @ velocity.reshape(-1)) / n,
        speed_sq=velocity.square().sum(1).mean().item(),
    )


def _field(term: Term, y: Tensor, derivative, partners: int, seed: int) -> Tensor:  # type: ignore[no-untyped-def]
    features: Features = term.features  # type: ignore[assignment]
    if term.name == "potential":
        found: Tensor = derivative(features, y)
        return found
    return mean_over_partners(lambda z: derivative(features, z), y, partners, seed)


def _values(term: Term, step: Transition) -> Tensor:
    assert term.features is not None
    return term.features(step.points[:1].double())


def _temperature(moments: Sequence[_Moments], plain: Tensor, shift: Tensor) -> float:
    """Return the T that makes sum_t |gram c + T spread - pull|^2 in the norm gram^-1 least, T >= 0.

    With c = plain - T shift this is a line in T: the condition of every step, projected on what the
    gradients of the features span on that cloud.
    """
    up = down = 0.0
    for m in moments:
        values, vectors = torch.linalg.eigh(m.gram)
        seen = values > _SEEN * values[-1]
        root = vectors[:, seen] / values[seen].sqrt()
        constant = root.t() @ (m.gram @ plain - m.pull)
        slope = root.t() @ (m.spread - m.gram @ shift)
        up -= float(slope @ constant)
        down += float(slope @ slope)
    return max(up / down, 0.0) if down > 0 else 0.0


def _relative_residual(moments: Sequence[_Moments], found: Tensor, temperature: float) -> float:
    """Return the root of the share of E |(y - x)/gamma|^2 that is left; with entropy a projection.

    With entropy E |T grad log mu|^2 is not known: the projected condition takes its place.
    """
    left = whole = 0.0
    for m in moments:
        whole += m.speed_sq
        if temperature == 0:
            left += float(found @ m.gram @ found - 2 * found @ m.pull) + m.speed_sq
            continue
        values, vectors = torch.linalg.eigh(m.gram)
        seen = values > _SEEN * values[-1]
        root = vectors[:, seen] / values[seen].sqrt()
        off = root.t() @ (m.gram @ found + temperature * m.spread - m.pull)
        left += float(off @ off)
    return (max(left, 0.0) / whole) ** 0.5 if whole > 0 else 0.0
