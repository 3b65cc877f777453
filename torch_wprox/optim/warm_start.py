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


@dataclass(frozen=True)
class Carried:
    """A solver's memory, with loss and gradient of F at the parameters that the step accepted.

    Attributes:
        memory: Plain numbers and tensors, as the solver returned them.
        loss: F at the accepted parameters.
        grad: Its gradient, (N,).
    """

    memory: dict[str, Any]
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
        if not (_is_dict(memory) and isinstance(loss, float) and isinstance(grad, Tensor)):
            raise ValueError(
                "the state is corrupt: carried must have a dictionary 'memory', a number 'loss' "
                f"and a tensor 'grad', got {[type(part).__name__ for part in parts]}"
            )
        return cls(dict(memory), loss, grad)


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
    if carried is None or carried.grad.shape != grad.shape or carried.grad.dtype != grad.dtype:
        return None
    # Negated, so that a NaN is never the same.
    if not abs(carried.loss - loss.item()) <= _SAME * abs(carried.loss):
        return None
    before = carried.grad.to(grad.device)
    if not torch.linalg.vector_norm(before - grad) <= _SAME * torch.linalg.vector_norm(grad):
        return None
    return {k: v.to(grad.device) if isinstance(v, Tensor) else v for k, v in carried.memory.items()}


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
