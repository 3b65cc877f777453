"""Parameters as a matrix (m, D), one particle per row: read, write, and the gradient there."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import final

import torch
from torch import Tensor, nn

from torch_wprox.layers.mean_field import MeanFieldLayer


class View(ABC):
    """One block of the proximal objective: some parameters, seen as a matrix (m, D).

    Attributes:
        parameters: What the block reads and writes.
        m: Number of particles; 1 for a plain tensor.
        D: Number of coordinates of a particle.
        classes: (m,) labels; particles may be exchanged inside equal ones. None: all of them.
        is_cloud: Whether particles may be exchanged at all, at mass 1/m each.
    """

    parameters: tuple[nn.Parameter, ...]
    m: int
    D: int
    classes: Tensor | None = None
    is_cloud: bool = True

    @property
    def dtype(self) -> torch.dtype:
        """Type in which the step computes: float32 at least."""
        return compute_dtype(self.parameters[0])

    @abstractmethod
    def read(self) -> Tensor:
        """The block as a new (m, D) tensor."""

    @abstractmethod
    def write(self, V: Tensor) -> None:
        """Set the parameters to the block V (m, D)."""

    @abstractmethod
    def read_grad(self) -> Tensor:
        """The gradient in the coordinates of `read`, (m, D); it may share memory with ``.grad``."""

    def project(self, V: Tensor) -> Tensor:
        """The nearest admissible block."""
        return V

    def cotangent(self, V: Tensor, grad: Tensor) -> Tensor:
        """Gradient of f(project(V)) from ``grad``, the gradient of f at project(V)."""
        return grad


@final
class PlainView(View):
    """A whole tensor as one particle of mass 1."""

    is_cloud = False

    def __init__(self, parameter: nn.Parameter) -> None:
        self.parameters = (parameter,)
        self.m, self.D = 1, parameter.numel() * (2 if parameter.is_complex() else 1)

    def read(self) -> Tensor:
        """The entries in one row."""
        return _fresh(self.parameters[0], (1, self.D))

    def write(self, V: Tensor) -> None:
        """Set the entries."""
        _write(self.parameters[0], V)

    def read_grad(self) -> Tensor:
        """The gradient in one row."""
        return _grad(self.parameters[0]).reshape(1, self.D)


@final
class CloudView(View):
    """A matrix (m, D) whose rows are the particles."""

    def __init__(self, parameter: nn.Parameter, classes: Tensor | None = None) -> None:
        self.parameters = (parameter,)
        self.m = parameter.shape[0]
        self.D = parameter.shape[1] * (2 if parameter.is_complex() else 1)
        self.classes = classes

    def read(self) -> Tensor:
        """The matrix."""
        return _fresh(self.parameters[0], (self.m, self.D))

    def write(self, V: Tensor) -> None:
        """Set the matrix."""
        _write(self.parameters[0], V)

    def read_grad(self) -> Tensor:
        """The gradient."""
        return _grad(self.parameters[0]).reshape(self.m, self.D)


@final
class PairView(View):
    """Two linear layers: particle i is row i of the first, its bias, and column i of the second.

    Parts that do not train are left out of the particle.
    """

    def __init__(
        self,
        first: nn.Parameter,
        bias: nn.Parameter | None,
        second: nn.Parameter | None,
        classes: Tensor | None = None,
    ) -> None:
        self.parameters = tuple(p for p in (first, bias, second) if p is not None)
        self._second = second
        self.m = first.shape[0]
        self.classes = classes
        self._widths = [as_real(p).numel() // self.m for p in self.parameters]
        self.D = sum(self._widths)

    def _columns(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        # The second matrix (k, m) has its particles in columns.
        turned = [
            t.transpose(0, 1) if p is self._second else t
            for p, t in zip(self.parameters, tensors, strict=True)
        ]
        return [t.reshape(self.m, -1) for t in turned]

    def read(self) -> Tensor:
        """(w_i, b_i, a_i) in a row."""
        parts = [as_real(p.detach()).to(self.dtype) for p in self.parameters]
        return torch.cat(self._columns(parts), dim=1)

    @torch.no_grad()
    def write(self, V: Tensor) -> None:
        """Set the three tensors."""
        for p, part in zip(self.parameters, torch.split(V, self._widths, dim=1), strict=True):
            target = as_real(p.detach())
            if p is self._second:
                target = target.transpose(0, 1)
            target.copy_(part.reshape(target.shape))

    def read_grad(self) -> Tensor:
        """Gradients in a row."""
        return torch.cat(self._columns([_grad(p) for p in self.parameters]), dim=1)


@final
class CurvedView(View):
    """The particles of a "sphere" or "radial" layer."""

    def __init__(self, layer: MeanFieldLayer) -> None:
        self.parameters = (layer.particles,)
        self._form = layer.form
        self._inputs = layer.in_features + layer.has_bias
        self.m, self.D = self.read().shape

    def _stored(self) -> Tensor:
        p = self.parameters[0].detach()
        return p.to(self.dtype)

    def read(self) -> Tensor:
        """The cloud: (u, a) of "sphere", theta = r eta of "radial"."""
        return self._form.to_cloud(self._stored(), self._inputs)

    def write(self, V: Tensor) -> None:
        """Set the particles from the cloud."""
        _write(self.parameters[0], self._form.from_cloud(V, self._stored()))

    def read_grad(self) -> Tensor:
        """The gradient in cloud coordinates."""
        return self._form.cloud_grad(self._stored(), _grad(self.parameters[0]), self._inputs)

    def project(self, V: Tensor) -> Tensor:
        """Normalise the directions of "sphere"."""
        return self._form.project(V, self._inputs)

    def cotangent(self, V: Tensor, grad: Tensor) -> Tensor:
        """Chain rule of `project`."""
        return self._form.cotangent(V, grad, self._inputs)


def as_real(t: Tensor) -> Tensor:
    """A complex tensor as real, with a last axis of 2."""
    return torch.view_as_real(t) if t.is_complex() else t


def compute_dtype(p: Tensor) -> torch.dtype:
    """The real type in which a step computes with p: float32 at least."""
    real = p.dtype.to_real()
    return torch.float32 if real.itemsize < 4 else real


def _fresh(p: Tensor, shape: tuple[int, int]) -> Tensor:
    real = as_real(p.detach())
    fresh = torch.empty(shape, dtype=compute_dtype(p), device=p.device)
    fresh.view(real.shape).copy_(real)
    return fresh


def _write(p: Tensor, V: Tensor) -> None:
    target = as_real(p.detach())
    target.copy_(V if V.shape == target.shape else V.reshape(target.shape))


def _grad(p: Tensor) -> Tensor:
    """The gradient in real compute type, of the parameter's (real) shape; zeros for None."""
    if p.grad is None:
        return torch.zeros(as_real(p.detach()).shape, dtype=compute_dtype(p), device=p.device)
    if p.grad.layout != torch.strided:
        raise RuntimeError(
            f"a parameter of shape {tuple(p.shape)} has a sparse gradient, which proximal steps do "
            "not support: make the embedding with sparse=False"
        )
    grad = as_real(p.grad.detach())
    return grad if grad.dtype == compute_dtype(p) else grad.to(compute_dtype(p))
