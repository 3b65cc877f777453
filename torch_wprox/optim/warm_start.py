"""What one step learnt for the next: curvature if F is still the same function, else a length."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeGuard

import torch
from torch import Tensor

from torch_wprox.objective import Objective

# A closure on other data moves loss and gradient by far more; a device that adds in another order
# by far less.
_SAME = 1e-6
# All data in another order, in float32 near a minimum, where the gradient is small.
_ALIKE = 1e-2


@dataclass(frozen=True)
class Carried:
    """A solver's memory, with loss and gradient of F at the parameters that the step accepted.

    Attributes:
        memory: Plain numbers and tensors, as the solver returned them; None if it keeps nothing.
        loss: F at the accepted parameters.
        grad: Its gradient, (N,).
    """

    memory: dict[str, Any] | None
    loss: float
    grad: Tensor

    def state_dict(self) -> dict[str, Any]:
        """Return plain values and tensors."""
        return {"memory": self.memory, "loss": self.loss, "grad": self.grad}

    @classmethod
    def from_state_dict(cls, state: dict[str, Any]) -> Carried:
        """Rebuild from :meth:`state_dict`.

        Raises:
            ValueError: It is corrupt.
        """
        parts = (
            [state.get(k) for k in ("memory", "loss", "grad")] if _is_dict(state) else [None] * 3
        )
        memory, loss, grad = parts
        if not (
            (memory is None or _is_dict(memory))
            and isinstance(loss, float)
            and isinstance(grad, Tensor)
        ):
            raise ValueError(
                "the state is corrupt: carried must have a dictionary 'memory', a number 'loss' "
                f"and a tensor 'grad', got {[type(part).__name__ for part in parts]}"
            )
        return cls(None if memory is None else dict(memory), loss, grad)


def _is_dict(value: Any) -> TypeGuard[Mapping[str, Any]]:
    return isinstance(value, Mapping)


def recall(carried: Carried | None, loss: Tensor, grad: Tensor) -> dict[str, Any] | None:
    """Return the memory if the first loss and gradient of this step are those of the last one.

    Minibatch closures change F from step to step, and curvature of one F misleads on another.

    Args:
        carried: What the last step left.
        loss: First loss of this step, 0-d.
        grad: First gradient of this step, (N,).
    """
    if carried is None or carried.memory is None or not _agrees(carried, loss, grad, _SAME):
        return None
    return {k: v.to(grad.device) if isinstance(v, Tensor) else v for k, v in carried.memory.items()}


def is_same_loss(carried: Carried | None, loss: Tensor, grad: Tensor) -> bool | None:
    """Return whether F is the function of the last step, None if there was none.

    Up to a hundredth: the same data in another order are the same function, another minibatch is
    not. Parameters that were changed between two steps make it another function, too.
    """
    return None if carried is None else _agrees(carried, loss, grad, _ALIKE)


def _agrees(carried: Carried, loss: Tensor, grad: Tensor, tolerance: float) -> bool:
    """Return whether loss (0-d) and gradient (N,) are those that the last step left."""
    if carried.grad.shape != grad.shape or carried.grad.dtype != grad.dtype:
        return False
    # A comparison with a NaN is false.
    if not abs(carried.loss - loss.item()) <= tolerance * abs(carried.loss):
        return False
    off = torch.linalg.vector_norm(carried.grad.to(grad.device) - grad)
    return bool(off <= tolerance * torch.linalg.vector_norm(grad))


def learnt_length(objective: Objective, before: float | None) -> float | None:
    """Return the length of a gradient step on F that suits the next step, whatever its minibatch.

    Curvature pairs of one minibatch mislead on another, their overall scale hardly does. With s the
    way of this step and y the change of grad F along it, <s, y>/<y, y> is the length that Barzilai
    and Borwein (1988) take. Where no trial point was lower, the last one was still too far.

    Args:
        objective: The step's objective, solved.
        before: What the step itself had.
    """
    start, best, last = objective.start, objective.best, objective.last
    if best is not start:
        s, y = best.point - start.point, best.loss_grad - start.loss_grad
        product, curvature = torch.dot(s, y).item(), torch.dot(y, y).item()
        return float(product / curvature) if product > 0 and curvature > 0 else before
    if last is None or last is start or not start.residual > 0:
        return before
    way = torch.linalg.vector_norm(last.point - start.point).item()
    if not way > 0 or objective.equals(last.value, start.value):
        return before  # P is at its floor there: nothing is too far
    return float(0.5 * way / start.residual)
