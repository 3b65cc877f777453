"""What a new distance has to say, and what it gets for nothing."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

from conftest import closure_for
from torch_wprox import WassersteinProx
from torch_wprox.closure.ranks import Agree, alone
from torch_wprox.distances import AnchoredDistance, Distance, DistanceValue
from torch_wprox.report import TransportCounts

WEIGHT = 3.0


class AnchoredWeighted(AnchoredDistance):
    def __init__(self, W: Tensor) -> None:
        self.W = W

    def evaluate(self, V: Tensor) -> DistanceValue:
        difference = V - self.W
        return DistanceValue(
            WEIGHT * difference.square().sum() / len(V), 2 * WEIGHT * difference / len(V)
        )


class Weighted(Distance):
    def anchored(self, W: Tensor, classes: Tensor | None, agree: Agree = alone) -> AnchoredDistance:
        return AnchoredWeighted(W)


class AnchoredDuck:
    """All the names of an anchored distance, and no base class."""

    is_quadratic = False
    is_proved = False
    assignment = None
    counts = TransportCounts()

    def __init__(self, W: Tensor) -> None:
        self.evaluate = AnchoredWeighted(W).evaluate
        self.settle = self.evaluate


class Duck:
    name = "duck"

    def anchored(self, W: Tensor, classes: Tensor | None, agree: Agree = alone) -> AnchoredDuck:
        return AnchoredDuck(W)

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        del state


@pytest.mark.parametrize("distance", [Weighted(), Duck()])
def test_a_distance_with_one_method_and_one_without_a_base_class_solve_the_prox(
    distance: Any,
) -> None:
    # argmin |v|^2/2 + 3 |v - w|^2/(2 gamma) = 3 w/(3 + gamma)
    w = torch.nn.Parameter(torch.ones(2, 2, dtype=torch.float64))
    opt = WassersteinProx([w], gamma=0.5, distance=distance)

    closure = closure_for(opt, lambda: w.square().sum() / (2 * len(w)))
    opt.step(closure)
    torch.testing.assert_close(w.detach(), torch.full_like(w, 3 / 3.5), rtol=1e-6, atol=0.0)
    assert opt.report is not None
    assert opt.report.distance_sq == pytest.approx(3 * opt.report.frobenius_sq)
    assert opt.report.transport == TransportCounts()
    state = copy.deepcopy(opt.state_dict())
    opt.load_state_dict(state)
    assert state["prox"]["distance"] == distance.name


def test_an_anchored_distance_without_evaluate_cannot_be_made() -> None:
    with pytest.raises(TypeError, match="evaluate"):
        type("Empty", (AnchoredDistance,), {})()
    with pytest.raises(TypeError, match="anchored"):
        type("Empty", (Distance,), {})()


def test_a_distance_is_called_as_its_class() -> None:
    assert Weighted().name == "weighted"
    assert Weighted().state_dict() == {}
