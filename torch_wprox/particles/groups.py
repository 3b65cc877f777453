"""Parameter groups of a whole model: every cloud that can be recognised, and the rest."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from torch_wprox.closure.guards import callers_level
from torch_wprox.layers.mean_field import MeanFieldLayer

# Activations that act on every neuron alone and alike: exchanging neurons commutes with them.
# (PReLU does when it has one slope; softmax, GLU and normalisations do not.)
_ELEMENTWISE = (
    *(nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.RReLU, nn.ELU, nn.SELU, nn.CELU, nn.GELU, nn.SiLU),
    *(nn.Mish, nn.Softplus, nn.Softsign, nn.Tanh, nn.Tanhshrink, nn.Sigmoid, nn.LogSigmoid),
    *(nn.Hardtanh, nn.Hardsigmoid, nn.Hardswish, nn.Hardshrink, nn.Softshrink, nn.Threshold),
    nn.Identity,
)
_ELEMENTWISE_FUNCTIONS = (
    *(F.relu, F.relu6, F.leaky_relu, F.elu, F.selu, F.celu, F.gelu, F.silu, F.mish, F.softplus),
    *(F.tanh, F.sigmoid, F.hardtanh, F.hardsigmoid, F.hardswish, F.logsigmoid, F.softsign),
    *(torch.relu, torch.tanh, torch.sigmoid, torch.erf, torch.sin, torch.cos),
)

# What may stand beside two layers and does nothing to neurons: containers, dropout, losses.
_NEUTRAL = (
    *(nn.Dropout, nn.AlphaDropout, nn.Flatten, nn.modules.loss._Loss),
    *(nn.Sequential, nn.ModuleList, nn.ModuleDict),
)


def particle_groups(
    module: nn.Module, pairs: Sequence[tuple[str, str]] | None = None
) -> list[dict[str, Any]]:
    """Parameter groups in which every group is one cloud of neurons, and one group the rest.

    Clouds are every `MeanFieldLayer`; every (Linear, elementwise activation, optional Dropout,
    Linear) among consecutive children of an ``nn.Sequential``, taken greedily from the front, no
    Linear in two clouds; and linear1/linear2 of ``nn.TransformerEncoderLayer`` and
    ``nn.TransformerDecoderLayer``. A model that is two Linear layers and nothing else is one cloud,
    whatever its ``forward`` calls them, as its bare ``parameters()`` are. Weights that are used in
    two places are never in a cloud, nor is the table of an ``nn.Embedding``. A model of several
    Linear layers in which no cloud is found gets a warning that names ``pairs``.

    Args:
        module: The model.
        pairs: Names of two submodules each, ``[("fc1", "fc2")]``, for what cannot be seen from
            outside: hidden neurons of fc1 that go through an elementwise activation to fc2, and
            nowhere else. They come before what is found. An empty list says that there are none.

    Returns:
        Dicts ``{"params": [...], "layout": "layer" | "pair" | "plain"}`` that cover every parameter
        once, usable with any torch optimizer; the plain group is last, and left out if empty.

    Raises:
        TypeError: If ``module`` is no module.
        ValueError: If a pair does not name two Linear layers that fit and are free.

    Example:
        >>> model = nn.Sequential(nn.Linear(2, 8), nn.ReLU(), nn.Linear(8, 8), nn.Linear(8, 1))
        >>> [(g["layout"], len(g["params"])) for g in particle_groups(model)]
        [('pair', 4), ('plain', 2)]
    """
    if not isinstance(module, nn.Module):
        raise TypeError(f"module must be a torch.nn.Module, got {type(module).__name__}")
    taken: set[int] = set()
    uses = Counter(id(p) for _, p in module.named_parameters(remove_duplicate=False))
    groups = []
    for names in _checked_pairs(pairs):
        first, second = _named_pair(module, names)
        if _parameter_ids(first, second) & taken:
            raise ValueError(f"pairs={names!r}: one of the layers is in another pair already")
        if any(uses[i] > 1 for i in _parameter_ids(first, second)):
            raise ValueError(
                f"pairs={names!r}: weights that are used in several places cannot be a cloud"
            )
        groups.append(_pair_group(first, second, taken))
    for child in module.modules():
        if isinstance(child, MeanFieldLayer):
            params = [p for p in child.parameters(recurse=False) if id(p) not in taken]
            if params:
                taken.update(map(id, params))
                groups.append({"params": params, "layout": "layer"})
        for first, second in _candidates(child):
            ids = _parameter_ids(first, second)
            if not ids & taken and all(uses[i] == 1 for i in ids) and first.weight.requires_grad:
                groups.append(_pair_group(first, second, taken))
    if not groups and (whole := _only_two_layers(module, uses)) is not None:
        groups.append(_pair_group(*whole, taken))
    if not groups and pairs is None:
        _warn_of_no_cloud(module, uses)
    rest = [p for p in module.parameters() if id(p) not in taken]
    if rest:
        groups.append({"params": rest, "layout": "plain"})
    return groups


def _candidates(module: nn.Module) -> Iterator[tuple[nn.Linear, nn.Linear]]:
    """Pairs of layers with only an elementwise map in between, from the front."""
    triples: list[tuple[object, object, object]] = []
    if isinstance(module, nn.TransformerEncoderLayer | nn.TransformerDecoderLayer):
        triples = [(module.linear1, module.activation, module.linear2)]
    elif isinstance(module, nn.Sequential) and type(module).forward is nn.Sequential.forward:
        children = [*module, None]
        for i in range(len(children) - 3):
            skip = isinstance(children[i + 2], nn.Dropout | nn.AlphaDropout)
            triples.append((children[i], children[i + 1], children[i + 2 + skip]))
    for first, activation, second in triples:
        pair = _as_pair(first, second)
        if pair is not None and _is_elementwise(activation):
            yield pair


def _is_elementwise(activation: object) -> bool:
    if isinstance(activation, nn.PReLU):
        return activation.num_parameters == 1
    return isinstance(activation, _ELEMENTWISE) or activation in _ELEMENTWISE_FUNCTIONS


def _is_linear(module: object) -> bool:
    """A Linear that computes x W^T + b with parameters of its own (not parametrised, not lazy)."""
    return (
        isinstance(module, nn.Linear)
        and type(module).forward is nn.Linear.forward
        and type(module._parameters.get("weight")) is nn.Parameter
        and "bias" in module._parameters
    )


def _as_pair(first: object, second: object) -> tuple[nn.Linear, nn.Linear] | None:
    """The two layers if they can be one cloud."""
    if first is second or not (_is_linear(first) and _is_linear(second)):
        return None
    assert isinstance(first, nn.Linear)
    assert isinstance(second, nn.Linear)
    a, b = first.weight, second.weight
    fits = a.shape[0] == b.shape[1] and a.device == b.device and a.dtype == b.dtype
    return (first, second) if fits else None


def _only_two_layers(module: nn.Module, uses: Counter[int]) -> tuple[nn.Linear, nn.Linear] | None:
    """The two Linear layers that are the whole model, but for activations, dropout and losses."""
    leaves = [m for m in module.modules() if not list(m.children())]
    linears = [m for m in leaves if isinstance(m, nn.Linear)]
    others = [m for m in leaves if not isinstance(m, nn.Linear)]
    if len(linears) != 2 or not all(_is_neutral(m) for m in others):
        return None
    pair = _as_pair(*linears)
    ids = _parameter_ids(module)
    if pair is None or _parameter_ids(*pair) != ids or any(uses[i] > 1 for i in ids):
        return None
    # A Sequential shows what lies between its children, and it was no cloud.
    seen = any({*linears} <= {*m.children()} for m in module.modules() if _is_sequence(m))
    return None if seen or not pair[0].weight.requires_grad else pair


def _is_sequence(module: nn.Module) -> bool:
    return isinstance(module, nn.Sequential)


def _is_neutral(module: nn.Module) -> bool:
    """Whether a module without children may lie between two layers, or has no say at all."""
    return _is_elementwise(module) or isinstance(module, _NEUTRAL)


def _warn_of_no_cloud(module: nn.Module, uses: Counter[int]) -> None:
    """Say that no cloud was found where there may be some, with names that may be pairs."""
    seen = {
        id(part)
        for m in module.modules()
        if _shows_its_inside(m)
        for part in (m.children() if _is_sequence(m) else m.modules())
    }
    named = [
        (name, m)
        for name, m in module.named_modules()
        if _is_linear(m)
        and id(m) not in seen
        and m.weight.requires_grad
        and all(uses[i] == 1 for i in _parameter_ids(m))
    ]
    if len(named) < 2:
        return
    fitting = [
        (a, b)
        for (a, first), (b, second) in pairwise(named)
        if (pair := _as_pair(first, second)) is not None and _may_hide(*pair)
    ]
    example = fitting[:1] or [("fc1", "fc2")]
    more = f" ({len(fitting)} pairs in this model look like it)" if len(fitting) > 1 else ""
    warnings.warn(
        f"no cloud of neurons found in {type(module).__name__}: what its forward does between its "
        f"{len(named)} Linear layers cannot be seen, so every tensor is one plain block. If the "
        "outputs of one layer go through an elementwise activation into another and nowhere else, "
        f"say so: particle_groups(model, pairs={example}){more}; pairs=[] says that there are none",
        UserWarning,
        stacklevel=callers_level(),
    )


def _shows_its_inside(module: nn.Module) -> bool:
    """Whether it is known without its forward what a module does with its parts."""
    if _is_sequence(module):
        return type(module).forward is nn.Sequential.forward
    known = nn.MultiheadAttention | nn.TransformerEncoderLayer | nn.TransformerDecoderLayer
    return isinstance(module, known)


def _may_hide(first: nn.Linear, second: nn.Linear) -> bool:
    """Whether the width between two layers looks like that of hidden neurons: it narrows after.

    The projections of attention have equal sizes, and what follows a block has its size too.
    """
    return first.out_features > second.out_features


def _checked_pairs(pairs: Any) -> Sequence[tuple[str, str]]:
    if pairs is None:
        return ()
    if isinstance(pairs, str) or not isinstance(pairs, Iterable):
        raise TypeError(f'pairs must be a list of pairs of names, [("fc1", "fc2")], got {pairs!r}')
    return list(pairs)


def _named_pair(module: nn.Module, names: tuple[str, str]) -> tuple[nn.Linear, nn.Linear]:
    is_pair = isinstance(names, Sequence) and not isinstance(names, str) and len(names) == 2
    if not is_pair or not all(isinstance(name, str) for name in names):
        raise ValueError(f"pairs must hold pairs of submodule names, got {names!r}")
    layers = []
    for name in names:
        try:
            layers.append(module.get_submodule(name))
        except AttributeError as missing:
            raise ValueError(f"pairs={names!r}: the model has no submodule {name!r}") from missing
    pair = _as_pair(*layers)
    if pair is None:
        raise ValueError(
            f"pairs={names!r} must name two different nn.Linear layers, the outputs of the first "
            f"being the inputs of the second, got {layers[0]} and {layers[1]}"
        )
    return pair


def _parameter_ids(*layers: nn.Module) -> set[int]:
    return {id(p) for layer in layers for p in layer.parameters()}


def _pair_group(first: nn.Linear, second: nn.Linear, taken: set[int]) -> dict[str, Any]:
    params = [p for p in (first.weight, first.bias, second.weight, second.bias) if p is not None]
    taken.update(map(id, params))
    return {"params": params, "layout": "pair"}
