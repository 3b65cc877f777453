"""Gradients of convex functions as maps: forward, backward, change of volume."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from torch_wprox.maps.potential import ConvexNetwork

_NEWTON_STEPS = 100
_HALVINGS = 40


@dataclass(frozen=True)
class TransportMap:
    r"""The gradient of a convex function: by Brenier's theorem an optimal map for \|x - y\|^2.

    .. math:: T(x) = \mu + s\, \nabla\psi\!\left(\frac{x - \mu}{s}\right)

    Whatever measure it pushes, no other plan between that measure and its image is cheaper.

    Attributes:
        network: The shape of psi.
        theta: The numbers of psi, (size,).
        centre: mu, (1, D).
        scale: s > 0.

    Example:
        >>> from torch_wprox import MapFlow
        >>> from torch_wprox.maps import Potential
        >>> flow = MapFlow(torch.randn(50, 2), Potential(lambda x: x.square().sum(1)), gamma=0.5)
        >>> report = flow.step()
        >>> flow.maps[0](torch.ones(3, 2)).shape
        torch.Size([3, 2])
    """

    network: ConvexNetwork
    theta: Tensor
    centre: Tensor
    scale: float

    def __call__(self, x: Tensor) -> Tensor:
        """Return T(x) for points (m, D)."""
        return self.centre + self.scale * self.network.gradient(self.theta, self._inside(x))

    def potential(self, x: Tensor) -> Tensor:
        """Return the convex function whose gradient is T at x (m, D), (m,)."""
        psi = self.network.value(self.theta, self._inside(x))
        return self.scale**2 * psi + x @ self.centre[0]

    def jacobian(self, x: Tensor) -> Tensor:
        """Return the Jacobian of T at x (m, D): symmetric, positive definite, (m, D, D)."""
        return self.network.hessian(self.theta, self._inside(x))

    def log_det(self, x: Tensor) -> Tensor:
        """Return log det of the Jacobian at x (m, D), (m,)."""
        return log_det_of(self.jacobian(x))

    @torch.no_grad()
    def inverse(self, y: Tensor, tolerance: float = 1e-12) -> Tensor:
        """Return x with T(x) = y for points y (m, D), by Newton's method.

        A step is halved until |T(x) - y| falls: as T has a positive definite Jacobian some step
        does.

        Raises:
            RuntimeError: Some point is not reached to ``tolerance``, relative to the scale.
        """
        goal = self._inside(y)
        x = goal.clone()
        floor = max(tolerance, 50 * torch.finfo(y.dtype).eps) * (1 + goal.abs().amax(1))
        open_ = torch.arange(len(y), device=y.device)
        off = self.network.gradient(self.theta, x) - goal
        for _ in range(_NEWTON_STEPS):
            far = off.norm(dim=1) > floor[open_]
            if not bool(far.any()):
                return self.centre + self.scale * x
            open_, off = open_[far], off[far]
            way = -torch.linalg.solve(self.network.hessian(self.theta, x[open_]), off)
            x[open_], off = self._searched(x[open_], goal[open_], off, way)
        raise RuntimeError(
            f"{len(open_)} of {len(y)} points were not inverted to {tolerance:g}: raise tolerance"
        )

    def _searched(
        self, at: Tensor, goal: Tensor, off: Tensor, way: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return at + t way and grad psi - goal there, t halved for each point until that falls."""
        before, t = off.norm(dim=1), at.new_ones(len(at), 1)
        for _ in range(_HALVINGS):
            trial = at + t * way
            off = self.network.gradient(self.theta, trial) - goal
            bad = off.norm(dim=1, keepdim=True) > (1 - 1e-4 * t) * before.unsqueeze(1)
            if not bool(bad.any()):
                break
            t = torch.where(bad, t / 2, t)
        return trial, off

    def _inside(self, x: Tensor) -> Tensor:
        return (x - self.centre) / self.scale


def log_det_of(H: Tensor) -> Tensor:
    """Return log det of symmetric positive definite matrices (m, D, D), (m,)."""
    factor = torch.linalg.cholesky(H)
    found: Tensor = 2.0 * factor.diagonal(dim1=1, dim2=2).log().sum(1)
    return found


def standardised(points: Tensor) -> tuple[Tensor, float]:
    """Return the centre (1, D) and the scale of a cloud (m, D): its root mean square per axis."""
    centre = points.mean(0, keepdim=True)
    scale = (points - centre).square().mean().sqrt().item()
    size = points.abs().max().item()
    # A cloud that is one point has no scale of its own.
    return centre, scale if scale > 1e-12 * size else max(size, 1.0)
