"""All particle views of an optimizer as one flat vector, and the closure as a function of it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from torch_wprox.closure.runner import ClosureRunner
from torch_wprox.particles.views import View


class FlatParameters:
    """Reads and writes the clouds and plain tensors behind ``views`` as one vector of N numbers.

    The vector has the widest compute dtype of the views and lives on the device of the first.

    Args:
        views: Particle views of disjoint parameters, at least one.
    """

    def __init__(self, views: Sequence[View]) -> None:
        self.views = tuple(views)
        sizes = [view.m * view.D for view in views]
        self.starts = tuple(sum(sizes[:i]) for i in range(len(sizes)))

    def read(self) -> Tensor:
        """Return the positions, (N,), a copy."""
        clouds = [view.read() for view in self.views]
        dtype = max((V.dtype for V in clouds), key=lambda t: torch.finfo(t).bits)
        return torch.cat([V.to(clouds[0].device, dtype).reshape(-1) for V in clouds])

    def write(self, x: Tensor) -> None:
        """Move the parameters to ``x`` (N,)."""
        for view, V in self.parts(x):
            view.write(V)

    def read_grad(self, x: Tensor) -> Tensor:
        """Return the gradient (N,) that the closure left, like ``x`` (N,)."""
        return joined([_like(view.read_grad(), x).reshape(-1) for view in self.views])

    def parts(self, x: Tensor) -> list[tuple[View, Tensor]]:
        """Return every view with its (m, D) block of ``x`` (N,)."""
        if len(self.views) == 1:
            [view] = self.views
            return [(view, x.view(view.m, view.D))]
        return [
            (view, x[start : start + view.m * view.D].view(view.m, view.D))
            for view, start in zip(self.views, self.starts, strict=True)
        ]


class FlatLoss:
    """The closure as a function F of all parameters as one vector.

    Args:
        parameters: What is read and written.
        runner: Runs the closure.
    """

    def __init__(self, parameters: FlatParameters, runner: ClosureRunner) -> None:
        self.parameters = parameters
        self.runner = runner
        self._runs = runner.runs

    def __call__(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Move the parameters to ``x`` (N,); return F there (0-d) and its gradient (N,)."""
        self.parameters.write(x)
        loss = self.runner()
        self._runs = self.runner.runs
        return loss, self.parameters.read_grad(x)

    @property
    def is_current(self) -> bool:
        """Whether the closure has not run elsewhere since the last call, or since the start."""
        return self._runs == self.runner.runs


def _like(t: Tensor, x: Tensor) -> Tensor:
    """Return ``t`` with the type and device of ``x``."""
    # Where nothing is to be done, two comparisons cost less than a call of `to`.
    return t if t.dtype == x.dtype and t.device == x.device else t.to(x)


def joined(parts: list[Tensor]) -> Tensor:
    """Concatenate flat vectors, without a copy where there is one."""
    return parts[0] if len(parts) == 1 else torch.cat(parts)
