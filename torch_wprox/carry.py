"""What a solver learnt in one step and may use in the next, if F is still the same function."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

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
        """Rebuild from :meth:`state_dict`."""
        return cls(dict(state["memory"]), state["loss"], state["grad"])


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
