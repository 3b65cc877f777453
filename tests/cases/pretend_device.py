"""A device that is not there: tensors that claim to live on it, with the rules of a GPU.

A tensor of the pretended device wraps one of the CPU, where its operations run. As on a GPU, an
operation of tensors of two devices is refused, NumPy cannot see into such a tensor, and a generator
of the CPU draws no numbers there. So a machine without a GPU can tell whether code would run on
one. The device is called "meta", the one that torch knows everywhere.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._mode_utils import no_dispatch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

DEVICE = torch.device("meta")

aten = torch.ops.aten
# A GPU takes tensors of the CPU here: copies, and indices.
_MAY_MIX = {aten._to_copy, aten.copy_, aten.index, aten.index_put_, aten.index_put}
# The program waits for the device: it reads a number, or a size that depends on numbers.
_WAITS = {
    *(aten._local_scalar_dense, aten.is_nonzero, aten.equal, aten.nonzero, aten.masked_select),
    *(aten.unique_dim, aten._unique2, aten.unique_consecutive),
}


class Pretended(Tensor):
    """A tensor of the pretended device; ``raw`` is the one of the CPU inside."""

    raw: Tensor

    @staticmethod
    def __new__(cls, raw: Tensor) -> Pretended:
        made: Pretended = Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls,
            raw.size(),
            strides=raw.stride(),
            storage_offset=raw.storage_offset(),
            dtype=raw.dtype,
            layout=raw.layout,
            device=DEVICE,
        )
        made.raw = raw
        return made

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(
        cls, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        return _run(func, args, kwargs or {})

    def tolist(self) -> Any:
        return self.cpu().tolist()

    def new_tensor(self, data: Any, **options: Any) -> Tensor:
        options = {"dtype": self.dtype, "device": self.device, **options}
        return torch.tensor(data, **options)

    def numpy(self, **options: Any) -> Any:
        raise TypeError("can't convert a tensor of another device to numpy: copy it to the CPU")

    def __array__(self, *args: Any, **options: Any) -> Any:
        return self.numpy()

    def __repr__(self, **options: Any) -> str:  # type: ignore[override]
        return f"Pretended({self.raw!r})"

    def __deepcopy__(self, memo: dict[int, Any]) -> Tensor:
        copy = self.detach().clone().requires_grad_(self.requires_grad)
        return torch.nn.Parameter(copy) if isinstance(self, torch.nn.Parameter) else copy


_waits: Counter[str] | None = None


def _run(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    tensors = [t for t in tree_flatten((args, kwargs))[0] if isinstance(t, Tensor)]
    there = [t for t in tensors if isinstance(t, Pretended)]
    packet = func.overloadpacket
    for t in tensors:
        assert isinstance(t, Pretended) or t.device.type == "cpu", f"{func}: made without its data"
    if there and packet not in _MAY_MIX:
        for t in tensors:
            is_number = t.ndim == 0 and torch.Tag.pointwise in func.tags
            if not isinstance(t, Pretended) and not is_number:
                raise RuntimeError(
                    f"Expected all tensors to be on the same device, but {func} got one of the CPU "
                    f"of shape {tuple(t.shape)}"
                )
    device = kwargs.get("device")
    is_there = bool(there) if device is None else torch.device(device) == DEVICE
    if packet in (aten.copy_, aten.index_put_):
        is_there = isinstance(args[0], Pretended)
    if is_there and kwargs.get("generator") is not None:
        raise RuntimeError("Expected a generator of the device, but got one of the CPU")
    if there and (packet in _WAITS or not is_there):
        _note(packet)
    own = {id(t.raw): t for t in there}

    def inside(t: Any) -> Any:
        return t.raw if isinstance(t, Pretended) else t

    def outside(t: Any) -> Any:
        if not is_there or not isinstance(t, Tensor):
            return t
        return own[id(t)] if id(t) in own else Pretended(t)

    if device is not None:
        kwargs = {**kwargs, "device": torch.device("cpu")}
    found = func(*tree_map(inside, args), **tree_map(inside, kwargs))
    if there and torch.Tag.inplace_view in func.tags:
        with no_dispatch():
            return func(*args, **kwargs)  # the shape of the tensor outside changes, too
    if packet is aten._to_copy and there and not is_there:
        found = found.clone()  # another memory
    return tree_map(outside, found)


def _note(packet: Any) -> None:
    if _waits is None:
        return
    frame = sys._getframe(1)
    while frame.f_back is not None and "torch_wprox" not in frame.f_code.co_filename:
        frame = frame.f_back
    where = frame.f_code.co_filename.partition("torch_wprox/")[2]
    _waits[f"{where}:{frame.f_lineno} {packet.__name__}"] += 1


class _Made(TorchDispatchMode):
    """Tensors made on the device, and moved to it, are pretended."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        return _run(func, args, kwargs or {})


class _FromNumbers(TorchFunctionMode):
    """Numbers and lists become tensors here, without an operation: let them be moved instead."""

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        options = dict(kwargs or {})
        if func in (torch.tensor, torch.as_tensor) and options.get("device") is not None:
            device = options.pop("device")
            return func(*args, **options).to(device)
        if func in (Tensor.__getitem__, Tensor.__setitem__):
            args = (args[0], tree_map(_as_index, args[1], is_leaf=_is_list), *args[2:])
        return func(*args, **options)


def _is_list(index: Any) -> bool:
    return isinstance(index, list)


def _as_index(index: Any) -> Any:
    return torch.tensor(index) if _is_list(index) else index


@contextmanager
def pretended_device() -> Iterator[Counter[str]]:
    """Let :data:`DEVICE` be one with tensors; yield how often each line waited for it."""
    global _waits
    before, _waits = _waits, Counter()
    try:
        with _FromNumbers(), _Made():
            yield _waits
    finally:
        _waits = before
