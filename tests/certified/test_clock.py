"""A time budget holds in every part of the global step."""

from __future__ import annotations

import time

import pytest
import torch
from torch import Tensor

from torch_wprox import MeanFieldLayer, WassersteinProx

F64 = torch.float64


@pytest.mark.slow
@pytest.mark.parametrize(
    ("d", "n", "m", "form"),
    [(10, 300, 60, "signed"), (2, 60, 30, "joint"), (1, 600, 60, "signed")],
)
def test_step_ends_soon_after_its_time(d: int, n: int, m: int, form: str) -> None:
    g = torch.Generator().manual_seed(0)
    x, y = (torch.randn(n, k, generator=g, dtype=F64) for k in (d, 1))
    layer = MeanFieldLayer(
        d,
        m,
        parameterization=form,  # type: ignore[arg-type]
        reduction="sum",
        init_scale=1e-2,
        generator=g,
        dtype=F64,
    )
    opt = WassersteinProx(layer.parameters(), 1.0, solver="global", max_eval=2000, seconds=0.3)

    def closure() -> Tensor:
        opt.zero_grad()
        loss: Tensor = (layer(x) - y).square().mean()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    began = time.process_time()
    first = float(opt.step(closure))
    # Processor time is at most the time that passes; one answer of all particles may be under way.
    assert time.process_time() - began < 0.3 + 2.0
    assert opt.report is not None
    assert opt.report.objective <= first
    # However early it ends, the bound is not far below the least loss of all, 0.
    assert opt.report.lower_bound is not None
    assert -1e-9 <= opt.report.lower_bound <= opt.report.objective
