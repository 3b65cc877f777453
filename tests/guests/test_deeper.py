"""Deeper models through `particle_groups`: frozen parts, a gamma per block, and they learn."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from conftest import closure_for
from torch_wprox import WassersteinProx, particle_groups

pytestmark = pytest.mark.slow  # in all: too long for `make quick`


def deep_mlp(widths: tuple[int, ...] = (3, 12, 10, 8, 2)) -> nn.Sequential:
    """An MLP with three hidden layers in float64."""
    layers: list[nn.Module] = []
    for a, b in itertools.pairwise(widths):
        layers += [nn.Linear(a, b), nn.ReLU()]
    return nn.Sequential(*layers[:-1]).double()


class Reader(nn.Module):
    """A small transformer: its feed-forward blocks are clouds, everything else is plain."""

    def __init__(self, tokens: int = 5, width: int = 8, hidden: int = 12, layers: int = 2) -> None:
        super().__init__()
        self.embed = nn.Embedding(tokens, width)
        block = nn.TransformerEncoderLayer(width, 2, hidden, dropout=0.0, batch_first=True)
        self.blocks = nn.TransformerEncoder(block, layers, enable_nested_tensor=False)
        self.head = nn.Linear(width, tokens)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(self.embed(x))[:, -1])


def step_once(
    model: nn.Module, opt: WassersteinProx, loss_of: Callable[[nn.Module], Tensor], steps: int = 1
) -> list[float]:
    closure = closure_for(opt, lambda: loss_of(model))
    losses = []
    for _ in range(steps):
        opt.step(closure)
        assert opt.report.objective <= opt.report.loss_before
        losses += [opt.report.loss_before, opt.report.loss_after]
    return losses


def regression(model: nn.Module) -> Tensor:
    x = torch.linspace(-1, 1, 30, dtype=torch.float64).view(10, 3)
    return (model(x) - torch.stack([x.sum(1).sin(), x.prod(1)], dim=1)).square().mean()


def last_is_first(model: nn.Module) -> Tensor:
    """A sequence task: name the first token at the last place."""
    x = torch.randint(0, 5, (40, 4), generator=torch.Generator().manual_seed(0))
    return nn.functional.cross_entropy(model(x), x[:, 0])


def test_three_hidden_layers_are_two_clouds_that_cover_every_parameter_once() -> None:
    model = deep_mlp()
    groups = particle_groups(model)
    assert [g["layout"] for g in groups] == ["pair", "pair"]
    seen = [p for g in groups for p in g["params"]]
    assert sorted(map(id, seen)) == sorted(map(id, model.parameters()))


def test_every_feed_forward_block_of_a_transformer_is_a_cloud_and_attention_is_plain() -> None:
    model = Reader(layers=2)
    groups = particle_groups(model)
    assert [g["layout"] for g in groups] == ["pair", "pair", "plain"]
    blocks = model.blocks.layers
    for group, block in zip(groups, blocks, strict=False):
        assert group["params"][0] is block.linear1.weight
    plain = {id(p) for p in groups[-1]["params"]}
    assert {id(p) for b in blocks for p in b.self_attn.parameters()} <= plain


def test_exchanging_neurons_of_any_cloud_leaves_a_deep_model_the_same_function() -> None:
    model, x = deep_mlp(), torch.randn(7, 3, dtype=torch.float64)
    before = model(x)
    for group in particle_groups(model):
        first, bias, second, _ = group["params"]
        sigma = torch.randperm(len(first))
        with torch.no_grad():
            first.copy_(first[sigma])
            bias.copy_(bias[sigma])
            second.copy_(second[:, sigma])
    torch.testing.assert_close(model(x), before, rtol=1e-12, atol=1e-12)


def test_parts_that_are_frozen_do_not_move_and_the_others_do() -> None:
    model = deep_mlp()
    model[0].requires_grad_(False)
    model[6].bias.requires_grad_(False)
    before = [p.clone() for p in model.parameters()]
    opt = WassersteinProx(particle_groups(model), gamma=1e-2, max_eval=20)
    step_once(model, opt, regression, steps=2)
    for p, old in zip(model.parameters(), before, strict=True):
        assert torch.equal(p, old) == (not p.requires_grad)


def test_a_block_with_gamma_zero_stays_and_a_smaller_gamma_moves_less() -> None:
    moved = []
    for gamma in (0.0, 1e-4, 1e-2):
        torch.manual_seed(0)
        model = deep_mlp()
        groups = particle_groups(model)
        groups[0]["gamma"], groups[1]["gamma"] = gamma, 1e-3
        before = [p.clone() for p in groups[0]["params"]]
        step_once(model, WassersteinProx(groups, tolerance_grad=1e-6), regression)
        pairs = zip(groups[0]["params"], before, strict=True)
        moved.append(sum((p - old).square().sum().item() for p, old in pairs))
    assert moved[0] == 0
    assert 0 < moved[1] < moved[2]


def test_distances_of_blocks_add_up_and_every_cloud_has_its_assignment() -> None:
    model = deep_mlp()
    groups = particle_groups(model)
    opt = WassersteinProx(groups, gamma=1e-2, max_eval=30)
    before = [p.clone() for p in model.parameters()]
    step_once(model, opt, regression)
    first, second = opt.report.assignment
    assert (len(first), len(second)) == (12, 8)
    squares = [
        (p - old).square().sum() / m
        for p, old, m in zip(
            model.parameters(), before, [12] * 3 + [1] + [8] * 3 + [1], strict=True
        )
    ]
    # Second weights are (k, m): they belong to the cloud of their columns; last biases are plain.
    assert opt.report.frobenius_sq == pytest.approx(torch.stack(squares).sum().item(), rel=1e-9)


@pytest.mark.parametrize(("make", "loss"), [(deep_mlp, regression), (Reader, last_is_first)])
def test_deep_models_learn(
    make: Callable[[], nn.Module], loss: Callable[[nn.Module], Tensor]
) -> None:
    model = make()
    groups = particle_groups(model)
    for group in groups:
        group["gamma"] = 100.0 if group["layout"] == "plain" else 10.0
    losses = step_once(model, WassersteinProx(groups, max_eval=40), loss, steps=5)
    assert losses[-1] < 0.5 * losses[0]
