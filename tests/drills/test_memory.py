"""Ten thousand steps leave nothing behind."""

from __future__ import annotations

import gc
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from conftest import sinus_layer
from torch_wprox import FrobeniusProx, WassersteinProx

pytestmark = pytest.mark.nightly


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def live_tensors() -> int:
    gc.collect()
    return sum(issubclass(type(o), Tensor) for o in gc.get_objects())


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads /proc")
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

        def closure() -> Tensor:
            opt.zero_grad()
            loss = (layer(x) - y).square().mean()
            loss.backward()
            return loss

        opt.step(closure)

    for _ in range(2_000):  # allocator, caches and imports settle
        step()
    tensors, resident = live_tensors(), resident_bytes()
    for _ in range(8_000):
        step()
    assert live_tensors() == tensors
    # 8 000 leaked tensors, or references to them, would be more than a megabyte.
    assert resident_bytes() - resident < 2**20
