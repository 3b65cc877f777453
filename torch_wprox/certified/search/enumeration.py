"""A handful of particles in the plane: every choice of sectors, each solved exactly.

With two or three particles the relaxed step says little about the best cloud. But with every
particle in a fixed sector, v_i = r_i0 u + r_i1 u' between its two rays, P is a convex quadratic in
r >= 0 (of the model of the loss), so small that all faces of the cone are tried: the least of the
stationary points that are admissible is the minimum. All choices of sectors are solved at once.
"""

from __future__ import annotations

import itertools

import torch
from torch import Tensor

from torch_wprox.certified.problem.particle_problem import Configuration, ParticleProblem
from torch_wprox.certified.problem.quadratic_model import QuadraticRisk
from torch_wprox.certified.responses.planar import Sectors

# Linear systems (choices of sectors times faces of a cone) that are solved at most.
_SYSTEMS = 300_000


def is_enumerable(problem: ParticleProblem, sectors: Sectors) -> bool:
    """Return whether the choices of sectors are few enough to try all of them."""
    systems: int = (4 * len(sectors.rays)) ** problem.width
    return systems <= _SYSTEMS


def enumerated(
    problem: ParticleProblem, sectors: Sectors, model: QuadraticRisk, count: int
) -> list[Configuration]:
    """Return the minimisers of the model of P on the best choices of sectors, lowest first.

    Args:
        problem: Particles with two inputs and frozen output weights.
        sectors: The plane, cut by the samples.
        model: Of the loss.
        count: Choices returned at most.
    """
    p, size, m = problem, len(sectors.rays), problem.width
    assert p.coefficients is not None
    base = p.offset.expand_as(model.centre)
    slope = model.grad + model.hessian(base - model.centre)
    outputs = sectors.ray_values.unsqueeze(2) * p.coefficients.view(m, 1, 1, -1)  # (m, S, n, k)
    roots = model.root(outputs).flatten(0, 1).flatten(1)
    along = p.anchors @ sectors.rays.T  # (m, S)
    linear = outputs.flatten(2) @ slope.reshape(-1) - p.stiffness * along
    linear = linear.flatten()
    owner = torch.arange(m, device=roots.device).repeat_interleave(size)
    turned = (sectors.rays @ sectors.rays.T).repeat(m, m)
    Q = roots @ roots.T + torch.where(owner.unsqueeze(1) == owner, p.stiffness * turned, 0.0)
    bias: Tensor | None = None
    if p.offset_stiffness is not None:  # minimised out: it is free
        ones = torch.eye(p.outputs, dtype=Q.dtype, device=Q.device).unsqueeze(1)
        ones = ones.expand(-1, len(base), -1)
        E = model.root(ones).flatten(1)
        own = E @ E.T
        own.diagonal().add_(p.offset_stiffness)
        pull = ones.flatten(1) @ slope.reshape(-1)
        bias = torch.linalg.solve(own, torch.cat([E @ roots.T, pull.unsqueeze(1)], 1))
        Q = Q - roots @ E.T @ bias[:, :-1]
        linear = linear - roots @ E.T @ bias[:, -1]
    choices = torch.cartesian_prod(*[torch.arange(size, device=Q.device)] * m).view(-1, m)
    place = torch.arange(m, device=Q.device) * size
    columns = torch.stack([choices + place, (choices + 1) % size + place], 2).flatten(1)
    radii, values = _minimised(Q, linear, columns)
    best = values.topk(min(count, len(values)), largest=False).indices
    found = []
    for j in best.tolist():
        rays = sectors.rays[columns[j] % size]
        points = (radii[j].unsqueeze(1) * rays).view(m, 2, 2).sum(1)
        offset = p.offset
        if bias is not None:
            offset = p.offset - bias[:, :-1][:, columns[j]] @ radii[j] - bias[:, -1]
        found.append(Configuration(points, offset, p.start().sigma))
    return found


def _minimised(Q: Tensor, linear: Tensor, columns: Tensor) -> tuple[Tensor, Tensor]:
    """Minimise (1/2) r^T Q r + <c, r> over r >= 0 on each row of columns (T, J), all faces tried.

    Returns:
        Minimisers (T, J) and minima (T,).
    """
    A = Q[columns.unsqueeze(2), columns.unsqueeze(1)]
    c = linear[columns]
    A = A + 1e-14 * A.diagonal(dim1=1, dim2=2).amax(1).view(-1, 1, 1) * torch.eye(
        A.shape[1], dtype=A.dtype, device=A.device
    )
    radii, values = torch.zeros_like(c), torch.zeros_like(c[:, 0])
    for chosen in itertools.product((False, True), repeat=c.shape[1]):
        face = [j for j, is_on in enumerate(chosen) if is_on]
        if not face:
            continue
        r, failed = torch.linalg.solve_ex(A[:, face][:, :, face], -c[:, face])
        value = 0.5 * (c[:, face] * r).sum(1)
        lower = (failed == 0) & (r >= 0).all(1) & (value < values)
        values = torch.where(lower, value, values)
        on_face = torch.zeros_like(radii)
        on_face[:, face] = r
        radii = torch.where(lower.unsqueeze(1), on_face, radii)
    return radii, values
