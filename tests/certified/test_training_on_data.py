"""A network that Adam trained on the diabetes data gets a proved bound in bounded time."""

from __future__ import annotations

import time

import pytest
import torch
from sklearn.datasets import load_diabetes
from torch import Tensor

from torch_wprox import MeanFieldLayer, certify_training
from torch_wprox.certified.solver import Global

F64 = torch.float64


@pytest.mark.nightly
def test_network_trained_by_adam_on_diabetes_gets_a_proved_bound() -> None:
    data, target = load_diabetes(return_X_y=True, scaled=False)
    x = torch.from_numpy((data - data.mean(0)) / data.std(0))
    y = torch.from_numpy((target - target.mean()) / target.std()).unsqueeze(1)
    g = torch.Generator().manual_seed(0)
    layer = MeanFieldLayer(10, 30, reduction="sum", init_scale=0.1, generator=g, dtype=F64)
    adam = torch.optim.Adam(layer.parameters(), lr=1e-2, weight_decay=0.05)

    def closure() -> Tensor:
        adam.zero_grad()
        loss: Tensor = (layer(x) - y).square().mean()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    for _ in range(150):
        adam.step(closure)
    began = time.process_time()
    options = Global(max_iter=30)
    found = certify_training(layer, closure, weight_decay=0.05, proof_seconds=3.0, options=options)
    assert time.process_time() - began < 15.0
    assert found.certified
    # Loose, but more than what is known of every squared error: that it is at least 0.
    assert 0.01 < found.lower_bound <= found.objective
    assert found.estimate is not None
    assert found.lower_bound <= found.estimate <= found.objective
