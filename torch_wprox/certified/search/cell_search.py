"""Local search over cells: particles with two inputs, each held in one sector of the plane.

With every particle in a fixed closed sector z is linear in V, so P is convex there, and its exact
minimiser costs a few Newton steps in the output: for a loss gradient lam every particle projects,

    v_i(lam) = Proj_{sector(i)}(W_i - A_i^T lam / kappa),   psi_i(v) = A_i v  on the sector,

and the minimiser is the root of F(z) = z - z(v(grad R(z))). F is piecewise smooth with the Jacobian
I + M H, M = sum_i A_i P_i A_i^T / kappa (P_i: onto the active face), H = Hess R; both are positive
semidefinite, so it is never singular. What is left to search is which sector each particle takes.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from torch_wprox.certified.problem.batched_bfgs import Ends, unlimited
from torch_wprox.certified.problem.particle_problem import Configuration, ParticleProblem
from torch_wprox.certified.problem.quadratic_model import QuadraticRisk
from torch_wprox.certified.responses.planar import Sectors

# Changes of sector that are compared exactly at a time, of those that look best to first order.
_CANDIDATES = 600
_MOVES = 8


@dataclass(frozen=True)
class CellSearch:
    """The search of one problem, with its sectors.

    Attributes:
        problem: Particles with two inputs and frozen output weights.
        sectors: The plane, cut by the samples.
    """

    problem: ParticleProblem
    sectors: Sectors

    def sectors_of(self, points: Tensor) -> Tensor:
        """Return the sector of each point (m, 2); one on a ray belongs to either side."""
        rays = self.sectors.rays
        angles = torch.atan2(rays[:, 1], rays[:, 0]).remainder(2.0 * torch.pi)
        order = angles.argsort()
        own = torch.atan2(points[:, 1], points[:, 0]).remainder(2.0 * torch.pi)
        place = torch.searchsorted(angles[order], own, right=True) - 1
        return order[place]

    def responses(self, lam: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        """Return each particle's best point (m, S, 2) in every closed sector, and its value (m, S).

        Args:
            lam: Loss gradient (n, k).
            sigma: Anchors paid from (m,).
        """
        p, s = self.problem, self.sectors
        assert p.coefficients is not None
        rows, group = torch.unique(p.coefficients, dim=0, return_inverse=True)
        slopes = s.slopes((lam @ rows.T).T)[group]  # (m, S, 2)
        anchors = p.anchors[sigma].unsqueeze(1)
        points = _projected(anchors - slopes / p.stiffness, s.rays, s.rays.roll(-1, 0))
        moved = (points - anchors).square().sum(2)
        return points, (slopes * points).sum(2) + 0.5 * p.stiffness * moved

    def settled(
        self, sector: Tensor, sigma: Tensor, model: QuadraticRisk, z: Tensor, max_iter: int = 30
    ) -> tuple[Configuration, Tensor]:
        """Minimise the model of P with particles held in their sectors.

        Args:
            sector: (m,).
            sigma: Anchors paid from (m,).
            model: Of the loss.
            z: First guess of the output (n, k).
            max_iter: Newton steps.

        Returns:
            The minimiser and its output (n, k).
        """
        p, s = self.problem, self.sectors
        a = p.coefficients
        assert a is not None
        jacobian = s.active[sector].unsqueeze(2) * p.features  # (m, n, 2): hidden = jacobian v
        before, after = s.rays[sector], s.rays.roll(-1, 0)[sector]
        anchors = p.anchors[sigma]

        def respond(z: Tensor) -> tuple[Configuration, Tensor]:
            lam = model(z)[1]
            slopes = torch.einsum("mnd,nm->md", jacobian, lam @ a.T)
            points = _projected(anchors - slopes / p.stiffness, before, after)
            offset = p.best_offset(lam)
            hidden = torch.einsum("mnd,md->nm", jacobian, points)
            return Configuration(points, offset, sigma), hidden @ a + offset

        x, out = respond(z)
        error = float((z - out).norm())
        for _ in range(max_iter):
            if error <= 1e-13 * (1.0 + float(z.norm())):
                break
            reach = jacobian @ _faces(x.points, before, after)
            step = self._newton(reach, model, z - out)
            share = 1.0
            while share > 1e-3:
                x_new, out_new = respond(z - share * step)
                error_new = float((z - share * step - out_new).norm())
                if error_new < error:
                    break
                share *= 0.5
            else:
                break
            z, x, out, error = z - share * step, x_new, out_new, error_new
        return x, p.output(x.points, x.offset)

    def improved(
        self,
        x: Configuration,
        model: QuadraticRisk,
        *,
        max_moves: int = 30,
        ends: Ends = unlimited,
    ) -> Configuration:
        """Descend by joint minimisation inside the sectors and by changes of sectors.

        Every particle's best point in every sector, at the loss gradient of the moment, is a change
        of known value to first order; the most promising ones are compared on the model, alone and
        in pairs, and each round of changes is followed by the joint minimisation.

        Args:
            x: Where to start.
            model: Of the loss.
            max_moves: Rounds at most.
            ends: Whether time is up.
        """
        p = self.problem
        sector = self.sectors_of(x.points)
        z = p.output(x.points, x.offset)
        best, value = x, float(model.values(z)) + p.price(x)
        candidate, z = self.settled(sector, x.sigma, model, z)
        for _ in range(max_moves):
            reached = float(model.values(z)) + p.price(candidate)
            if not reached < value - 1e-12 * abs(value):
                break
            best, value = candidate, reached
            if ends():
                break
            changed = self._changed(best, model, z, value)
            if changed is None:
                break
            points, sector = changed
            candidate, z = self.settled(sector, best.sigma, model, p.output(points, best.offset))
        return best

    def _changed(
        self, x: Configuration, model: QuadraticRisk, z: Tensor, value: float
    ) -> tuple[Tensor, Tensor] | None:
        """Return points (m, 2) and sectors (m,) after the best changes of sectors, if any helps."""
        p = self.problem
        assert p.coefficients is not None
        lam = model(z)[1]
        points, values = self.responses(lam, x.sigma)
        hidden = (p.features @ x.points.T).clamp_min(0.0)  # (n, m)
        own = (hidden * (lam @ p.coefficients.T)).sum(0) + p.prices(x.points, x.sigma)
        first_order = (values - own.unsqueeze(1)).flatten()
        top = first_order.topk(min(_CANDIDATES, len(first_order)), largest=False).indices
        owner, place = top // values.shape[1], top % values.shape[1]
        gain = first_order[top]
        moved = (points[owner, place] @ p.features.T).clamp_min(0.0) - hidden.T[owner]
        steps = model.root(moved.unsqueeze(2) * p.coefficients[owner].unsqueeze(1)).flatten(1)
        gram = steps @ steps.T
        alone = gain + 0.5 * gram.diagonal()
        same = owner.unsqueeze(1) == owner
        taken = torch.zeros(p.width, dtype=torch.bool, device=z.device)
        after, sector = x.points.clone(), self.sectors_of(x.points)
        tolerance = 1e-13 * abs(value)
        for _ in range(_MOVES):
            free = ~taken[owner]
            single = torch.where(free, alone, torch.inf)
            best = int(single.argmin())
            chosen = [best]
            if not single[best] < -tolerance:
                double = single.unsqueeze(1) + single + gram
                double[same] = torch.inf
                best = int(double.argmin())
                if not double.view(-1)[best] < -tolerance:
                    break
                chosen = [best // len(top), best % len(top)]
            for j in chosen:
                after[owner[j]], sector[owner[j]] = points[owner[j], place[j]], place[j]
                taken[owner[j]] = True
                alone = alone + gram[j]  # <step, error> with the error that the change leaves
        return (after, sector) if bool(taken.any()) else None

    def _newton(self, reach: Tensor, model: QuadraticRisk, residual: Tensor) -> Tensor:
        """Return (I + M H)^-1 residual, (n, k), M = C C^T.

        C has a column for each coordinate in which a particle is free to move, ``reach`` (m, n, 2),
        and one for each output bias. Where it has fewer columns than rows,
        (I + C C^T H)^-1 = I - C (I + C^T H C)^-1 C^T H.
        """
        p = self.problem
        a = p.coefficients
        assert a is not None
        C = torch.einsum("mnd,mk->mdnk", reach, a).flatten(0, 1) / p.stiffness**0.5
        if p.offset_stiffness is not None:
            bias = torch.eye(p.outputs, dtype=C.dtype, device=C.device).unsqueeze(1)
            bias = bias.expand(-1, C.shape[1], -1) / p.offset_stiffness**0.5
            C = torch.cat([C, bias])
        bent = model.hessian(C).flatten(1)
        C = C.flatten(1)
        if len(C) <= C.shape[1]:
            small = bent @ C.T
            small.diagonal().add_(1.0)
            inner: Tensor = torch.linalg.solve(small, bent @ residual.reshape(-1))
            moved: Tensor = (inner @ C).view_as(residual)
            return residual - moved
        large = C.T @ bent
        large.diagonal().add_(1.0)
        step: Tensor = torch.linalg.solve(large, residual.reshape(-1))
        return step.reshape(residual.shape)


def _projected(free: Tensor, before: Tensor, after: Tensor) -> Tensor:
    """Project points (.., 2) on the cones of two rays, each narrower than a half plane.

    The projection is the point itself, or the better of its projections on the two rays.
    """
    r0 = (free * before).sum(-1, keepdim=True).clamp_min(0.0)
    r1 = (free * after).sum(-1, keepdim=True).clamp_min(0.0)
    on_ray = torch.where(r0 >= r1, r0 * before, r1 * after)
    inside = (_cross(before, free) >= 0) & (_cross(free, after) >= 0)
    return torch.where(inside.unsqueeze(-1), free, on_ray)


def _faces(points: Tensor, before: Tensor, after: Tensor) -> Tensor:
    """Return the projections (m, 2, 2) on the directions in which points can move in their sector.

    On a ray only the radius moves, at the origin nothing does, inside both coordinates do.
    """
    radius = points.norm(dim=1, keepdim=True)
    unit = points / torch.where(radius > 0, radius, torch.ones_like(radius))
    slack = 1e-12 * radius[:, 0]
    inside = (_cross(before, points) > slack) & (_cross(points, after) > slack)
    eye = torch.eye(2, dtype=points.dtype, device=points.device)
    return torch.where(inside.view(-1, 1, 1), eye, unit.unsqueeze(2) * unit.unsqueeze(1))


def _cross(a: Tensor, b: Tensor) -> Tensor:
    return a[..., 0] * b[..., 1] - a[..., 1] * b[..., 0]
