"""Shared data and fixtures: the note's sinus problem in float64."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from torch_wprox import MeanFieldLayer

torch.set_num_threads(1)
DEVICE = [torch.device("cpu")]
"""Where the contract tests put their tensors: ``--device``."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--device", default="cpu", help="where the contract tests put their tensors (make gpu)"
    )


def pytest_configure(config: pytest.Config) -> None:
    DEVICE[0] = torch.device(config.getoption("--device"))


def label(value: Any) -> str:
    """The name of a parameter of a test: its repr without the address that every process has its
    own of, as workers that share the tests have to call each by the same name."""
    return str(getattr(value, "__name__", re.sub(r" at 0x[0-9a-f]+", "", repr(value))))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Refuse names that differ from process to process."""
    named = [item.nodeid for item in items if " at 0x" in item.nodeid]
    if named:
        raise pytest.UsageError(f"an address in the name of a test: give ids=label, {named[0]}")


def sinus_data() -> tuple[Tensor, Tensor]:
    """x (5, 1) and y (5, 1) of the note's section 3."""
    x = torch.linspace(-0.5, 0.5, 5, dtype=torch.float64).unsqueeze(1)
    return x, torch.sin(10 * x - torch.pi / 2) + 0.2 * x - 0.5


def sinus_layer(m: int = 50, seed: int = 0, scale: float = 1e-2) -> MeanFieldLayer:
    """The note's network: m frozen signs, first half +, sum over neurons."""
    layer = MeanFieldLayer(1, m, parameterization="signed", reduction="sum", dtype=torch.float64)
    W = scale * np.random.default_rng(seed).standard_normal((m, 2))
    with torch.no_grad():
        layer.particles.copy_(torch.from_numpy(W))
    return layer


def closure_for(
    optimizer: torch.optim.Optimizer, loss_of: Callable[[], Tensor]
) -> Callable[[], Tensor]:
    """The closure of a loss, as torch.optim.LBFGS wants it."""

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = loss_of()
        loss.backward()
        return loss

    return closure


def closure_of(
    model: Callable[[Tensor], Tensor], optimizer: torch.optim.Optimizer, x: Tensor, y: Tensor
) -> Callable[[], Tensor]:
    """The closure of a mean squared error."""
    return closure_for(optimizer, lambda: (model(x) - y).square().mean())


@pytest.fixture
def sinus() -> tuple[MeanFieldLayer, Tensor, Tensor]:
    return sinus_layer(), *sinus_data()


@pytest.fixture(autouse=True)
def _seeded() -> None:
    """A test that draws from the global generator draws the same in every run and order."""
    torch.manual_seed(0)
