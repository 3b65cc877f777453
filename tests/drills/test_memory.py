"""Ten thousand steps leave nothing behind."""

from __future__ import annotations

import ctypes
import gc
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from conftest import closure_for, sinus_layer
from torch_wprox import FrobeniusProx, WassersteinProx

FIELDS = "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost"


class _MallInfo(ctypes.Structure):
    _fields_ = [(name, ctypes.c_size_t) for name in FIELDS.split()]


def _mallinfo() -> Callable[[], _MallInfo] | None:
    if not sys.platform.startswith("linux"):
        return None
    function = getattr(ctypes.CDLL(None), "mallinfo2", None)  # glibc 2.33
    if function is not None:
        function.restype = _MallInfo
    return function


MALLINFO = _mallinfo()
pytestmark = [
    pytest.mark.nightly,
    pytest.mark.skipif(MALLINFO is None, reason="counts the bytes in use as glibc does"),
]


@dataclass(frozen=True)
class Held:
    """What the process holds: not its resident pages, which come and go with the machine's load.

    Attributes:
        tensors: Live tensors.
        blocks: Blocks of Python's own allocator (objects up to 512 bytes).
        heap: Bytes in use in the C heap: storages of tensors, everything of C++.
    """

    tensors: int
    blocks: int
    heap: int

    @classmethod
    def now(cls) -> Held:
        gc.collect()
        assert MALLINFO is not None
        info = MALLINFO()
        tensors = sum(issubclass(type(o), Tensor) for o in gc.get_objects())
        return cls(tensors, sys.getallocatedblocks(), info.uordblks + info.hblkhd)


def assert_nothing_grew(before: Held, after: Held, steps: int) -> None:
    assert after.tensors == before.tensors
    # A reference, a number or a storage (64 bytes at least) kept by every eighth step is too much.
    assert after.blocks - before.blocks < steps / 8
    assert after.heap - before.heap < 64 * steps / 8


@pytest.mark.parametrize("leak", [lambda: torch.empty(1), lambda: bytearray(8), lambda: object()])
def test_one_thing_kept_in_every_fourth_step_is_noticed(leak: Callable[[], Any]) -> None:
    kept = []
    before = Held.now()
    for _ in range(2_000):
        kept.append(leak())
    with pytest.raises(AssertionError):
        assert_nothing_grew(before, Held.now(), 8_000)


@pytest.mark.parametrize("minibatches", [False, True], ids=["one F", "another F every step"])
@pytest.mark.parametrize(
    ("optimizer", "solver"),
    [
        (WassersteinProx, "gd"),
        (WassersteinProx, "bfgs"),
        (WassersteinProx, "lbfgs"),
        (FrobeniusProx, "auto"),
    ],
)
def test_ten_thousand_steps_do_not_grow(optimizer: type, solver: str, minibatches: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    layer = sinus_layer(m=8)
    opt: Any = optimizer(layer.parameters(), gamma=0.1, solver=solver, max_eval=4)
    x = torch.linspace(-0.5, 0.5, 6, dtype=torch.float64).unsqueeze(1)

    def step() -> None:
        noise = torch.randn(6, 1, generator=generator, dtype=torch.float64)
        y = torch.sin(10 * x) + minibatches * noise

        closure = closure_for(opt, lambda: (layer(x) - y).square().mean())
        opt.step(closure)

    for _ in range(2_000):  # allocator, caches and imports settle
        step()
    before = Held.now()
    for _ in range(8_000):
        step()
    assert_nothing_grew(before, Held.now(), 8_000)
