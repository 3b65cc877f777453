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

from torch_wprox.certified.problem.particle_problem import Configuration, ParticleProblem
from torch_wprox.certified.problem.quadratic_model import QuadraticRisk
from torch_wprox.certified.responses.planar import Sectors
from torch_wprox.certified.search.rounding import Table, swapped


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

    def responses(self, lam: Tensor, sigma: Tensor, sector: Tensor | None) -> Tensor:
        """Return the best point of each particle in one closed sector, or in every one.

        Args:
            lam: Loss gradient (n, k).
            sigma: Anchors paid from (m,).
            sector: (m,), or None for all: the result is then (S, m, 2).
        """
        p, s = self.problem, self.sectors
        assert p.coefficients is not None
        slopes = s.slopes((lam @ p.coefficients.T).T)  # (m, S, 2)
        before, after, free = s.rays, s.rays.roll(-1, 0), p.anchors[sigma].unsqueeze(1)
        if sector is not None:
            rows = torch.arange(p.width, device=sector.device)
            slopes = slopes[rows, sector].unsqueeze(1)
            before, after = before[sector].unsqueeze(1), after[sector].unsqueeze(1)
        free = free - slopes / p.stiffness
        # Projection on a cone narrower than a half plane: itself, or the better of two rays.
        r0 = (free * before).sum(-1, keepdim=True).clamp_min(0.0)
        r1 = (free * after).sum(-1, keepdim=True).clamp_min(0.0)
        on_ray = torch.where(r0 >= r1, r0 * before, r1 * after)
        left = _cross(before, free) >= 0
        right = _cross(free, after) >= 0
        points = torch.where((left & right).unsqueeze(-1), free, on_ray)
        return points.transpose(0, 1) if sector is None else points.squeeze(1)

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
        p = self.problem

        def respond(z: Tensor) -> tuple[Configuration, Tensor, Tensor]:
            lam = model(z)[1]
            points = self.responses(lam, sigma, sector)
            x = Configuration(points, p.best_offset(lam), sigma)
            return x, self._linear_output(points, x.offset, sector), lam

        x, out, lam = respond(z)
        error = float((z - out).norm())
        for _ in range(max_iter):
            if error <= 1e-13 * (1.0 + float(z.norm())):
                break
            step = self._newton(x.points, sector, sigma, lam, model, z - out)
            share = 1.0
            while share > 1e-3:
                x_new, out_new, lam_new = respond(z - share * step)
                error_new = float((z - share * step - out_new).norm())
                if error_new < error:
                    break
                share *= 0.5
            else:
                break
            z, x, out, lam, error = z - share * step, x_new, out_new, lam_new, error_new
        return x, p.output(x.points, x.offset)

    def improved(
        self, x: Configuration, model: QuadraticRisk, *, max_moves: int = 30
    ) -> Configuration:
        """Descend by joint minimisation inside the sectors and by changes of sectors.

        A table of every particle's best point in every sector, at the loss gradient of the moment,
        offers single and pair moves; each is followed by the joint minimisation.

        Args:
            x: Where to start.
            model: Of the loss.
            max_moves: Rounds at most.
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
            lam = model(z)[1]
            all_points = self.responses(lam, best.sigma, None)
            atoms = [best, *(Configuration(q, best.offset, best.sigma) for q in all_points)]
            table = Table.of(p, atoms, best.offset, model)
            stay = torch.zeros(p.width, dtype=torch.long, device=z.device)
            choice, _ = swapped(table, stay, max_moves=8)
            moved = choice > 0
            if not bool(moved.any()):
                break
            sector = torch.where(moved, choice - 1, self.sectors_of(best.points))
            chosen = table.configuration(choice)
            candidate, z = self.settled(
                sector, best.sigma, model, p.output(chosen.points, chosen.offset)
            )
        return best

    def _linear_output(self, points: Tensor, offset: Tensor, sector: Tensor) -> Tensor:
        """Return z with the ReLU replaced by its linear piece on the sectors, (n, k)."""
        p = self.problem
        assert p.coefficients is not None
        hidden = self.sectors.active[sector].T * (p.features @ points.T)
        return hidden @ p.coefficients + offset

    def _newton(
        self,
        points: Tensor,
        sector: Tensor,
        sigma: Tensor,
        lam: Tensor,
        model: QuadraticRisk,
        residual: Tensor,
    ) -> Tensor:
        """Return (I + M H)^-1 residual, (n, k)."""
        p, s = self.problem, self.sectors
        a = p.coefficients
        assert a is not None
        active = s.active[sector]  # (m, n)
        jacobian = active.unsqueeze(2) * p.features  # (m, n, 2): hidden = jacobian v
        # On a ray only the radius moves, at the origin nothing does, inside both coordinates do.
        radius = points.norm(dim=1, keepdim=True)
        unit = points / torch.where(radius > 0, radius, torch.ones_like(radius))
        slack = 1e-12 * radius[:, 0]
        inside = (_cross(s.rays[sector], points) > slack) & (
            _cross(points, s.rays.roll(-1, 0)[sector]) > slack
        )
        eye = torch.eye(2, dtype=points.dtype, device=points.device)
        face = torch.where(inside.view(-1, 1, 1), eye, unit.unsqueeze(2) * unit.unsqueeze(1))
        reach = jacobian @ face  # A_i P_i without the coefficient; P_i is its own square
        columns = torch.einsum("mnd,mk->nkmd", reach, a).flatten(2).flatten(0, 1)
        size = columns.shape[0]
        M = columns @ columns.T / p.stiffness
        if p.offset_stiffness is not None:
            ones = torch.ones(len(p.features), 1, dtype=M.dtype, device=M.device)
            eye_k = torch.eye(p.outputs, dtype=M.dtype, device=M.device)
            M = M + torch.kron(ones @ ones.T, eye_k) / p.offset_stiffness
        unit_z = torch.eye(size, dtype=M.dtype, device=M.device).reshape(size, *residual.shape)
        H = model.hessian(unit_z).reshape(size, size)
        J = M @ H
        J.diagonal().add_(1.0)
        step: Tensor = torch.linalg.solve(J, residual.reshape(-1))
        return step.reshape(residual.shape)


def _cross(a: Tensor, b: Tensor) -> Tensor:
    return a[..., 0] * b[..., 1] - a[..., 1] * b[..., 0]
