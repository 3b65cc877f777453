"""Five ways to write a two-layer ReLU network as particles.

Every one of them is a pair (w, a), one row per neuron, through which the network is

    f(x) = scale * sum_i a_i relu(<w_i, x>),        scale = 1/m (mean) or 1 (sum),

where ``x`` carries a last 1 if there is a bias, ``w`` is (m, d) and ``a`` is (m, k). They differ in
what is stored, and so in the ground metric that transport and prox see:

    joint    (w, alpha)                       Euclidean                        mass 1/m
    signed   w; alpha frozen                  Euclidean inside each class      mass alpha/m
    clouds   w~ = |alpha| w; sign frozen      Euclidean inside each class      mass 1/m
    sphere   (u, a) = (w/|w|, |w| alpha)      |u - u0|^2 + (a - a0)^2          mass 1/m
    radial   (r, eta), (w, alpha) = r eta     |r eta - r0 eta0|^2 (cone)       mass r^2/m

Source: the note (Mercklé 2024), sections 6.2 and 11. Everything here is a pure function on tensors;
``inputs`` is the number of columns of w (bias included).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar, Literal, final

import torch
from torch import Tensor


def _norms(v: Tensor) -> Tensor:
    """(m, 1) row norms with 1 in place of 0, so that a zero row divides to a zero row."""
    norm = torch.linalg.vector_norm(v, dim=-1, keepdim=True)
    return torch.where(norm > 0, norm, torch.ones_like(norm))


def _sphere_norms(v: Tensor) -> Tensor:
    """As `_norms`, and exactly 1 where the row is a unit vector up to rounding.

    This makes the projection idempotent bit by bit: a point that was projected is left alone.
    """
    norm = _norms(v)
    rounding = 8 * torch.finfo(v.dtype).eps  # 5 eps were seen at D = 5000
    return torch.where((norm - 1).abs() <= rounding, torch.ones_like(norm), norm)


def _tangent(u: Tensor, g: Tensor) -> Tensor:
    """(I - u u^T) g row by row, for unit rows u."""
    radial: Tensor = torch.sum(u * g, dim=-1, keepdim=True)
    return g - radial * u


class Parameterization(ABC):
    """What the rows of ``particles`` mean.

    The cloud is the point of R^(m x D) in which the ground cost is Euclidean. It is ``particles``
    itself, except for "radial".
    """

    name: ClassVar[str]
    trains_output: ClassVar[bool]
    """Whether output weights are coordinates of the particle (else they are frozen)."""
    unit_weights: ClassVar[bool] = False
    """Whether frozen output weights are 1 or -1 only."""
    is_homogeneous: ClassVar[bool] = True
    """Whether output and ground cost scale with a particle's length along every ray, so that a step
    can be solved globally and a weight decay bounds the path norm."""
    is_flat: ClassVar[bool] = True
    """Whether the cloud is the stored tensor and every point of it is admissible."""

    @abstractmethod
    def columns(self, inputs: int, outputs: int) -> int:
        """Columns of ``particles``."""

    @abstractmethod
    def neurons(
        self, particles: Tensor, inputs: int, frozen: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Decode to w (m, inputs) and a (m, k); ``frozen`` (m, k) are frozen output weights."""

    @abstractmethod
    def encode(self, w: Tensor, alpha: Tensor) -> Tensor:
        """The particles of the network with weights w (m, inputs) and alpha (m, k)."""

    def positions(self, particles: Tensor, inputs: int) -> Tensor:
        """Where the particles are in the space of the measure, (m, D)."""
        return particles

    def masses(self, particles: Tensor, alpha: Tensor | None) -> Tensor:
        """The mass of each particle in the measure of the note, (m,)."""
        m = particles.shape[0]
        return particles.new_full((m,), 1 / m)

    def to_cloud(self, particles: Tensor, inputs: int) -> Tensor:
        """Coordinates in which the ground cost is Euclidean."""
        return particles

    def from_cloud(self, cloud: Tensor, particles: Tensor) -> Tensor:
        """Inverse of `to_cloud`; ``particles`` are the present ones, for what it leaves free."""
        return cloud

    def cloud_grad(self, particles: Tensor, grad: Tensor, inputs: int) -> Tensor:
        """Gradient in cloud coordinates from the gradient in the stored ones."""
        return grad

    def project(self, cloud: Tensor, inputs: int) -> Tensor:
        """Nearest admissible point of the cloud."""
        return cloud

    def cotangent(self, cloud: Tensor, grad: Tensor, inputs: int) -> Tensor:
        """Gradient of f(project(cloud)) from ``grad`` = grad f at the projected point."""
        return grad


@final
class Joint(Parameterization):
    """Particles theta = (w, alpha) in R^(d+k): output (1/m) sum alpha relu<w, x>."""

    name = "joint"
    trains_output = True

    def columns(self, inputs: int, outputs: int) -> int:
        """All of w and alpha."""
        return inputs + outputs

    def neurons(
        self, particles: Tensor, inputs: int, frozen: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Read w and alpha off the columns."""
        return particles[:, :inputs], particles[:, inputs:]

    def encode(self, w: Tensor, alpha: Tensor) -> Tensor:
        """Put w and alpha side by side."""
        return torch.cat([w, alpha], dim=1)


@final
class Signed(Parameterization):
    """Particles w in R^d with frozen alpha: the measure (1/m) sum alpha_i delta_{w_i}."""

    name = "signed"
    trains_output = False

    def columns(self, inputs: int, outputs: int) -> int:
        """Those of w."""
        return inputs

    def neurons(
        self, particles: Tensor, inputs: int, frozen: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """The stored w and the frozen alpha."""
        assert frozen is not None
        return particles, frozen

    def encode(self, w: Tensor, alpha: Tensor) -> Tensor:
        """A copy of w."""
        return w.clone()

    def masses(self, particles: Tensor, alpha: Tensor | None) -> Tensor:
        """alpha_i/m: a signed measure."""
        assert alpha is not None
        return alpha / particles.shape[0]


@final
class Clouds(Parameterization):
    """Particles w~ = |alpha| w, a cloud per sign: (1/m) sum relu<w~+, x> - relu<w~-, x>."""

    name = "clouds"
    unit_weights = True
    trains_output = False

    def columns(self, inputs: int, outputs: int) -> int:
        """Those of w~."""
        return inputs

    def neurons(
        self, particles: Tensor, inputs: int, frozen: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """The stored w~ and the frozen signs."""
        assert frozen is not None
        return particles, frozen

    def encode(self, w: Tensor, alpha: Tensor) -> Tensor:
        """|alpha| w; alpha has one entry per row (the others are 0), so its norm is |alpha|."""
        size: Tensor = torch.linalg.vector_norm(alpha, dim=1, keepdim=True)
        return size * w


@final
class Sphere(Parameterization):
    """(u, a) = (w/|w|, |w| alpha) on S^(d-1) x R^k with the product metric (chord, not arc)."""

    name = "sphere"
    is_homogeneous = False
    trains_output = True
    is_flat = False

    def columns(self, inputs: int, outputs: int) -> int:
        """Those of u and a."""
        return inputs + outputs

    def neurons(
        self, particles: Tensor, inputs: int, frozen: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Directions are normalised here, so that any stored length means the same network."""
        u = particles[:, :inputs]
        return u / _norms(u), particles[:, inputs:]

    def encode(self, w: Tensor, alpha: Tensor) -> Tensor:
        """Direction and length; w = 0 has no direction: the first axis stands in, with a = 0."""
        length = torch.linalg.vector_norm(w, dim=1, keepdim=True)
        first_axis = torch.zeros_like(w)
        first_axis[:, 0] = 1
        u = torch.where(length > 0, w / _norms(w), first_axis)
        return torch.cat([u, length * alpha], dim=1)

    def positions(self, particles: Tensor, inputs: int) -> Tensor:
        """(u, a) with |u| = 1."""
        return self.project(particles, inputs)

    def to_cloud(self, particles: Tensor, inputs: int) -> Tensor:
        """(u, a) with |u| = 1, whatever length is stored."""
        return self.project(particles, inputs)

    def cloud_grad(self, particles: Tensor, grad: Tensor, inputs: int) -> Tensor:
        """The stored v means u = v/|v|, so grad_v = (I - u u^T) grad_u / |v|: take |v| out."""
        norm = _sphere_norms(particles[:, :inputs])
        return torch.cat([norm * grad[:, :inputs], grad[:, inputs:]], dim=1)

    def project(self, cloud: Tensor, inputs: int) -> Tensor:
        """Divide the directions by their length."""
        u = cloud[:, :inputs]
        return torch.cat([u / _sphere_norms(u), cloud[:, inputs:]], dim=1)

    def cotangent(self, cloud: Tensor, grad: Tensor, inputs: int) -> Tensor:
        """Transposed derivative of v -> u = v/|v|: (I - u u^T) g / |v|; the identity on a."""
        v, g = cloud[:, :inputs], grad[:, :inputs]
        norm = _norms(v)
        return torch.cat([_tangent(v / norm, g) / norm, grad[:, inputs:]], dim=1)


@final
class Radial(Parameterization):
    """(r, eta), r eta = (w, alpha), |eta| = 1: output (1/m) sum r^2 psi(eta), cone metric."""

    name = "radial"
    trains_output = True
    is_flat = False

    def columns(self, inputs: int, outputs: int) -> int:
        """One for r, then those of eta."""
        return 1 + inputs + outputs

    def neurons(
        self, particles: Tensor, inputs: int, frozen: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """r^2 psi(eta) with psi(eta) = eta_alpha relu<eta_w, x>: w = eta_w, a = r^2 eta_alpha."""
        r, eta = particles[:, :1], particles[:, 1:]
        eta = eta / _norms(eta)
        return eta[:, :inputs], r.square() * eta[:, inputs:]

    def encode(self, w: Tensor, alpha: Tensor) -> Tensor:
        """Length and direction of (w, alpha); the first axis stands in where both are 0."""
        theta = torch.cat([w, alpha], dim=1)
        eta = torch.zeros_like(theta)
        eta[:, 0] = 1
        return self.from_cloud(theta, torch.cat([eta[:, :1], eta], dim=1))

    def positions(self, particles: Tensor, inputs: int) -> Tensor:
        """The directions eta, on the sphere S^(d+k-1)."""
        eta = particles[:, 1:]
        return eta / _sphere_norms(eta)

    def masses(self, particles: Tensor, alpha: Tensor | None) -> Tensor:
        """r^2/m: not a probability. Transport uses 1/m all the same."""
        return particles[:, 0].square() / particles.shape[0]

    def to_cloud(self, particles: Tensor, inputs: int) -> Tensor:
        """The point |r| eta/|eta|: its squared distances are the cone cost, and f is even in r."""
        return particles[:, :1].abs() * self.positions(particles, inputs)

    def from_cloud(self, cloud: Tensor, particles: Tensor) -> Tensor:
        """Length and direction of theta; at theta = 0 the direction stays what it was."""
        r = torch.linalg.vector_norm(cloud, dim=1, keepdim=True)
        eta = torch.where(r > 0, cloud / _norms(cloud), particles[:, 1:])
        return torch.cat([r, eta], dim=1)

    def cloud_grad(self, particles: Tensor, grad: Tensor, inputs: int) -> Tensor:
        """Polar coordinates: f_r u + (I - u u^T) f_u / r with u = eta/|eta|, f_u = |eta| f_eta.

        f is even in r, hence the sign. f_u is O(r^2), so its term tends to 0 with r.
        """
        r, eta = particles[:, :1], particles[:, 1:]
        norm = _norms(eta)
        u, radius = eta / norm, r.abs()
        along = torch.sign(r) * grad[:, :1] * u
        across = _tangent(u, norm * grad[:, 1:])
        return along + torch.where(radius > 0, across / _norms(r), torch.zeros_like(across))


ParameterizationName = Literal["joint", "signed", "clouds", "sphere", "radial"]

PARAMETERIZATIONS: dict[str, Parameterization] = {
    form.name: form for form in (Joint(), Signed(), Clouds(), Sphere(), Radial())
}
