"""The default number of evaluations follows the loss: a whole data set, or minibatches."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from functools import partial

import pytest
import torch
from torch import Tensor, nn

from conftest import closure_for
from torch_wprox import StepReport, WassersteinProx
from torch_wprox.optim.effort import BRIEF, FULL


def network(dtype: torch.dtype = torch.float32) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 20), nn.ReLU(), nn.Linear(20, 3)).to(dtype)


def data(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(1)
    x = torch.randn(400, 6, generator=g, dtype=dtype)
    return x, (x[:, 0].sin() + x[:, 1] * x[:, 2] > 0).long()


def loss_on(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return nn.functional.cross_entropy(model(x), y)


def steps(batches: Iterator[Tensor] | list[Tensor], **options: object) -> list[StepReport]:
    """The line of the front page, unchanged, in a loop over batches of rows."""
    model, (x, y) = network(), data()
    opt = WassersteinProx(model.parameters(), gamma=1.0, **options)
    reports = []
    for rows in batches:
        batch = x[rows], y[rows]
        opt.step(closure_for(opt, partial(loss_on, model, *batch)))
        assert opt.report is not None
        reports.append(opt.report)
    return reports


def test_a_loop_over_minibatches_spends_few_evaluations_on_each_but_the_first() -> None:
    reports = steps(list(torch.randperm(400).split(50)))
    assert [r.is_same_loss for r in reports] == [None] + [False] * 7
    assert [r.max_eval for r in reports] == [FULL] + [BRIEF] * 7
    assert all(r.evaluations <= BRIEF for r in reports[1:])
    assert "another loss" in str(reports[1])


def test_all_data_in_any_order_get_the_full_number() -> None:
    # Sums in another order differ in their last digits only.
    reports = steps([torch.randperm(400) for _ in range(6)])
    assert [r.is_same_loss for r in reports] == [None] + [True] * 5
    assert all(r.max_eval == FULL for r in reports)
    assert "another loss" not in str(reports[1])


def test_a_number_that_was_given_is_kept() -> None:
    reports = steps(list(torch.randperm(400).split(50)), max_eval=7)
    assert [r.max_eval for r in reports] == [7] * 8


@pytest.mark.parametrize("distance", ["emd", "sliced"])
@pytest.mark.parametrize("solver", ["auto", "adam", "gd"])
def test_the_loss_is_known_again_whatever_a_solver_remembers(distance: str, solver: str) -> None:
    rows = torch.arange(100)
    reports = steps([rows, rows, rows + 100], distance=distance, solver=solver)
    assert [r.is_same_loss for r in reports] == [None, True, False]


def test_a_checkpoint_keeps_what_the_last_loss_was() -> None:
    def loss_of(model: nn.Module, opt: WassersteinProx) -> Callable[[], Tensor]:
        return closure_for(opt, lambda: loss_on(model, x, y))

    x, y = data()
    model = network()
    opt = WassersteinProx(model.parameters(), solver="adam")
    opt.step(loss_of(model, opt))
    other = copy.deepcopy(model)
    resumed = WassersteinProx(other.parameters(), solver="adam")
    resumed.load_state_dict(opt.state_dict())
    resumed.step(loss_of(other, resumed))
    assert resumed.report is not None
    assert resumed.report.is_same_loss is True
