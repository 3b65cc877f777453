"""A report measures its distances when they are read, and then says the truth."""

from __future__ import annotations

import copy
import pickle
from dataclasses import fields, replace
from unittest import mock

import pytest
import torch
from torch import Tensor

from torch_wprox import FrobeniusProx, MeanFieldLayer, StepReport, WassersteinProx
from torch_wprox.distances.emd.assignment import Assignment
from torch_wprox.distances.emd.exact import solve
from torch_wprox.optim.move import Move
from torch_wprox.report import MEASURED, UnreadReport, numbers_of

M = 400  # classes of 200 particles: held and refined while the solver runs


class Stepped:
    """A layer before and after one long step."""

    def __init__(self, width: int = M, seed: int = 0) -> None:
        g = torch.Generator().manual_seed(seed)
        self.layer = MeanFieldLayer(
            1, width, parameterization="signed", generator=g, dtype=torch.float64
        )
        self.x = torch.rand(20, 1, generator=g, dtype=torch.float64) - 0.5
        self.gamma = 100.0
        self.before = self.layer.particles.detach().clone()
        self.opt = WassersteinProx(self.layer.parameters(), self.gamma, max_eval=60)
        self.opt.step(self.closure)

    def closure(self) -> Tensor:
        self.layer.zero_grad()
        loss = (self.layer(self.x) - (9 * self.x).sin()).square().mean()
        loss.backward()
        return loss

    @property
    def report(self) -> StepReport:
        assert self.opt.report is not None
        return self.opt.report


@pytest.fixture(scope="module")
def stepped() -> Stepped:
    return Stepped()


def test_the_report_of_a_step_that_held_its_assignment_is_exact(stepped: Stepped) -> None:
    V, W, m = stepped.layer.particles.detach(), stepped.before, M
    sigma = solve(V, W, stepped.layer.signs)
    optimum = ((V - W[sigma]).square().sum() / m).item()
    report = stepped.report
    assert report.transport.refined > 0  # else this would show nothing
    assert report.wasserstein_sq == pytest.approx(optimum, rel=1e-12)
    assert report.distance_sq == report.wasserstein_sq
    assert report.frobenius_sq == pytest.approx(((V - W).square().sum() / m).item(), rel=1e-12)
    loss = stepped.closure().item()
    assert report.loss_after == pytest.approx(loss, rel=1e-14)
    assert report.objective == pytest.approx(loss + optimum / (2 * stepped.gamma), rel=1e-12)
    grad = stepped.layer.particles.grad + (V - W[report.assignment]) / (m * stepped.gamma)
    assert report.residual == pytest.approx(grad.norm().item(), rel=1e-9)
    moved = (report.assignment != torch.arange(m)).double().mean().item()
    assert report.permuted_fraction == pytest.approx(moved)


def test_nothing_is_settled_until_a_distance_is_read() -> None:
    with mock.patch.object(Assignment, "settle", side_effect=AssertionError("settled")):
        stepped = Stepped()
        report = stepped.report
        assert isinstance(report, UnreadReport)
        assert 50 < report.evaluations <= 60
        assert report.loss_after < report.loss_before
        assert report.status == "max_eval"
        with pytest.raises(AssertionError, match="settled"):
            _ = report.objective
    assert report.objective < report.loss_before  # a measurement that failed is made again
    assert type(report) is StepReport
    assert not any(isinstance(v, Move) for v in vars(report).values())
    assert set(vars(report)) == {f.name for f in fields(StepReport)}


def plain_report() -> StepReport:
    w = torch.nn.Parameter(torch.ones(3))
    opt = FrobeniusProx([w], 1.0)

    def closure() -> Tensor:
        loss = w.square().sum()
        loss.backward()
        return loss

    opt.step(closure)
    assert opt.report is not None
    return opt.report


@pytest.mark.parametrize("first", MEASURED)
def test_the_numbers_do_not_depend_on_which_is_read_first(first: str) -> None:
    expected, report = numbers_of(Stepped(12).report), Stepped(12).report
    getattr(report, first)
    assert numbers_of(report) == expected


def test_an_unread_report_is_copied_pickled_compared_and_printed_as_a_read_one() -> None:
    read = Stepped(12).report
    numbers = numbers_of(read)
    for report in (
        copy.deepcopy(Stepped(12).report),
        pickle.loads(pickle.dumps(Stepped(12).report)),
        replace(Stepped(12).report, evaluations=read.evaluations),
        copy.deepcopy(Stepped(12).opt).report,
    ):
        assert type(report) is StepReport
        assert numbers_of(report) == numbers
    assert str(Stepped(12).report) == str(read)
    assert repr(Stepped(12).report) == repr(read)
    one, other = plain_report(), plain_report()
    assert one == other
    assert one != replace(other, evaluations=0)


def test_the_parameters_may_move_on_before_the_report_is_read() -> None:
    expected, stepped = numbers_of(Stepped(12).report), Stepped(12)
    report = stepped.report
    stepped.opt.step(stepped.closure)
    with torch.no_grad():
        stepped.layer.particles.zero_()
    assert numbers_of(report) == expected
