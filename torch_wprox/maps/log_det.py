"""The log determinant of a convex map's Jacobian: exact, or by Lanczos from random probes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from torch_wprox.maps.transport_map import TransportMap, log_det_of

# Above this dimension a Cholesky factor per particle costs more than Lanczos steps.
_EXACT_UP_TO = 64
# A Krylov space ends where the next vector is this much shorter than the matrix is large.
_EXHAUSTED = 1e-10


@dataclass(frozen=True)
class LogDet:
    r"""How log det H is computed for the Jacobian H (symmetric, positive definite) of a map.

    "exact": a Cholesky factor per particle, D^3. "lanczos": from one random probe z of signs per
    particle, with products H z only,

    .. math::
        \log\det H = E[z^T \log(H) z], \qquad
        \nabla_\theta \log\det H = E[\langle H^{-1} z, \nabla_\theta (H z)\rangle],

    both from the same Krylov space: Gauss quadrature for the logarithm, and what conjugate
    gradients would give for the inverse. The noise averages out over the particles.

    Args:
        method: "auto" (exact up to 64 dimensions), "exact" or "lanczos".
        iterations: Lanczos steps; D of them are exact for the probe.
        seed: Of the probes.

    Raises:
        ValueError: An argument is out of range.

    Example:
        >>> from torch_wprox.maps import Entropy
        >>> Entropy(log_det=LogDet("lanczos", iterations=10)).log_det.method
        'lanczos'

    Source: Hutchinson 1990; Ubaru, Chen & Saad, Fast estimation of tr(f(A)) via stochastic Lanczos
    quadrature, 2017; Huang et al., Convex potential flows, 2021 (the gradient).
    """

    method: Literal["auto", "exact", "lanczos"] = "auto"
    iterations: int = 20
    seed: int = 0

    def __post_init__(self) -> None:
        if self.method not in ("auto", "exact", "lanczos"):
            raise ValueError(f"method must be 'auto', 'exact' or 'lanczos', got {self.method!r}")
        if self.iterations < 1:
            raise ValueError(f"iterations must be >= 1, got {self.iterations!r}")

    def of(self, map_: TransportMap, x: Tensor) -> Tensor:
        """Return log det of the Jacobian of ``map_`` at x (m, D), (m,), differentiable in theta."""
        exact = map_.network.dim <= _EXACT_UP_TO if self.method == "auto" else None
        if exact or self.method == "exact":
            return log_det_of(map_.jacobian(x))
        random = torch.Generator().manual_seed(self.seed)
        z = torch.randint(0, 2, x.shape, generator=random).to(x) * 2 - 1
        return _probed(map_, x, z, min(self.iterations, map_.network.dim))


def _probed(map_: TransportMap, x: Tensor, z: Tensor, iterations: int) -> Tensor:
    with torch.no_grad():
        quadrature, solved = _lanczos(lambda v: _product(map_, x, v), z, iterations)
    if not (torch.is_grad_enabled() and map_.theta.requires_grad):
        return quadrature
    pulled = (solved * _product(map_, x, z, graph=True)).sum(1)
    return quadrature + (pulled - pulled.detach())


def _product(map_: TransportMap, x: Tensor, v: Tensor, *, graph: bool = False) -> Tensor:
    """Return H v for every particle: the gradient in x of <T(x), v>."""
    with torch.enable_grad():
        at = x.detach().requires_grad_()
        (found,) = torch.autograd.grad((map_(at) * v).sum(), at, create_graph=graph)
    return found if graph else found.detach()


def _lanczos(
    product: Callable[[Tensor], Tensor], z: Tensor, iterations: int
) -> tuple[Tensor, Tensor]:
    """Return z^T log(H) z (m,) and H^-1 z (m, D) from the Krylov space of z, for every row."""
    length = z.norm(dim=1)
    basis, alphas, betas = [z / length.unsqueeze(1)], [], []
    for k in range(iterations):
        w = product(basis[k])
        alphas.append((w * basis[k]).sum(1))
        for q in basis:  # full orthogonalisation: there are few vectors
            w = w - (w * q).sum(1, keepdim=True) * q
        beta = w.norm(dim=1)
        done = beta <= _EXHAUSTED * alphas[0]  # the space of this row ends: zeros follow
        if k + 1 == iterations or bool(done.all()):
            break
        betas.append(beta.masked_fill(done, 0.0))
        basis.append((w / beta.unsqueeze(1)).masked_fill(done.unsqueeze(1), 0.0))
    diagonal = torch.stack(alphas, 1)
    # Behind the end of a space any positive number will do: nothing is connected to it.
    T = torch.diag_embed(torch.where(diagonal > 0, diagonal, torch.ones_like(diagonal)))
    if betas:
        off = torch.stack(betas, 1)
        T = T + torch.diag_embed(off, 1) + torch.diag_embed(off, -1)
    values, vectors = torch.linalg.eigh(T)
    first = vectors[:, 0, :]
    quadrature = length.square() * (first.square() * values.log()).sum(1)
    weights = length.unsqueeze(1) * (vectors @ (first / values).unsqueeze(2)).squeeze(2)
    return quadrature, (torch.stack(basis, 1) * weights.unsqueeze(2)).sum(1)
