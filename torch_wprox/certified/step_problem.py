"""A step of an optimizer as a problem in the output of its layer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from torch_wprox.certified.problem.of_layer import exchange_labels, particle_problem
from torch_wprox.certified.problem.oracle import OutputOracle
from torch_wprox.certified.problem.particle_problem import Configuration, ParticleProblem, Risk
from torch_wprox.closure.ranks import ALONE, Ranks
from torch_wprox.layers.mean_field import MeanFieldLayer
from torch_wprox.objective import Block, LossAndGrad
from torch_wprox.particles.views import View


@dataclass(frozen=True)
class OutputProblem:
    """A proximal step as the global solver needs it.

    Attributes:
        oracle: R and its gradient.
        particles: The particles and their prices.
        anchor: W, (N,).
        cloud: Block of the particles.
        bias: Block of the output bias, None if it does not move.
    """

    oracle: OutputOracle
    particles: ParticleProblem
    anchor: Tensor
    cloud: Block
    bias: Block | None

    def assemble(self, x: Configuration) -> Tensor:
        """Return the flat vector (N,) of a configuration."""
        flat = self.anchor.clone()
        self.cloud.of(flat).copy_(x.points)
        if self.bias is not None:
            self.bias.of(flat).copy_(x.offset.reshape(1, -1))
        return flat

    def configuration(self, v: Tensor) -> Configuration:
        """Return the configuration of a flat vector (N,), paid from the assignment in force."""
        p = self.particles
        sigma = self.cloud.distance.assignment
        return Configuration(
            self.cloud.of(v).to(p.anchors),
            p.offset if self.bias is None else self.bias.of(v).reshape(-1).to(p.offset),
            p.start().sigma if sigma is None else sigma.to(p.anchors.device),
        )

    def through(self, risk: Risk) -> LossAndGrad:
        """Return F(v) = R(z(v)) and its gradient on flat vectors v (N,), for a modelled R."""

        def function(v: Tensor) -> tuple[Tensor, Tensor]:
            p = self.particles
            x = self.configuration(v)
            value, lam = risk(p.output(x.points, x.offset))
            grad = torch.zeros_like(v)
            self.cloud.of(grad).copy_(p.pull(x.points, lam))
            if self.bias is not None:
                self.bias.of(grad).copy_(lam.sum(0, keepdim=True))
            return p.anchors.new_tensor(value), grad

        return function


def output_problem(
    views: Sequence[View],
    blocks: Sequence[Block],
    anchor: Tensor,
    layers: dict[int, MeanFieldLayer],
    run: Callable[[], Tensor],
    count: Callable[[], None],
    ranks: Ranks = ALONE,
) -> OutputProblem:
    """Return the step of an optimizer as a problem in the layer's output.

    Args:
        views: What the blocks read and write.
        blocks: Blocks of the prox objective.
        anchor: W, (N,).
        layers: Live layers by the id of their parameters.
        run: One evaluation of the closure.
        count: Takes one evaluation from the budget.
        ranks: Those that take the step together.

    Raises:
        ValueError: The parameters are not those of one MeanFieldLayer, its parameterisation is
            not homogeneous, or the distance is neither "emd" nor Frobenius.
    """
    owners = {id(p): layers.get(id(p)) for view in views for p in view.parameters}
    found = {id(layer): layer for layer in owners.values() if layer is not None}
    if len(found) != 1 or any(layer is None for layer in owners.values()):
        raise ValueError(
            'solver="global" needs the parameters of exactly one MeanFieldLayer and no others, got '
            f"those of {len(found)} and {sum(v is None for v in owners.values())} other tensors: "
            "freeze the rest, or give it to an optimizer of its own"
        )
    (layer,) = found.values()
    by_parameter = {id(v.parameters[0]): b for v, b in zip(views, blocks, strict=True)}
    cloud = by_parameter.get(id(layer.particles))
    if cloud is None:
        raise ValueError('solver="global" needs the layer\'s particles among the parameters')
    if not cloud.distance.is_quadratic:
        raise ValueError(
            'solver="global" bounds the exact Wasserstein and the Frobenius step: take '
            'distance="emd"'
        )
    parameters = [p for view in views for p in view.parameters]
    oracle = OutputOracle(layer, parameters, run, count, ranks)
    bias = layer.output_bias
    bias_block = None if bias is None else by_parameter.get(id(bias))
    exchanges = cloud.distance.assignment is not None
    particles = particle_problem(
        layer,
        oracle.features,
        cloud.of(anchor),
        cloud.gamma,
        labels=exchange_labels(layer, cloud.classes) if exchanges else None,
        offset=None
        if bias is None
        else bias.detach()
        if bias_block is None
        else bias_block.of(anchor).reshape(-1),
        offset_gamma=None if bias_block is None else bias_block.gamma,
        weight_decay=cloud.weight_decay,
        offset_decay=0.0 if bias_block is None else bias_block.weight_decay,
        ranks=ranks,
    )

    return OutputProblem(oracle, particles, anchor, cloud, bias_block)
