"""From a mixture to particles: what a linear program without a solution leaves to do."""

from __future__ import annotations

import pytest
import torch

from cases.global_cases import F64, random_case
from torch_wprox import WassersteinProx
from torch_wprox.certified.problem.quadratic_model import QuadraticRisk
from torch_wprox.certified.search.rounding import Table, integer_completion, vertex_weights
from torch_wprox.closure.block_hessian import BlockHessian


def table_of(outputs: list[list[float]], prices: list[list[float]]) -> Table:
    """One output, one sample: atoms x particles."""
    zero = torch.zeros(1, 1, dtype=F64)
    model = QuadraticRisk(zero, 0.0, zero, BlockHessian(torch.ones(1, 1, 1)), False)
    columns = torch.tensor(outputs, dtype=F64).unsqueeze(2)
    offset = torch.zeros(1, dtype=F64)
    return Table([], columns, torch.tensor(prices, dtype=F64), offset, model, (1, 1))


def test_a_target_out_of_reach_has_no_vertex() -> None:
    table = table_of([[0.0, 0.0], [1.0, 1.0]], [[0.0, 0.0], [1.0, 1.0]])
    tilt = torch.zeros(2, 2, dtype=F64)
    assert vertex_weights(table, torch.tensor([3.0], dtype=F64), tilt) is None
    found = vertex_weights(table, torch.tensor([1.0], dtype=F64), tilt)
    assert found is not None
    assert int(integer_completion(table, found).sum()) == 1  # one particle moves, the other stays


@pytest.mark.parametrize("price", [float("nan"), float("inf")])
def test_prices_that_are_not_numbers_have_no_vertex(price: float) -> None:
    table = table_of([[0.0], [1.0]], [[0.0], [price]])
    tilt = torch.zeros(2, 1, dtype=F64)
    assert vertex_weights(table, torch.tensor([0.5], dtype=F64), tilt) is None


@pytest.mark.parametrize("form", ["signed", "joint", "clouds", "radial"])
@pytest.mark.parametrize("loss", ["squared", "logistic"])
def test_one_particle_is_rounded_in_every_form(form: str, loss: str) -> None:
    # One price has no spread, and a mixture of one particle is seldom an LP vertex.
    for seed in range(3):
        case = random_case(seed, m=1, n=4, d=1 + seed, form=form, loss=loss, scale=0.5)
        opt = WassersteinProx(case.layer.parameters(), case.gamma, solver="global")
        opt.step(case.closure)
        assert opt.report.objective <= opt.report.loss_before
