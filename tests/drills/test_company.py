"""Several optimizers at once: on parts of one model, and in threads."""

from __future__ import annotations

import threading
import warnings
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from conftest import closure_of, sinus_data, sinus_layer
from torch_wprox import FrobeniusProx, WassersteinProx

pytestmark = pytest.mark.nightly


class Sum(nn.Module):
    """Two layers side by side."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = sinus_layer(m=10, seed=0), sinus_layer(m=10, seed=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.first(x) + self.second(x)


@pytest.mark.parametrize(
    "second",
    [
        lambda p: FrobeniusProx(p, gamma=0.3, solver="lbfgs"),
        lambda p: torch.optim.Adam(p, lr=1e-3),
        lambda p: torch.optim.LBFGS(p, lr=0.1),
    ],
    ids=["FrobeniusProx", "Adam", "LBFGS"],
)
def test_two_optimizers_on_disjoint_parts_move_their_own_part_only(second: Any) -> None:
    model = Sum()
    x, y = sinus_data()
    opts = [WassersteinProx(model.first.parameters(), gamma=0.3), second(model.second.parameters())]
    parts = [model.first.particles, model.second.particles]
    closure = closure_of(model, torch.optim.SGD(model.parameters()), x, y)  # clears all gradients
    start = [p.detach().clone() for p in parts]
    losses = []
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(20):
            for own, opt in enumerate(opts):
                model.zero_grad()
                before = [p.detach().clone() for p in parts]
                opt.step(closure)
                assert torch.equal(parts[1 - own], before[1 - own])
            losses.append(opts[0].report.loss_after)
    assert losses[-1] < losses[0]
    assert not any(torch.equal(p, q) for p, q in zip(parts, start, strict=True))


def test_gradients_that_another_optimizer_left_warn_once_with_the_remedy() -> None:
    model = Sum()
    x, y = sinus_data()
    ours = WassersteinProx(model.first.parameters(), gamma=0.3)
    other = torch.optim.Adam(model.second.parameters())
    closure_of(model, other, x, y)()
    other.step()
    with pytest.warns(UserWarning, match="another optimizer.*zero_grad"):
        ours.step(closure_of(model, ours, x, y))


@pytest.mark.parametrize("solver", ["gd", "bfgs", "lbfgs"])
def test_threads_with_models_of_their_own_take_the_steps_of_one_thread(solver: str) -> None:
    workers = 8
    together = threading.Barrier(workers)

    def train(seed: int, barrier: threading.Barrier | None) -> Tensor:
        if barrier is not None:
            barrier.wait()
        for _ in range(5):  # layers come and go while other threads look for theirs
            layer = sinus_layer(m=10, seed=seed)
            opt = WassersteinProx(layer.parameters(), gamma=0.3, solver=solver, max_eval=15)
            for _ in range(4):
                opt.step(closure_of(layer, opt, *sinus_data()))
        return layer.particles.detach().clone()

    alone = [train(seed, None) for seed in range(workers)]
    with ThreadPoolExecutor(workers) as pool:
        ends = list(pool.map(lambda seed: train(seed, together), range(workers)))
    for a, b in zip(alone, ends, strict=True):
        assert torch.equal(a, b)
