"""How far from optimal: bounds for a proximal step and for training, whoever took or trained it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from torch_wprox.arguments import checked_number
from torch_wprox.certified.bound.proof import proved
from torch_wprox.certified.bound.relaxation import Bounded, held_against, never, relax
from torch_wprox.certified.bound.spread import Tell
from torch_wprox.certified.bound.training_bound import training_bound
from torch_wprox.certified.linear_pair import Network, as_layer, linear_pair
from torch_wprox.certified.problem.convexity import refuse_nonconvex
from torch_wprox.certified.problem.of_layer import exchange_labels, particle_problem
from torch_wprox.certified.problem.oracle import OutputOracle
from torch_wprox.certified.problem.particle_problem import Configuration, ParticleProblem
from torch_wprox.certified.problem.probing import probe, probe_within
from torch_wprox.certified.problem.quadratic_model import learn_quadratic
from torch_wprox.certified.solver import Global
from torch_wprox.closure.guards import checked_weight_decay
from torch_wprox.closure.runner import Closure, ClosureRunner
from torch_wprox.closure.watch import Callback, Watch, checked_callback, checked_seconds
from torch_wprox.distances.emd.exact import solve
from torch_wprox.layers.mean_field import MeanFieldLayer
from torch_wprox.particles.layouts import views_of_group
from torch_wprox.report import Certificate


def certify(
    layer: Network,
    closure: Closure,
    anchor: Tensor | Mapping[str, Tensor] | Network,
    gamma: float,
    *,
    distance: str = "emd",
    classes: str | Tensor | None = "sign",
    weight_decay: float = 0.0,
    proof_seconds: float = 10.0,
    options: Global | None = None,
    callback: Callback | None = None,
    seconds: float | None = None,
) -> Certificate:
    r"""Bound the proximal step from an anchor, and compare the layer's present parameters with it.

    .. math:: P(V) = F(V) + \frac{d(V, W)}{2\gamma} \;\ge\; R(z) + c - \mathrm{gap}

    with the Frank-Wolfe gap of the step relaxed to the space of measures. It does not matter who
    took the step: Adam, BFGS, the global solver.

    Args:
        layer: The layer, at V; or ``nn.Sequential(Linear, ReLU, Linear)``, or the two Linear
            layers, whose neurons are then the particles (w, b, alpha), beside an output bias.
        closure: Computes the loss through the layer, calls backward, returns the loss. It must
            depend on the layer's parameters through its output alone, in a convex way.
        anchor: W: the layer's ``particles`` (m, D) before the step, or its whole state dict (needed
            where an output bias moves too). For Linear layers: a copy of them before the step.
        gamma: Step size of the step.
        distance: "emd" or "frobenius".
        classes: As for :class:`~torch_wprox.WassersteinProx`.
        weight_decay: F gets (weight_decay/2)|V|^2.
        proof_seconds: Time for the proof of a bound that would be an estimate otherwise; 0: keep
            the estimate. See :class:`Global`.
        options: Tolerances of the bound; of ``tolerance_bound``, ``tolerance_proof``,
            ``max_iter``, ``exact_cells``.
        callback: Called at every round that tightens the bound with a
            :class:`~torch_wprox.Progress` (``objective`` is that of the relaxed step, NaN where it
            is not known); a true answer keeps the bound so far.
        seconds: Time budget of these rounds; the proof has its own, ``proof_seconds``.

    Returns:
        The certificate of P. Its bound holds if the loss is convex in the output. That is probed,
        where a step could go, and cannot be proved by probing.

    Raises:
        ValueError: The loss is not convex in the output, the parameters reach it another way, or
            the closure is not one function.

    Example:
        >>> layer = MeanFieldLayer(1, 8, parameterization="signed", dtype=torch.float64)
        >>> x = torch.linspace(-1, 1, 5, dtype=torch.float64)[:, None]
        >>> def closure():
        ...     loss = (layer(x) - (3 * x).sin()).square().mean()
        ...     loss.backward()
        ...     return loss
        >>> found = certify(layer, closure, layer.particles.detach().clone(), gamma=1.0)
        >>> found.certified, found.gap >= 0
        (True, True)
    """
    if not isinstance(layer, MeanFieldLayer):
        start = MeanFieldLayer.from_linear(*linear_pair(anchor))
        with as_layer(layer) as own:
            return certify(
                own,
                closure,
                start.state_dict(),
                gamma,
                distance=distance,
                classes=classes,
                weight_decay=weight_decay,
                proof_seconds=proof_seconds,
                callback=callback,
                seconds=seconds,
                options=options,
            )
    if isinstance(anchor, nn.Module | tuple):
        raise TypeError(
            "anchor must be the layer's particles (m, D) or its state dict before the step, got "
            f"{type(anchor).__name__}"
        )
    options = Global() if options is None else options
    if not gamma > 0:
        raise ValueError(f"gamma must be > 0, got {gamma!r}")
    if distance not in ("emd", "frobenius"):
        raise ValueError(f'distance must be "emd" or "frobenius", got {distance!r}')
    decay = checked_weight_decay(weight_decay)
    before = dict(anchor) if isinstance(anchor, Mapping) else {"particles": anchor}
    bias = layer.output_bias
    moves_bias = bias is not None and bias.requires_grad
    if moves_bias and "output_bias" not in before:
        raise ValueError(
            "anchor must be the layer's state dict (layer.state_dict() before the step) where the "
            "layer has an output bias that trains"
        )
    runner = ClosureRunner(closure, layer.parameters(), None)
    tell = _teller(runner, callback, seconds)
    with torch.no_grad():
        oracle = OutputOracle(layer, _trained(layer), runner, _free)
        V, W = (
            _cloud(layer, layer.particles),
            _cloud(layer, before["particles"].to(layer.particles)),
        )
        labels = _classes(layer, classes)
        problem = particle_problem(
            layer,
            oracle.features,
            W,
            gamma,
            labels=exchange_labels(layer, labels) if distance == "emd" else None,
            offset=before["output_bias"] if moves_bias else bias,
            offset_gamma=gamma if moves_bias else None,
            weight_decay=decay,
            offset_decay=decay,
        )
        estimated = _relaxed(problem, oracle, options, tell)
        bounded = _proved(problem, oracle, estimated, options, proof_seconds)
        value, _ = oracle(oracle.output)
        sigma = solve(V, W, labels) if distance == "emd" else torch.arange(len(V))
        objective = value + float((V - W[sigma]).square().sum()) / (2 * gamma * len(V))
        objective += 0.5 * decay * float(V.square().sum())
        if moves_bias and bias is not None:
            moved = bias.double() - before["output_bias"].to(bias).double()
            objective += float(moved.square().sum()) / (2 * gamma)
            objective += 0.5 * decay * float(bias.double().square().sum())
        offset = problem.offset if bias is None else bias.double()
        sigma = sigma.to(V.device)
        x = Configuration(V, offset, sigma)
        bound = held_against(bounded, problem, x, objective, oracle.precision)
        estimate = None
        if bounded is not estimated:
            estimate = held_against(estimated, problem, x, objective, oracle.precision).lower_bound
        oracle.require_repeatable()
    runner.finish()
    return Certificate(objective, bound.lower_bound, bound.certified, runner.runs, estimate)


def certify_training(
    layer: Network,
    closure: Closure,
    *,
    beta: float | None = None,
    weight_decay: float | None = None,
    proof_seconds: float = 10.0,
    options: Global | None = None,
    callback: Callback | None = None,
    seconds: float | None = None,
) -> Certificate:
    r"""Bound the global minimum of training, and compare the layer's present parameters with it.

    .. math:: F = R(z) + \beta \sum_i |w_i||a_i|, \qquad
        F \ge R(z') - \langle\lambda', z'\rangle \text{ if }
        \max_{|u|=1} |\lambda'^T \mathrm{relu}(Xu)| \le \beta

    with w_i the input weights (bias included) and a_i the whole output coefficient of neuron i,
    any 1/m included. The bound holds for networks of every width. An output bias that trains is
    free (no penalty with ``beta``): then :math:`\lambda'` sums to zero over the samples.

    Args:
        layer: The trained layer; or ``nn.Sequential(Linear, ReLU, Linear)``, or the two Linear
            layers. An output bias that does not require a gradient is held where it is.
        closure: Computes R, the loss WITHOUT the penalty, through the layer.
        beta: Weight of the path norm.
        weight_decay: Instead of ``beta``: F = R + (weight_decay/2)|parameters|^2, as the optimizers
            of torch and of this package mean it, an output bias that trains included. Where output
            weights train, the rest is the path norm with beta = weight_decay (times m for the
            mean); where they are frozen, it is the proximal step from anchor 0.
        proof_seconds: Time for the proof of a bound that would be an estimate otherwise; 0: keep
            the estimate. Any time gives a proof, more of it a tighter one.
        options: Tolerances of the bound; of ``tolerance_bound``, ``tolerance_proof``,
            ``max_iter``, ``exact_cells``.
        callback: Called at every round that tightens the bound, with a
            :class:`~torch_wprox.Progress`; a true answer keeps the bound so far.
        seconds: Time budget of these rounds; the proof has its own, ``proof_seconds``.

    Returns:
        The certificate of F.

    Raises:
        TypeError: ``layer`` is another module.
        ValueError: Neither or both of ``beta`` and ``weight_decay`` are given, the loss is not
            convex in the output, has no minimum over an output bias that trains, or the parameters
            reach it by another way.

    Example:
        >>> layer = MeanFieldLayer(1, 8, dtype=torch.float64)
        >>> x = torch.linspace(-1, 1, 5, dtype=torch.float64)[:, None]
        >>> def closure():
        ...     loss = (layer(x) - (3 * x).sin()).square().mean()
        ...     loss.backward()
        ...     return loss
        >>> found = certify_training(layer, closure, beta=0.1)
        >>> found.certified, round(found.lower_bound, 4), found.gap > 0
        (True, 0.2996, True)

    Source: Bach (2017), Pilanci & Ergen (2020).
    """
    if not isinstance(layer, MeanFieldLayer):
        with as_layer(layer) as own:
            return certify_training(
                own,
                closure,
                beta=beta,
                weight_decay=weight_decay,
                proof_seconds=proof_seconds,
                options=options,
                callback=callback,
                seconds=seconds,
            )
    options = Global() if options is None else options
    penalty = beta if weight_decay is None else weight_decay
    if (beta is None) == (weight_decay is None) or penalty is None or not penalty > 0:
        raise ValueError(
            f"give one of beta > 0 and weight_decay > 0, got beta={beta!r}, "
            f"weight_decay={weight_decay!r}"
        )
    bias = layer.output_bias
    moves_bias = bias is not None and bias.requires_grad
    checked_number("proof_seconds", proof_seconds, ">= 0", lambda t: t >= 0)
    if weight_decay is not None and not layer.form.is_homogeneous:
        raise ValueError(
            f"weight_decay on parameterization={layer.parameterization!r} is not a path norm: "
            "give beta"
        )
    runner = ClosureRunner(closure, layer.parameters(), None)
    tell = _teller(runner, callback, seconds)
    with torch.no_grad():
        oracle = OutputOracle(layer, _trained(layer), runner, _free)
        value, _ = oracle(oracle.output)
        V = _cloud(layer, layer.particles)
        tolerances: dict[str, Any] = {
            "tolerance": options.tolerance_bound,
            "max_iter": options.max_iter,
            "precision": oracle.precision,
            "exact_cells": options.exact_cells,
        }
        scale = 1.0 / layer.width if layer.reduction == "mean" else 1.0
        if weight_decay is not None:
            objective = value + 0.5 * weight_decay * float(V.square().sum())
            if moves_bias and bias is not None:
                objective += 0.5 * weight_decay * float(bias.double().square().sum())
        else:
            w, a = (t.double() for t in layer.neurons())
            objective = value + penalty * scale * float((w.norm(dim=1) * a.norm(dim=1)).sum())
        if weight_decay is not None and not layer.form.trains_output:
            # (weight_decay/2)|V|^2 is the price of a step from 0 with 1/(m gamma) = weight_decay.
            gamma = 1.0 / (layer.width * weight_decay)
            problem: ParticleProblem = particle_problem(
                layer,
                oracle.features,
                torch.zeros_like(V),
                gamma,
                offset=None if moves_bias else bias,
                offset_gamma=1.0 / weight_decay if moves_bias else None,
            )
            estimated = _relaxed(problem, oracle, options, tell)
            bounded = _proved(problem, oracle, estimated, options, proof_seconds)
            lower_bound, exact = bounded.lower_bound, bounded.certified
            estimate = estimated.lower_bound if bounded is not estimated else None
        else:
            # (omega/2)(|w|^2 + |alpha|^2) >= omega |w||alpha| = (omega/scale) |w||a|.
            weight = penalty if weight_decay is None else weight_decay / scale
            offset = oracle.output.new_zeros(layer.out_features) if bias is None else bias.double()
            found = training_bound(
                oracle.features,
                offset,
                oracle,
                weight,
                oracle.output,
                proof_seconds=proof_seconds,
                tolerance_proof=options.tolerance_proof,
                offset_stiffness=(weight_decay or 0.0) if moves_bias else None,
                neurons=layer.neurons()[0].double(),
                tell=tell,
                **tolerances,
            )
            lower_bound, exact, estimate = found.lower_bound, found.is_exact, found.estimate
            highest = min(objective, found.value)
            refuse_nonconvex(lower_bound, highest, value, oracle.precision)
            # A network of at most this objective has the path norm (objective - R)/weight.
            room = max(objective - min(0.0, oracle.watch.lowest()), 0.0) / weight
            model = learn_quadratic(oracle, oracle.output, oracle.precision)
            visited = [oracle.output, offset.expand_as(oracle.output)]
            reach = room * oracle.features.norm(dim=1)
            if moves_bias:  # without a price it may go anywhere
                reach += math.sqrt(2.0 * room * weight / weight_decay) if weight_decay else math.inf
            exact = probe_within(oracle, model, visited, reach) and exact
        oracle.require_repeatable()
    runner.finish()
    return Certificate(objective, lower_bound, exact, runner.runs, estimate)


def _relaxed(
    problem: ParticleProblem, oracle: OutputOracle, options: Global, tell: Tell = never
) -> Bounded:
    """Bound the step, and look for what would make the bound false."""
    for may_be_quadratic in (True, False):
        bounded = relax(
            problem,
            oracle,
            tolerance=options.tolerance_bound,
            max_iter=options.max_iter,
            precision=oracle.precision,
            exact_cells=options.exact_cells,
            may_be_quadratic=may_be_quadratic,
            tell=tell,
        )
        visited = [bounded.relaxed.output, bounded.relaxed.bound_output, oracle.output]
        if probe(oracle, problem, bounded.model, visited, bounded.lower_bound):
            break
    return bounded


def _proved(
    problem: ParticleProblem,
    oracle: OutputOracle,
    bounded: Bounded,
    options: Global,
    seconds: float,
) -> Bounded:
    """Prove an estimate."""
    checked_number("proof_seconds", seconds, ">= 0", lambda t: t >= 0)
    return proved(
        problem,
        oracle,
        bounded,
        seconds=seconds,
        tolerance=options.tolerance_proof,
        precision=oracle.precision,
        exact_cells=options.exact_cells,
    )


def _teller(runner: ClosureRunner, callback: Callback | None, seconds: float | None) -> Tell:
    """Return what tells the callback of a round, and says whether to end."""
    watch = Watch(checked_callback(callback), checked_seconds(seconds))

    def tell(value: float, bound: float) -> bool:
        return watch.note(runner.runs, value, value, math.nan, bound)

    return tell


def _free() -> None:
    """Evaluations of a certificate are not limited."""


def _trained(layer: MeanFieldLayer) -> list[Tensor]:
    return [p for p in layer.parameters() if p.requires_grad]


def _cloud(layer: MeanFieldLayer, particles: Tensor) -> Tensor:
    """Return the particles (m, D) in the coordinates of the ground cost, in float64."""
    return layer.form.to_cloud(particles.detach(), layer.in_features + layer.has_bias).double()


def _classes(layer: MeanFieldLayer, classes: str | Tensor | None) -> Tensor | None:
    views = views_of_group([layer.particles], "auto", classes)
    return views[0].classes
