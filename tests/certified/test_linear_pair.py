"""Networks of two Linear layers have the certificates of the MeanFieldLayer that they are."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from torch_wprox import MeanFieldLayer, certify, certify_training
from torch_wprox.closure.runner import Closure

F64 = torch.float64


def network(width: int = 6, *, bias: bool = True) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(1, width), nn.ReLU(), nn.Linear(width, 1, bias=bias)).double()


def data() -> tuple[Tensor, Tensor]:
    x = torch.linspace(-1, 1, 5, dtype=F64)[:, None]
    return x, (3 * x).sin()


def closure_of(model: nn.Module) -> Closure:
    x, y = data()

    def closure() -> Tensor:
        model.zero_grad()
        loss = (model(x) - y).square().mean()
        loss.backward()
        return loss

    return closure


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("as_pair", [True, False])
def test_training_certificate_is_that_of_the_layer(bias: bool, as_pair: bool) -> None:
    model = network(bias=bias)
    layer = MeanFieldLayer.from_linear(model[0], model[2])
    expected = certify_training(layer, closure_of(layer), weight_decay=0.05)
    model.zero_grad()
    kept = copy.deepcopy(model.state_dict())
    found = certify_training(
        (model[0], model[2]) if as_pair else model, closure_of(model), weight_decay=0.05
    )
    assert found == expected
    assert found.certified
    # The network is as it was: weights, gradients, hooks.
    assert all(torch.equal(t, kept[name]) for name, t in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())
    assert not model[2]._forward_hooks
    assert not model[0]._forward_pre_hooks


def test_step_certificate_is_that_of_the_layer() -> None:
    model = network(bias=False)
    before = copy.deepcopy(model)
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(0.9)
    layer = MeanFieldLayer.from_linear(model[0], model[2])
    W = MeanFieldLayer.from_linear(before[0], before[2]).particles.detach()
    expected = certify(layer, closure_of(layer), W, 0.1)
    assert certify(model, closure_of(model), before, 0.1) == expected


def test_another_activation_is_refused() -> None:
    first, second = nn.Linear(1, 4).double(), nn.Linear(4, 1).double()
    model = nn.Sequential(first, nn.Tanh(), second)
    with pytest.raises(ValueError, match="must see the ReLU of the first"):
        certify_training((first, second), closure_of(model), beta=0.1)
    with pytest.raises(TypeError, match="layer must be a MeanFieldLayer"):
        certify_training(model, closure_of(model), beta=0.1)


def test_a_penalty_on_the_linear_weights_inside_the_closure_is_refused() -> None:
    model = network()
    x, y = data()

    def closure() -> Tensor:
        model.zero_grad()
        penalty = sum(p.square().sum() for p in model.parameters())
        loss = (model(x) - y).square().mean() + 0.1 * penalty
        loss.backward()
        return loss

    with pytest.raises(ValueError, match="another way"):
        certify_training(model, closure, beta=0.1)
