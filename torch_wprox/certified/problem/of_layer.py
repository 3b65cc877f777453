"""The particles of a layer, with what a step charges for moving them."""

from __future__ import annotations

import torch
from torch import Tensor

from torch_wprox.certified.problem.particle_problem import ParticleProblem
from torch_wprox.closure.ranks import ALONE, Ranks
from torch_wprox.layers.mean_field import MeanFieldLayer
from torch_wprox.layers.parameterizations import PARAMETERIZATIONS


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
    ranks: Ranks = ALONE,
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
        ranks: Who shares the sweeps over the particles.

    Raises:
        ValueError: The parameterisation is not homogeneous.
    """
    if not layer.form.is_homogeneous:
        able = [repr(name) for name, form in PARAMETERIZATIONS.items() if form.is_homogeneous]
        raise ValueError(
            "the global solver needs an output and a ground cost that scale along rays, got "
            f"parameterization={layer.parameterization!r}: take {' or '.join(able)}"
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
        ranks=ranks,
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
