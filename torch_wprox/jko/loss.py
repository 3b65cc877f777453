"""The loss as a function h of the layer's output: value, gradient and Hessian."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Size, Tensor

from torch_wprox.closure.block_hessian import learnt_hessian
from torch_wprox.closure.runner import ClosureRunner
from torch_wprox.layers.grid import GridLayer

# A Hessian is kept while it predicts the change of the gradient this well: Newton's method then
# still gains four digits a step, and every kept Hessian saves evaluations of the closure.
_STILL_VALID = 1e-4
# Samples are mixed where their blocks alone miss this share of a change of the gradient: Newton's
# method gains as many digits a step as its Hessian has.
_MIXES = 1e-3


@dataclass(frozen=True)
class LossAt:
    """H at one output.

    Attributes:
        value: h(u), inf where it or its gradient is not finite.
        grad: (n,) gradient.
    """

    value: float
    grad: Tensor


class OutputLoss(ABC):
    """A convex function h on R^n, n = samples x outputs, given by values and gradients.

    Hessians come from differences of gradients, by :func:`learnt_hessian`: one evaluation per
    output feature where the loss is a sum over samples, one per number of the output where not.

    Attributes:
        evaluations: Gradients computed so far.
    """

    def __init__(self, samples: int, outputs: int, precision: float) -> None:
        self.samples, self.outputs = samples, outputs
        self.evaluations = 0
        self._precision = precision
        self._kept: tuple[Tensor, Tensor, Tensor] | None = None

    @abstractmethod
    def _value_and_grad(self, u: Tensor) -> tuple[float, Tensor]:
        """H(u) and its gradient (n,)."""

    def at(self, u: Tensor) -> LossAt:
        """Evaluate at the output u (n,)."""
        self.evaluations += 1
        value, grad = self._value_and_grad(u)
        if not (math.isfinite(value) and bool(torch.isfinite(grad).all())):
            value = math.inf
        return LossAt(value, grad)

    def curvature_along(self, u: Tensor, grad: Tensor, v: Tensor) -> Tensor:
        """Return (hess h) v by a difference: u, grad, v and the result are (n,)."""
        size = float(v.abs().max())
        if size == 0.0:
            return torch.zeros_like(v)
        step = self._precision * (1.0 + float(u.abs().max())) / size
        return (self.at(u + step * v).grad - grad) / step

    def hessian(self, u: Tensor, grad: Tensor) -> Tensor:
        """Return hess h, (n, n), symmetric; the last one as long as it predicts the gradient."""
        if self._kept is not None:
            u0, grad0, H = self._kept
            change = grad - grad0
            error = torch.linalg.vector_norm(change - H @ (u - u0))
            # At the same point (0 <= 0) as well.
            if error <= _STILL_VALID * torch.linalg.vector_norm(change):
                return H
        shape = (self.samples, self.outputs)
        H = learnt_hessian(
            lambda z: self.at(z.flatten()).grad.view(shape),
            u.view(shape),
            grad.view(shape),
            self._precision * (1.0 + float(u.abs().max())),
            tolerance=_MIXES,
        ).dense()
        self._kept = (u, grad, H)
        return H


class ExplicitLoss(OutputLoss):
    """A loss given as a differentiable function of the output.

    Args:
        h: (samples, outputs) -> 0-d tensor.
        samples: Rows.
        outputs: Columns.

    Example:
        >>> loss = ExplicitLoss(lambda u: (u - 1.5).square().sum(), 1, 1)
        >>> loss.at(torch.tensor([2.0], dtype=torch.float64))
        LossAt(value=0.25, grad=tensor([1.], dtype=torch.float64))
    """

    def __init__(self, h: Callable[[Tensor], Tensor], samples: int, outputs: int = 1) -> None:
        super().__init__(samples, outputs, precision=1e-7)
        self._h = h

    def _value_and_grad(self, u: Tensor) -> tuple[float, Tensor]:
        z = u.detach().view(self.samples, self.outputs).requires_grad_()
        with torch.enable_grad():
            value = self._h(z)
            [grad] = torch.autograd.grad(value, z)
        return value.item(), grad.flatten()


class ClosureLoss(OutputLoss):
    """A loss given by the closure: the layer answers u while the closure runs.

    Args:
        runner: Runs the closure.
        layer: The layer that answers.
        shape: (..., k) of the layer's output in this closure.
        dtype: In which the solver works.

    Raises:
        RuntimeError: In an evaluation, if the closure uses the weights beside the output.
    """

    def __init__(
        self, runner: ClosureRunner, layer: GridLayer, shape: Size, dtype: torch.dtype
    ) -> None:
        coarse = torch.finfo(layer.weight.dtype).eps
        super().__init__(shape[:-1].numel(), shape[-1], precision=coarse**0.5)
        self._runner, self._layer, self._shape, self._dtype = runner, layer, shape, dtype

    def _value_and_grad(self, u: Tensor) -> tuple[float, Tensor]:
        weight = self._layer.weight
        z = u.view(self._shape).to(weight.dtype, copy=True).requires_grad_()
        with self._layer.substituting(z):
            value = self._runner()
        if weight.grad is not None and bool(weight.grad.any()):
            raise RuntimeError(
                "the closure depends on weight not only through the layer's output (a penalty on "
                'the weights?): method="krylov" handles any closure'
            )
        grad = torch.zeros_like(z) if z.grad is None else z.grad
        return float(value), grad.detach().to(self._dtype).flatten()


class ClosureMeasureLoss:
    """The closure as a function f of the measure: the weights are written, the closure runs.

    Args:
        runner: Runs the closure.
        layer: Whose weights are written.
        like: (B, *shape), of the measures to come.
    """

    def __init__(self, runner: ClosureRunner, layer: GridLayer, like: Tensor) -> None:
        self.precision = torch.finfo(layer.weight.dtype).eps ** 0.5
        self._runner, self._layer, self._like = runner, layer, like

    def __call__(self, p: Tensor) -> LossAt:
        """Evaluate f."""
        weight = self._layer.weight
        weight.copy_(p.reshape(-1))
        value = float(self._runner())
        grad = torch.zeros_like(weight) if weight.grad is None else weight.grad
        if not (math.isfinite(value) and bool(torch.isfinite(grad).all())):
            value = math.inf
        return LossAt(value, grad.detach().view_as(self._like).to(self._like))
