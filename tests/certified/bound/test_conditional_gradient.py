"""Conditional gradient where best responses are searched: how often it looks thoroughly."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from torch_wprox import MeanFieldLayer, WassersteinProx
from torch_wprox.certified.responses.searched import Directions

F64 = torch.float64


@pytest.mark.slow
def test_exchange_among_coefficients_takes_few_thorough_searches(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # A search is for one of three coefficients or more at every anchor: a thorough one for each of
    # them in every round is 978 here.
    g = torch.Generator().manual_seed(10)
    x = torch.randn(4, 3, generator=g, dtype=F64)
    labels = torch.tensor([0, 1, 2, 0])
    thorough = 0
    respond = Directions.respond

    def counted(self: Directions, lam: Tensor, a: Tensor | None, W: Tensor) -> object:
        nonlocal thorough
        thorough += self.is_thorough
        return respond(self, lam, a, W)

    monkeypatch.setattr(Directions, "respond", counted)

    def objective_and_bound(solver: str) -> tuple[float, float | None]:
        layer = MeanFieldLayer(
            3,
            6,
            3,
            parameterization="signed",
            reduction="sum",
            init_scale=0.3,
            generator=torch.Generator().manual_seed(10),
            dtype=F64,
        )
        opt = WassersteinProx(layer.parameters(), 7.0, solver=solver, classes=None, max_eval=400)

        def closure() -> Tensor:
            opt.zero_grad()
            loss = F.cross_entropy(layer(x), labels)
            loss.backward()  # type: ignore[no-untyped-call]
            return loss

        opt.step(closure)
        assert opt.report is not None
        return opt.report.objective, opt.report.lower_bound

    objective, bound = objective_and_bound("global")
    assert thorough <= 6 * 12
    assert bound is not None
    assert 0.95 * objective <= bound <= objective
    assert objective <= objective_and_bound("lbfgs")[0]
