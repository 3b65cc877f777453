"""The user's closure as one function: the same random numbers every time, one loss on all ranks."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from torch_wprox.closure.guards import BackwardWatch
from torch_wprox.closure.ranks import ALONE, Agree, Ranks, alone

# Averaged gradients are equal to the bit; their norms to the order of summation.
_SAME_NORM = 1e-3

Closure = Callable[[], Any]

CLOSURE_HELP = """\
    def closure():
        optimizer.zero_grad()
        loss = loss_fn(model(x), y)
        loss.backward()
        return loss
    optimizer.step(closure)"""


class ClosureRunner:
    """Evaluates a closure several times as one and the same function.

    Dropout and other torch randomness are replayed: every run starts from the generator state of
    the first one, and :meth:`finish` leaves the state that one single run leaves. With a process
    group the mean loss over its ranks is returned, so that all ranks take the same decisions.

    Attributes:
        runs: How often the closure ran.
        first_loss: What the first run returned, detached: the rank's own loss, not the mean.
        first_mean: The mean of these over the ranks.
        objection: Key and text of a warning, if the closure does not leave the gradients that
            backward() made; None if it does.
        agree: Makes a tensor the same on all ranks of the group: that of its first rank.

    Args:
        closure: Clears gradients (so do we), computes the loss, calls backward, returns it.
        parameters: The parameters whose gradients are cleared before every run.
        group: Process group of the ranks that step together; None for one process.
    """

    def __init__(
        self, closure: Closure, parameters: Iterable[Tensor], group: dist.ProcessGroup | None
    ) -> None:
        self._closure = closure
        self._parameters = list(parameters)
        self._group = group
        self._world = 1 if group is None else dist.get_world_size(group)
        # Collectives run where the parameters live: the group moves their gradients already, so its
        # backend (gloo, NCCL) takes tensors of that device.
        self._device = self._parameters[0].device if self._parameters else torch.device("cpu")
        self.agree: Agree = alone if self._world == 1 else self._that_of_first_rank
        self._devices = sorted({p.device.index for p in self._parameters if p.is_cuda})
        kinds = ("cpu", *({"cuda"} if self._devices else ()))
        self._autocast = [
            (kind, torch.get_autocast_dtype(kind))
            for kind in kinds
            if torch.is_autocast_enabled(kind)
        ]
        self._random_start = self._random_state()
        self._random_end: list[Tensor] | None = None
        self._is_random = False
        self._kinds = [(p.shape, p.dtype) for p in self._parameters]
        self.objection: tuple[str, str] | None = None
        self.runs = 0
        self.first_loss: Any = None
        self.first_mean: Tensor = torch.tensor(float("nan"))
        self.last_loss: Tensor = torch.tensor(float("nan"))

    def __call__(self) -> Tensor:
        """Run the closure once.

        Returns:
            The loss, 0-d and detached, averaged over the ranks; gradients are on the parameters.

        Raises:
            RuntimeError: The closure returns None or something that is not one number.
        """
        if self._is_random:
            self._set_random_state(self._random_start)
        for p in self._parameters:
            p.grad = None
        returned = self._watched() if self.runs == 0 else self._returned()
        self.runs += 1
        loss = self._as_scalar(returned)
        if [(p.shape, p.dtype) for p in self._parameters] != self._kinds:
            raise RuntimeError(
                "the closure gave a parameter another shape or dtype: only its values may change "
                "in a step. Resize or convert the model between two steps, and make the optimizer "
                "again"
            )
        if self.runs == 1:
            self.first_loss = returned.detach() if isinstance(returned, Tensor) else returned
            self._random_end = self._random_state()
            self._is_random = any(
                not torch.equal(a, b)
                for a, b in zip(self._random_start, self._random_end, strict=True)
            )
            self._require_shared_gradients()
        self.last_loss = self._averaged(loss)
        if self.runs == 1:
            self.first_mean = self.last_loss
        return self.last_loss

    def _watched(self) -> Any:
        """Run the closure for the first time, and see what it does to the gradients."""
        with BackwardWatch(self._parameters) as watch:
            returned = self._returned()
        # DistributedDataParallel itself writes to gradients after their hooks.
        if not (dist.is_available() and dist.is_initialized()):
            self.objection = watch.objection()
        return returned

    def _returned(self) -> Any:
        with torch.enable_grad():
            return self._closure() if not self._autocast else self._in_autocast()

    def _in_autocast(self) -> Any:
        """Run the closure under the caller's autocast."""
        with ExitStack() as contexts:
            for kind, dtype in self._autocast:
                contexts.enter_context(torch.autocast(kind, dtype))
                torch.clear_autocast_cache()  # it holds weights cast before they moved
            return self._closure()

    @contextmanager
    def arithmetic(self) -> Iterator[None]:
        """Compute without the caller's autocast, which the closure alone gets back.

        It would run the dot products of a line search in bfloat16.
        """
        with ExitStack() as contexts:
            for kind, _ in self._autocast:
                contexts.enter_context(torch.autocast(kind, enabled=False))
            yield

    def finish(self) -> None:
        """Leave the generators where one single evaluation leaves them."""
        if self._is_random and self._random_end is not None:
            self._set_random_state(self._random_end)

    @property
    def ranks(self) -> Ranks:
        """The ranks that step together."""
        return ALONE if self._world == 1 else Ranks(self._group, self._device)

    def _that_of_first_rank(self, tensor: Tensor) -> Tensor:
        # A copy is sent: the tensor may be part of a state that each rank keeps for itself. Where
        # nothing changes the very tensor is returned, so that callers can skip their work.
        shared = tensor.to(self._device, copy=True)
        dist.broadcast(shared, group=self._group, group_src=0)
        shared = shared.to(tensor.device)
        return tensor if torch.equal(shared, tensor) else shared

    def _as_scalar(self, returned: Any) -> Tensor:
        if returned is None:
            raise RuntimeError(
                f"closure returned None: it must return the loss, as in\n{CLOSURE_HELP}"
            )
        if isinstance(returned, Tensor):
            if returned.numel() != 1:
                raise RuntimeError(
                    f"closure must return one number, got a tensor of shape "
                    f"{tuple(returned.shape)}: reduce the loss (.mean() or .sum()) before returning"
                )
            if returned.is_complex():
                raise RuntimeError(
                    f"closure must return a real loss, got {returned.dtype}: take its .real part "
                    "or its .abs(), and call backward() on that"
                )
            return returned.detach().reshape(())
        with suppress(TypeError, ValueError):
            return torch.tensor(float(returned), dtype=torch.float64)
        raise RuntimeError(
            f"closure must return the loss as a tensor or a float, got {type(returned).__name__}"
        )

    def _averaged(self, loss: Tensor) -> Tensor:
        if self._world == 1:
            return loss
        total = loss.to(self._device, torch.float64, copy=True)
        dist.all_reduce(total, group=self._group)
        return total / self._world

    def _require_shared_gradients(self) -> None:
        """Refuse ranks that step together on gradients of their own: all ranks raise, or none."""
        if self._world == 1:
            return
        grads = [p.grad for p in self._parameters if p.grad is not None and not p.grad.is_sparse]
        norms = [torch.linalg.vector_norm(g).to(self._device, torch.float64) for g in grads]
        norm = torch.stack(norms).norm().item() if norms else 0.0  # one synchronisation
        norm = norm if math.isfinite(norm) else math.inf  # maxima of NaN are not defined
        extremes = torch.tensor([norm, -norm], dtype=torch.float64, device=self._device)
        dist.all_reduce(extremes, op=dist.ReduceOp.MAX, group=self._group)
        largest, smallest = extremes[0].item(), -extremes[1].item()
        if largest != smallest and largest - smallest > _SAME_NORM * largest:
            raise RuntimeError(
                f"the gradients differ between the ranks (norms from {smallest:.6g} to "
                f"{largest:.6g}): wrap the model in DistributedDataParallel, which averages them, "
                "or pass process_group=None if every rank trains a model of its own"
            )

    def _random_state(self) -> list[Tensor]:
        return [torch.get_rng_state(), *(torch.cuda.get_rng_state(i) for i in self._devices)]

    def _set_random_state(self, states: list[Tensor]) -> None:
        torch.set_rng_state(states[0])
        for index, state in zip(self._devices, states[1:], strict=True):
            torch.cuda.set_rng_state(state, index)
