"""The loss as a function h of the layer's output: value, gradient and Hessian."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Size, Tensor

from torch_wprox.closure.runner import ClosureRunner
from torch_wprox.layers.grid import GridLayer

# A Hessian is kept while it predicts the change of the gradient this well: Newton's method then
# still gains four digits a step, and every kept Hessian saves evaluations of the closure.
_STILL_VALID = 1e-4


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

    Hessians come from differences of gradients. Losses are nearly always sums over samples; then
    the Hessian is block-diagonal and all samples are probed at once, one evaluation per output
    feature. A random probe checks this; if it fails, all n columns are probed.

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
        H = self._block_diagonal(u, grad)
        # A fixed vector without symmetries, so that nothing is drawn from a generator.
        probe = torch.cos(1.0 + 1.7 * torch.arange(len(u), device=u.device, dtype=u.dtype))
        seen = self.curvature_along(u, grad, probe)
        error = torch.linalg.vector_norm(seen - H @ probe)
        if self.samples > 1 and error > 1e-3 * torch.linalg.vector_norm(seen):
            columns = torch.eye(len(u), device=u.device, dtype=u.dtype)
            H = torch.stack([self.curvature_along(u, grad, e) for e in columns])
        H = (H + H.t()) / 2
        self._kept = (u, grad, H)
        return H

    def _block_diagonal(self, u: Tensor, grad: Tensor) -> Tensor:
        n, k = self.samples, self.outputs
        H = u.new_zeros(n, k, n, k)
        each = torch.arange(n, device=u.device)
        for c in range(k):
            v = u.new_zeros(n, k)
            v[:, c] = 1.0
            column = self.curvature_along(u, grad, v.flatten()).view(n, k)
            H[each, :, each, c] = column
        return H.view(n * k, n * k)


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
