"""The closure as a function of the layer's output: z -> R(z), grad R(z).

During one evaluation of the closure the layer answers z instead of its own output, and backward
leaves the gradient on z. Nothing about the loss is rewritten, so any loss works that depends on the
parameters through the output alone; whether it does is checked, not believed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from torch_wprox.layers import MeanFieldLayer
from torch_wprox.objective import Block
from torch_wprox.solvers.convexity import ConvexityWatch
from torch_wprox.solvers.particle_problem import Configuration, ParticleProblem
from torch_wprox.views import View

# Relative difference of two losses that should be the same number.
_SAME = 1e3


class OutputOracle:
    """R and its gradient at any output z of one layer.

    Args:
        layer: The layer whose output z is.
        parameters: Parameters that the step moves; ``run`` clears their gradients.
        run: One evaluation of the closure; returns the loss.
        count: Called before every evaluation; may raise when none is left.

    Attributes:
        features: X (n, d), the layer's input with a column of ones where neurons have a bias.
        output: The layer's own output at the start, (n, k).
        precision: Relative rounding error of the numbers that the closure returns.

    Raises:
        ValueError: The closure calls the layer not once, or the parameters reach the loss by
            another way than the layer's output.
    """

    def __init__(
        self,
        layer: MeanFieldLayer,
        parameters: Sequence[Tensor],
        run: Callable[[], Tensor],
        count: Callable[[], None],
    ) -> None:
        self._layer, self._run, self._count = layer, run, count
        count()
        with layer.observing() as seen:
            loss = float(run())
        if len(seen.calls) != 1:
            raise ValueError(
                f"the closure calls the layer {len(seen.calls)} times, the global solver needs one "
                "call per evaluation: pass the whole batch at once"
            )
        data, output = seen.calls[0]
        self._shape, self._dtype, self._device = output.shape, output.dtype, output.device
        flat = data.reshape(-1, layer.in_features).to(torch.float64)
        ones = flat.new_ones(len(flat), 1)
        self.features = torch.cat([flat, ones], 1) if layer.has_bias else flat
        self.output = output.reshape(-1, layer.out_features).to(torch.float64)
        self.precision = torch.finfo(output.dtype).eps
        self._watch = ConvexityWatch(self.precision)
        self._check(loss, parameters)

    def __call__(self, z: Tensor) -> tuple[float, Tensor]:
        """Return R(z) and grad R(z) (n, k) at z (n, k), by one evaluation of the closure.

        Raises:
            ValueError: R lies below one of its tangents, or has no gradient in z.
        """
        value, grad, seen = self._evaluated(z)
        self._watch.add(seen, value, grad)
        return value, grad

    def _evaluated(self, z: Tensor) -> tuple[float, Tensor, Tensor]:
        """Return R, grad R and the point that the closure saw, which its dtype has rounded."""
        self._count()
        leaf = z.detach().to(self._device, self._dtype).reshape(self._shape).clone()
        leaf.requires_grad_(True)
        with self._layer.substituting(leaf):
            loss = float(self._run())
        if leaf.grad is None:
            raise ValueError(
                "the loss has no gradient in the layer's output: call backward in the closure, and "
                "do not detach the output"
            )
        grad = leaf.grad.to(torch.float64).reshape(z.shape)
        return loss, grad, leaf.detach().to(torch.float64).reshape(z.shape)

    def _check(self, loss: float, watched: Sequence[Tensor]) -> None:
        """Substitute the layer's own output, also with moved parameters: nothing may change."""
        parameters = list(self._layer.parameters())
        before = [p.detach().clone() for p in parameters]
        try:
            same, _, _ = self._evaluated(self.output)
            reached = any(p.grad is not None and bool(p.grad.count_nonzero() > 0) for p in watched)
            with torch.no_grad():
                for p in parameters:
                    p.mul_(1.5).add_(0.5)
            moved, _, _ = self._evaluated(self.output)
        finally:
            with torch.no_grad():
                for p, saved in zip(parameters, before, strict=True):
                    p.copy_(saved)
        tolerance = _SAME * self.precision * max(abs(loss), abs(same), self.precision)
        if reached or abs(moved - same) > tolerance:
            raise ValueError(
                "the layer's parameters reach the loss by another way than the layer's output "
                "(weight decay inside the closure?): give weight_decay to the optimizer instead, "
                'or use solver="bfgs" or "lbfgs"'
            )
        if abs(same - loss) > tolerance:
            raise ValueError(
                f"the loss at the layer's own output is {same:.8g}, not {loss:.8g}: the closure "
                "is not a function of the output; the global solver cannot be used here"
            )


@dataclass(frozen=True)
class OutputProblem:
    """A proximal step as the global solver needs it.

    Attributes:
        oracle: R and its gradient.
        particles: The particles and their prices.
        assemble: Configuration -> flat vector (N,) of the objective.
    """

    oracle: OutputOracle
    particles: ParticleProblem
    assemble: Callable[[Configuration], Tensor]


def output_problem(
    views: Sequence[View],
    blocks: Sequence[Block],
    anchor: Tensor,
    layers: dict[int, MeanFieldLayer],
    run: Callable[[], Tensor],
    count: Callable[[], None],
) -> OutputProblem:
    """Return the step of an optimizer as a problem in the layer's output.

    Args:
        views: What the blocks read and write.
        blocks: Blocks of the prox objective.
        anchor: W, (N,).
        layers: Live layers by the id of their parameters.
        run: One evaluation of the closure.
        count: Takes one evaluation from the budget.

    Raises:
        ValueError: The parameters are not those of one MeanFieldLayer, its parameterisation is
            "sphere", or the distance is neither "emd" nor Frobenius.
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
    oracle = OutputOracle(layer, parameters, run, count)
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
    )

    def assemble(x: Configuration) -> Tensor:
        flat = anchor.clone()
        cloud.of(flat).copy_(x.points)
        if bias_block is not None:
            bias_block.of(flat).copy_(x.offset.reshape(1, -1))
        return flat

    return OutputProblem(oracle, particles, assemble)


def particle_problem(
    layer: MeanFieldLayer,
    features: Tensor,
    anchor: Tensor,
    gamma: float,
    *,
    labels: Tensor | None = None,
    offset: Tensor | None = None,
    offset_gamma: float | None = None,
    weight_decay: float = 0.0,
    offset_decay: float = 0.0,
) -> ParticleProblem:
    """Return the particles and prices of one step of a layer, in float64.

    Args:
        layer: The network.
        features: X (n, d), a column of ones included where neurons have a bias.
        anchor: W (m, D), in the coordinates where the ground cost is Euclidean.
        gamma: Step size.
        labels: Exchange beyond equal coefficients, see :class:`ParticleProblem`.
        offset: Output bias at the anchor (k,), None without one.
        offset_gamma: Its step size; None: it is frozen.
        weight_decay: (weight_decay/2)|V|^2 in F, on the particles.
        offset_decay: The same, on the output bias.

    Raises:
        ValueError: The parameterisation is "sphere".
    """
    if layer.parameterization == "sphere":
        raise ValueError(
            'the global solver knows the Euclidean and the cone cost, not that of "sphere": take '
            'parameterization="joint", "signed" or "clouds"'
        )
    m, k = layer.width, layer.out_features
    scale = 1.0 / m if layer.reduction == "mean" else 1.0
    coefficients = None
    if not layer.form.trains_output:
        coefficients = scale * layer.neurons()[1].detach().to(torch.float64)
    problem = ParticleProblem(
        features=features,
        anchors=anchor.detach().to(features),
        stiffness=1.0 / (m * gamma),
        coefficients=coefficients,
        scale=scale,
        outputs=k,
        offset=features.new_zeros(k) if offset is None else offset.detach().to(features),
        offset_stiffness=None if offset_gamma is None else 1.0 / offset_gamma,
        labels=labels,
    )
    return problem.with_decay(weight_decay, offset_decay)


def exchange_labels(layer: MeanFieldLayer, classes: Tensor | None) -> Tensor | None:
    """Return the labels (m,) if exchange inside them can change the output, else None."""
    if layer.form.trains_output:
        return None
    coefficients = layer.neurons()[1].detach()
    labels = classes
    if labels is None:
        labels = torch.zeros(layer.width, dtype=torch.long, device=coefficients.device)
    labels = labels.to(coefficients.device)
    for label in torch.unique(labels):
        rows = coefficients[labels == label]
        if not bool((rows == rows[0]).all()):
            return labels
    return None
