"""The proximal step of a two-layer ReLU network, split into a loss of its output and its particles.

    P(V) = R(z(V)) + sum_i cost_i(V_i),      z(V) = sum_i psi_i(V_i)  (n, k),

R is the loss as a function of the output and is never looked into here. Everything is in float64.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from torch_wprox.closure.ranks import ALONE, Ranks

Risk = Callable[[Tensor], tuple[float, Tensor]]
"""z (n, k) -> R(z) and its gradient (n, k)."""

Answer = tuple[Tensor, Tensor]
"""Best responses (b, D) and their values (b,)."""


@dataclass(frozen=True)
class Configuration:
    """One position for every particle, each with the anchor that it is paid from.

    Attributes:
        points: V, (m, D).
        offset: The output's own bias, (k,).
        sigma: (m,): particle i is paid from anchor sigma(i).
    """

    points: Tensor
    offset: Tensor
    sigma: Tensor


@dataclass(frozen=True)
class ParticleProblem:
    """Features, output coefficients and anchors: all of the step but the loss.

    A particle of frozen coefficient a_i is psi_i(v) = relu(X v) a_i^T; one that trains its output
    weight, v = (w, alpha), is psi(v) = scale relu(X w) alpha^T. Its price is
    cost_i(v) = (stiffness/2)|v - W_i|^2 with stiffness = 1/(m gamma).

    Attributes:
        features: X (n, d), a column of ones included where neurons have a bias.
        anchors: W (m, D).
        stiffness: kappa = 1/(m gamma).
        coefficients: a (m, k), any 1/m included; None where output weights are trained.
        scale: Factor of the output, 1 or 1/m, where output weights are trained.
        outputs: k.
        offset: Output bias (k,), zeros without one.
        offset_stiffness: Of the price of moving the output bias; None: it is frozen.
        labels: (m,): particles of equal label may exchange anchors; None: none may. Exchange
            between equal coefficients changes nothing and need not be declared.
        constant: Number added to the price of every configuration.
        ranks: Who shares the sweeps over the particles.
    """

    features: Tensor
    anchors: Tensor
    stiffness: float
    coefficients: Tensor | None
    scale: float
    outputs: int
    offset: Tensor
    offset_stiffness: float | None = None
    labels: Tensor | None = None
    constant: float = 0.0
    ranks: Ranks = ALONE

    @property
    def inputs(self) -> int:
        """Columns d of X."""
        return self.features.shape[1]

    @property
    def width(self) -> int:
        """Number of particles m."""
        return self.anchors.shape[0]

    @property
    def trains_output(self) -> bool:
        """Whether output weights are coordinates of the particle."""
        return self.coefficients is None

    def start(self) -> Configuration:
        """Return V = W."""
        identity = torch.arange(self.width, device=self.anchors.device)
        return Configuration(self.anchors, self.offset, identity)

    def with_decay(self, weight_decay: float, offset_decay: float) -> ParticleProblem:
        """Return the problem with (weight_decay/2)|v|^2 added to every price.

        kappa/2 |v-W|^2 + omega/2 |v|^2 = (kappa+omega)/2 |v - s W|^2 + (omega s/2)|W|^2 with
        s = kappa/(kappa+omega): again a price of the same form.

        Args:
            weight_decay: omega of the particles.
            offset_decay: omega of the output bias.
        """
        shrink = self.stiffness / (self.stiffness + weight_decay)
        constant = self.constant + 0.5 * weight_decay * shrink * float(self.anchors.square().sum())
        problem = replace(
            self,
            anchors=shrink * self.anchors,
            stiffness=self.stiffness + weight_decay,
            constant=constant,
        )
        if self.offset_stiffness is None:
            return problem
        shrink = self.offset_stiffness / (self.offset_stiffness + offset_decay)
        return replace(
            problem,
            offset=shrink * self.offset,
            offset_stiffness=self.offset_stiffness + offset_decay,
            constant=constant + 0.5 * offset_decay * shrink * float(self.offset.square().sum()),
        )

    def neurons(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """Return w (.., m, d) and output coefficients (.., m, k) of particles (.., m, D)."""
        if self.coefficients is not None:
            return points, self.coefficients
        return points[..., : self.inputs], self.scale * points[..., self.inputs :]

    def output(self, points: Tensor, offset: Tensor) -> Tensor:
        """Return z (.., n, k) of particles (.., m, D) and output biases (.., k)."""
        w, a = self.neurons(points)
        return (self.features @ w.mT).clamp_min(0.0) @ a + offset.unsqueeze(-2)

    def responses(self, points: Tensor) -> Tensor:
        """Return psi_i(V_i) one by one, (m, n k)."""
        w, a = self.neurons(points)
        hidden = (w @ self.features.mT).clamp_min(0.0)
        return (hidden.unsqueeze(2) * a.unsqueeze(1)).flatten(1)

    def pull(self, points: Tensor, lam: Tensor) -> Tensor:
        """Return the gradient (.., m, D) of <lam, z(V)> in V, lam (.., n, k)."""
        w, a = self.neurons(points)
        hidden = self.features @ w.mT
        active = (hidden > 0).to(hidden.dtype)
        g_w = (active * (lam @ a.mT)).mT @ self.features
        if self.coefficients is not None:
            return g_w
        return torch.cat([g_w, self.scale * (hidden.clamp_min(0.0).mT @ lam)], dim=-1)

    def prices(self, points: Tensor, sigma: Tensor) -> Tensor:
        """Return cost_i(V_i) (.., m) for particles (.., m, D)."""
        return 0.5 * self.stiffness * (points - self.anchors[sigma]).square().sum(-1)

    def offset_price(self, offset: Tensor) -> float:
        """Return the price of the output bias and the constant."""
        if self.offset_stiffness is None:
            return self.constant
        moved = (offset - self.offset).square().sum()
        return self.constant + 0.5 * self.offset_stiffness * float(moved)

    def price(self, x: Configuration) -> float:
        """Return the whole price of a configuration."""
        return float(self.prices(x.points, x.sigma).sum()) + self.offset_price(x.offset)

    def value(self, x: Configuration, risk: Risk) -> float:
        """Return P at a configuration."""
        return risk(self.output(x.points, x.offset))[0] + self.price(x)

    def best_offset(self, lam: Tensor) -> Tensor:
        """Return argmin_c <lam, 1 c^T> + price(c), lam (n, k)."""
        if self.offset_stiffness is None:
            return self.offset
        return self.offset - lam.sum(0) / self.offset_stiffness


def has_cells(problem: ParticleProblem) -> bool:
    """Return whether particles move in the plane, where the search over cells is exact."""
    return not problem.trains_output and problem.inputs == 2
