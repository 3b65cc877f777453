"""A proved number below min of <lam, z(x)> + price(x), where best responses are searched.

With c = -lam a/kappa every particle's minimum is (kappa/2)(|W|^2 - r^2), where r is the maximum
over |u| = 1 of <u, W> + <c, relu(X u)>, or 0 if that is negative; :func:`proved_radii` bounds r
from above. For s lam, r is s times that of the anchor W/s: one forest serves all multiples of lam.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

import torch
from torch import Tensor

from torch_wprox.certified.problem.particle_problem import ParticleProblem
from torch_wprox.certified.responses.branch_and_bound import proved_radii

# Intervals of q that the quotient of a trained output weight is bounded on.
_INTERVALS = 200


def frozen_values(
    problem: ParticleProblem,
    slopes: Sequence[Tensor],
    coefficient: Tensor,
    anchors: Tensor,
    starts: Tensor,
    *,
    tolerance: float,
    until: float,
) -> Tensor:
    """Bound min_v <lam, psi(v)> + (kappa/2)|v - W|^2 from below, for particles of one coefficient.

    Args:
        problem: Features and stiffness.
        slopes: lam (n, k), each nearly a multiple of the first; what is not costs precision.
        coefficient: a (k,).
        anchors: W (b, d).
        starts: Good directions (S, d).
        tolerance: Of the radii, relative.
        until: Time (of ``time.monotonic``) at which to stop.

    Returns:
        Lower bounds (len(slopes), b).
    """
    X, kappa = problem.features, problem.stiffness
    first = -(slopes[0] @ coefficient) / kappa
    shares, rests = _multiples(first, [-(lam @ coefficient) / kappa for lam in slopes])
    found = proved_radii(
        X,
        first,
        anchors,
        starts,
        others=anchors / shares[1:].view(-1, 1, 1),
        tolerance=tolerance,
        seconds=max(0.0, until - time.monotonic()),
    )
    radius = shares.unsqueeze(1) * found.proved.view(len(slopes), -1)
    radius = radius + (rests.abs() @ X.norm(dim=1)).unsqueeze(1)
    values: Tensor = 0.5 * kappa * (anchors.square().sum(1) - radius.square())
    return values


def trained_values(
    problem: ParticleProblem,
    slopes: Sequence[Tensor],
    anchors: Tensor,
    starts: Tensor,
    *,
    tolerance: float,
    until: float,
) -> Tensor:
    """The same for particles (w, alpha) of one output that train their output weight.

    With q(u) = scale <lam, relu(X u)> the best output weight leaves, along a unit vector u,

        (kappa/2)|w_0|^2 - max(0, kappa <u, w_0> - alpha_0 q(u))^2 / (2 (kappa - q(u)^2/kappa)).

    kappa |alpha_0| times the radius of the anchor w_0/|alpha_0| with c = -sign(alpha_0) scale
    lam/kappa bounds the numerator, the radius of the anchor 0 bounds q: the forest of each sign
    proves both. Given q, the numerator is also at most kappa |w_0| - alpha_0 q; the largest
    quotient is taken over small intervals of q. -inf where |q| < kappa is not proved.

    Args:
        problem: Features, stiffness and scale.
        slopes: lam (n, 1), each nearly a multiple of the first.
        anchors: (w_0, alpha_0) (b, d + 1).
        starts: Good directions (S, d).
        tolerance: Of the radii, relative.
        until: Time (of ``time.monotonic``) at which to stop.

    Returns:
        Lower bounds (len(slopes), b).
    """
    X, kappa, d = problem.features, problem.stiffness, problem.inputs
    weights = [problem.scale * lam[:, 0] / kappa for lam in slopes]
    shares, rests = _multiples(weights[0], weights)
    rest = rests.abs() @ X.norm(dim=1)
    w, alpha = anchors[:, :d], anchors[:, d]
    pull = w.norm(dim=1).expand(len(slopes), -1).clone()  # in units of kappa, as q below
    ends = []
    for i, sign in enumerate((1.0, -1.0)):
        mine = ((sign * alpha) > 0).nonzero()[:, 0]
        size = alpha[mine].abs()
        scaled = w[mine] / (shares.view(-1, 1, 1) * size.unsqueeze(1))
        zero = torch.zeros_like(w[:1])
        now = time.monotonic()
        found = proved_radii(
            X,
            -sign * weights[0],
            torch.cat([scaled[0], zero]),
            starts,
            tolerance=tolerance,
            seconds=max(0.0, until - now) / (2 - i),
            others=torch.cat([scaled[1:], zero.expand(len(slopes) - 1, 1, d)], 1),
        )
        proved = found.proved.view(len(slopes), -1)
        ends.append(shares * proved[:, -1] + rest)
        radius = shares.unsqueeze(1) * proved[:, :-1] + rest.unsqueeze(1)
        pull[:, mine] = size * radius
    grid = torch.linspace(0.0, 1.0, _INTERVALS + 1, dtype=w.dtype, device=w.device)
    q = -ends[0].unsqueeze(1) + (ends[0] + ends[1]).unsqueeze(1) * grid  # (S, Q)
    gain = -alpha.view(-1, 1, 1) * q  # (b, S, Q)
    gain = torch.maximum(gain[..., 1:], gain[..., :-1]) + w.norm(dim=1).view(-1, 1, 1)
    gain = torch.minimum(gain, pull.T.unsqueeze(2)).clamp_min(0.0)
    square = q.square()
    bend = 1.0 - torch.maximum(square[:, 1:], square[:, :-1])
    gain = (gain.square() / bend.clamp_min(1e-300)).amax(2).T
    values = 0.5 * kappa * (w.square().sum(1) - gain)
    return torch.where((bend > 0).all(1, keepdim=True), values, -torch.inf)


def _multiples(first: Tensor, weights: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Return s (S,) > 0 and weights - s first, (S, n)."""
    stacked = torch.stack(list(weights))
    square = float(first.square().sum())
    shares = (stacked @ first / square).clamp_min(1e-3) if square > 0 else stacked.new_ones(1)
    shares = shares.expand(len(stacked))
    return shares, stacked - shares.unsqueeze(1) * first
