"""The relaxed step with particles confined to rays: a quadratic in the lengths along them.

A particle that is spread over unit directions u with shares p_u and radii r_u has the output
sum_u s_u psi(u), s_u = p_u r_u, and costs

    (kappa/2) (|W|^2 - 2 sum_u s_u <u, W> + sum_u s_u^2/p_u).

The best shares are proportional to s, all radii are then S = sum_u s_u, and what is left,

    R(sum_i sum_u s_iu psi_i(u)) + (kappa/2) sum_i (|W_i|^2 - 2 sum_u s_iu <u, W_i> + S_i^2),

is convex in s >= 0: the radius needs no columns of its own, and no weights need to sum to 1.
Particles of one group are spread alike; then W_i is the mean of their anchors.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from torch_wprox.certified.bound.cone_qp import ConeQP
from torch_wprox.certified.problem.particle_problem import ParticleProblem
from torch_wprox.certified.problem.quadratic_model import QuadraticRisk


@dataclass(frozen=True)
class Rays:
    """Columns of the program.

    Attributes:
        directions: u (J, d), unit vectors.
        group: Of each ray, (J,).
        lengths: s (J,), at least 0.
        hidden: relu(X u), (J, n).
    """

    directions: Tensor
    group: Tensor
    lengths: Tensor
    hidden: Tensor

    def __len__(self) -> int:
        return len(self.group)


class RayProgram:
    """The relaxed step of groups of particles with frozen output weights, over a set of rays.

    Args:
        problem: The particles; their labels are None.
        group: Of each particle, (m,); equal coefficients inside.
        offset: Where the output bias starts, (k,).

    Attributes:
        rays: The columns with their lengths.
        offset: Output bias, (k,).
    """

    def __init__(self, problem: ParticleProblem, group: Tensor, offset: Tensor) -> None:
        assert problem.coefficients is not None
        W, a = problem.anchors, problem.coefficients
        self._problem = problem
        size = int(group.max()) + 1
        self.count = torch.bincount(group, minlength=size).to(W)
        share = 1.0 / self.count.unsqueeze(1)
        self.anchors = share * W.new_zeros(size, W.shape[1]).index_add_(0, group, W)
        self.coefficients = share * a.new_zeros(size, a.shape[1]).index_add_(0, group, a)
        self._constant = 0.5 * problem.stiffness * float(W.square().sum())
        empty = W.new_zeros(0)
        none = torch.zeros(0, dtype=torch.long, device=W.device)
        self.rays = Rays(W[:0], none, empty, W.new_zeros(0, len(problem.features)))
        self.offset = offset

    def add(self, directions: Tensor, group: Tensor, lengths: Tensor | None = None) -> None:
        """Add rays (b, d) of groups (b,), of length 0 unless given (b,)."""
        r = self.rays
        hidden = (directions @ self._problem.features.T).clamp_min(0.0)
        extra = r.lengths.new_zeros(len(group)) if lengths is None else lengths
        self.rays = Rays(
            torch.cat([r.directions, directions]),
            torch.cat([r.group, group]),
            torch.cat([r.lengths, extra]),
            torch.cat([r.hidden, hidden]),
        )

    def prune(self) -> None:
        """Forget the rays of length 0."""
        r, kept = self.rays, self.rays.lengths > 0
        self.rays = Rays(r.directions[kept], r.group[kept], r.lengths[kept], r.hidden[kept])

    @property
    def totals(self) -> Tensor:
        """S, the radius of each group, (G,)."""
        return torch.zeros_like(self.count).index_add_(0, self.rays.group, self.rays.lengths)

    @property
    def output(self) -> Tensor:
        """The output z, (n, k)."""
        r = self.rays
        mass = (r.lengths * self.count[r.group]).unsqueeze(1) * self.coefficients[r.group]
        return r.hidden.T @ mass + self.offset

    @property
    def price(self) -> float:
        """What the spread particles and the output bias cost."""
        r, kappa = self.rays, self._problem.stiffness
        along = (r.directions * self.anchors[r.group]).sum(1)
        price = 0.5 * (self.count * self.totals.square()).sum()
        price = price - (self.count[r.group] * r.lengths * along).sum()
        return kappa * float(price) + self._constant + self._problem.offset_price(self.offset)

    def corrected(self, model: QuadraticRisk) -> tuple[Tensor, Tensor]:
        """Return the lengths (J,) and the output bias (k,) that minimise model and price."""
        p, r = self._problem, self.rays
        base = p.offset.expand_as(model.centre)
        slope = model.grad + model.hessian(base - model.centre)
        mass = self.count[r.group].unsqueeze(1) * self.coefficients[r.group]  # (J, k)
        columns = r.hidden.unsqueeze(2) * mass.unsqueeze(1)  # (J, n, k)
        along = (r.directions * self.anchors[r.group]).sum(1)
        c = columns.flatten(1) @ slope.reshape(-1) - p.stiffness * self.count[r.group] * along
        A = model.root(columns).flatten(1)
        group, stiffness = r.group, p.stiffness * self.count
        free = torch.zeros(len(r), dtype=torch.bool, device=A.device)
        start = r.lengths
        if p.offset_stiffness is not None:  # one free column for each output
            ones = torch.eye(p.outputs, dtype=A.dtype, device=A.device)
            ones = ones.unsqueeze(1).expand(-1, len(base), -1)
            A = torch.cat([A, model.root(ones).flatten(1)])
            c = torch.cat([c, ones.flatten(1) @ slope.reshape(-1)])
            own = len(stiffness) + torch.arange(p.outputs, device=group.device)
            group = torch.cat([group, own])
            stiffness = torch.cat([stiffness, stiffness.new_full((p.outputs,), p.offset_stiffness)])
            free = torch.cat([free, free.new_ones(p.outputs)])
            start = torch.cat([start, self.offset - p.offset])
        found = ConeQP(A, c, group, stiffness, free).minimizer(start)
        if p.offset_stiffness is None:
            return found, self.offset
        return found[: len(r)], p.offset + found[len(r) :]

    def move(self, lengths: Tensor, offset: Tensor) -> None:
        """Take lengths (J,) and an output bias (k,)."""
        r = self.rays
        self.rays = Rays(r.directions, r.group, lengths, r.hidden)
        self.offset = offset

    def radii(self, lam: Tensor, directions: Tensor) -> Tensor:
        """Return the best radius (G, S) of each group along directions (S, d), negative if none.

        r = <u, W> - <lam, psi(u)>/kappa; what the group would gain along u grows with r - S.
        """
        hidden = (directions @ self._problem.features.T).clamp_min(0.0)
        q = self.coefficients @ (hidden @ lam).T
        return self.anchors @ directions.T - q / self._problem.stiffness
