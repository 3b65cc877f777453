"""Which parameters of a group are clouds of particles."""

from __future__ import annotations

import inspect
import sys
import warnings
from collections.abc import Sequence
from contextlib import suppress
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from torch_wprox.closure.guards import callers_level
from torch_wprox.layers.mean_field import MeanFieldLayer, live_layers
from torch_wprox.particles.groups import particle_groups
from torch_wprox.particles.views import CloudView, CurvedView, PairView, PlainView, View, as_real

__all__ = [
    "LAYOUTS",
    "Classes",
    "CloudView",
    "CurvedView",
    "PairView",
    "PlainView",
    "View",
    "checked_classes",
    "labels_of",
    "layout_of",
    "particle_groups",
    "views_of_group",
]

Classes = str | Tensor | Sequence[int] | None

LAYOUTS = ("auto", "plain", "cloud", "pair", "layer")
"""How the tensors of a parameter group are read.

- "auto": as `layout_of` finds.
- "plain": every tensor is one block of mass 1, nothing is exchanged.
- "cloud": exactly one (m, D) matrix, a particle per row.
- "pair": (m, d) [(m,)] (k, m) [(k,)] of two linear layers: particles (w_i, b_i, a_i), and the last
  bias plain.
- "layer": parameters of a `MeanFieldLayer` as it says, all others plain.
"""


def layout_of(params: Sequence[nn.Parameter], *, warn: bool = True) -> str:
    """The layout that a bare group of parameters has when it is matched as a whole.

    Parameters of a live `MeanFieldLayer` make it "layer". Else exactly one (m, D) matrix is
    a "cloud", and exactly (m, d) [(m,)] (k, m) [(k,)] is a "pair". Anything else is "plain": to
    exchange the rows of an arbitrary matrix would not leave the network what it is.

    Args:
        params: The group, in the order of ``module.parameters()``.
        warn: Warn once, naming `particle_groups`, if matrices end up plain.

    Returns:
        "layer", "cloud", "pair" or "plain".

    Example:
        >>> net = nn.Sequential(nn.Linear(2, 8), nn.ReLU(), nn.Linear(8, 1))
        >>> layout_of(list(net.parameters()))
        'pair'
    """
    layers = live_layers()
    if any(id(p) in layers for p in params):
        return "layer"
    if len(params) == 1 and params[0].ndim == 2:
        return "cloud"
    if _pair_parts(params) is not None:
        return "pair"
    if warn and any(p.ndim >= 2 for p in params):
        shapes = ", ".join(str(tuple(p.shape)) for p in params[:6]) + ", ..." * (len(params) > 6)
        warnings.warn(
            f"no cloud of particles in a group of {len(params)} parameters ({shapes}): each is one "
            "plain block and nothing is exchanged. torch_wprox.particle_groups(model) finds the "
            "clouds of a model; layout='plain' in the group says that this is what you want.",
            UserWarning,
            stacklevel=callers_level(),
        )
    return "plain"


def module_of(params: Any) -> nn.Module | None:
    """The module whose ``parameters()`` or ``named_parameters()`` a group is given as, if it is.

    Example:
        >>> embedding = nn.Embedding(10, 4)
        >>> module_of(embedding.parameters()) is embedding, module_of([embedding.weight])
        (True, None)
    """
    if not inspect.isgenerator(params) or params.gi_frame is None:
        return None
    owner = inspect.getgeneratorlocals(params).get("self")
    return owner if isinstance(owner, nn.Module) else None


def warn_of_lone_matrix(module: nn.Module | None, params: Sequence[nn.Parameter]) -> None:
    """Warn where the one matrix of a group, a cloud by its shape, is that of a layer of torch.

    Exchanging the rows of an embedding gives one token the vector of another, exchanging those of
    a linear layer relabels its outputs: few users mean that.

    Args:
        module: Whose parameters the group was given as, None if that is not known.
        params: The group.
    """
    for owner in () if module is None else module.modules():
        kinds = nn.Embedding | nn.EmbeddingBag | nn.Linear
        if isinstance(owner, kinds) and owner.weight is params[0] and len(params[0]) > 1:
            rows = "outputs" if isinstance(owner, nn.Linear) else "tokens"
            warnings.warn(
                f"the group is one matrix, the weight of {owner}: it is taken as a cloud of "
                f"{len(params[0])} particles, and a step may exchange the rows of different {rows}."
                " layout='plain' in the group exchanges nothing; layout='cloud' says that this is "
                "what you want",
                UserWarning,
                stacklevel=callers_level(),
            )


def views_of_group(
    params: Sequence[nn.Parameter], layout: str = "auto", classes: Classes = "sign"
) -> list[View]:
    """The blocks of a parameter group.

    Parameters that do not require a gradient make no block, but frozen output weights still
    define the classes of their neurons. Empty tensors make no block.

    Args:
        params: The group.
        layout: One of `LAYOUTS`.
        classes: "sign" (exchange only between neurons whose frozen output weights have equal signs
            and feed the same output), None (between all), or integer labels (m,) for every cloud.

    Returns:
        Views that share no parameter, in the order of the parameters.

    Raises:
        ValueError: If the group does not have the layout, or labels do not fit.
        TypeError: For a DTensor or a sparse parameter.
    """
    params = list(params)
    for p in params:
        _check(p)
    classes = checked_classes(classes)
    if layout == "auto":
        layout = layout_of(params)
    if layout == "plain":
        views = _plain(params)
    elif layout == "cloud":
        if len(params) != 1 or params[0].ndim != 2:
            raise _misfit(layout, "exactly one (m, D) matrix", params)
        [p] = params
        views = [CloudView(p, labels_of(classes, p))] if _trains(p) else []
    elif layout == "pair":
        views = _pair_views(params, classes)
    elif layout == "layer":
        views = _layer_views(params, classes)
    else:
        raise ValueError(f"layout must be one of {LAYOUTS}, got {layout!r}")
    if isinstance(classes, Tensor) and params and not any(v.is_cloud for v in views):
        raise ValueError(
            "classes is a tensor of labels, but the group has no cloud to exchange: give "
            "classes='sign', or groups from torch_wprox.particle_groups(model)"
        )
    return views


def checked_classes(classes: Any) -> str | Tensor | None:
    """Return "sign", None or integer labels (m,) as a tensor; lists and NumPy arrays become one.

    Raises:
        ValueError: ``classes`` is something else.
    """
    if classes is None or (isinstance(classes, str) and classes == "sign"):
        return classes
    with suppress(TypeError, ValueError, RuntimeError):
        labels = torch.as_tensor(classes)
        whole = not (labels.is_floating_point() or labels.is_complex())
        if not isinstance(classes, str) and labels.ndim == 1 and (whole or not len(labels)):
            return labels.long()
    shape = f" of shape {tuple(classes.shape)}" if hasattr(classes, "shape") else ""
    raise ValueError(
        "classes must be 'sign', None or integer labels (m,), one per particle, as a tensor, array "
        f"or list, got {classes!r}{shape}"
    )


def _plain(params: Sequence[nn.Parameter]) -> list[View]:
    return [PlainView(p) for p in params if _trains(p)]


def _pair_parts(
    params: Sequence[nn.Parameter],
) -> tuple[nn.Parameter, nn.Parameter | None, nn.Parameter, nn.Parameter | None] | None:
    """(first, bias, second, last bias) if the group is exactly (m, d) [(m,)] (k, m) [(k,)]."""
    rest = list(params)
    matrices = [p for p in rest if p.ndim == 2]
    if len(matrices) != 2 or rest[0] is not matrices[0]:
        return None
    first, second = matrices
    m, k = first.shape[0], second.shape[0]
    # By identity: == of tensors compares entries.
    at = next(i for i, p in enumerate(rest) if p is second)
    between, after = rest[1:at], rest[at + 1 :]
    fits = (
        second.shape[1] == m
        and len(between) <= 1
        and len(after) <= 1
        and all(p.shape == (m,) for p in between)
        and all(p.shape == (k,) for p in after)
        and all(p.device == first.device and p.dtype == first.dtype for p in rest)
    )
    if not fits:
        return None
    return first, next(iter(between), None), second, next(iter(after), None)


def _pair_views(params: Sequence[nn.Parameter], classes: Classes) -> list[View]:
    parts = _pair_parts(params)
    if parts is None:
        raise _misfit("pair", "(m, d) [(m,)] (k, m) [(k,)], in this order", params)
    first, bias, second, last = parts
    if not _trains(first):
        # Features that do not move belong to their neuron: output weights are no free particles.
        return _plain(params)
    # What does not train is no coordinate, so only neurons that agree in it may be exchanged.
    frozen = [_signs(second.detach().t())] if not _trains(second) else []
    if bias is not None and not _trains(bias):
        frozen.append(bias.detach().unsqueeze(1))
    labels = labels_of(classes, first, torch.cat(frozen, dim=1) if frozen else None)
    particle = PairView(
        first,
        bias if bias is not None and _trains(bias) else None,
        second if _trains(second) else None,
        labels,
    )
    return [particle, *_plain([last] if last is not None else [])]


def _layer_views(params: Sequence[nn.Parameter], classes: Classes) -> list[View]:
    layers = live_layers()
    if not any(id(p) in layers for p in params):
        raise ValueError(
            "layout='layer', but no parameter of the group belongs to a MeanFieldLayer that is "
            "alive: keep the model, or give layout='cloud' or 'plain'"
        )
    views: list[View] = []
    for p in params:
        layer = layers.get(id(p))
        if not _trains(p):
            continue
        if layer is None or p is not layer.particles:
            views.append(PlainView(p))
        elif layer.form.is_flat:
            labels = _signs_of_layer(layer)
            views.append(
                CloudView(p, labels if isinstance(classes, str) else labels_of(classes, p))
            )
        else:
            curved = CurvedView(layer)
            curved.classes = labels_of(classes, p)
            views.append(curved)
    return views


# Frozen output weights of a layer, the outputs that they feed, and the labels that follow: the same
# from step to step, which a comparison tells in less time than it takes to find labels.
_LABELS: WeakKeyDictionary[MeanFieldLayer, tuple[Tensor, Tensor, Tensor | None]] = (
    WeakKeyDictionary()
)


def _signs_of_layer(layer: MeanFieldLayer) -> Tensor | None:
    """Return labels (m,) of the neurons' output and sign; None if equal, or if these train.

    Raises:
        ValueError: An output weight is not finite.
    """
    alpha, index = layer.alpha, layer.output_index
    if alpha is None or index is None:
        return None
    alpha = alpha.detach()
    known = _LABELS.get(layer)
    if known is not None and _is_same(known[0], alpha) and _is_same(known[1], index):
        return known[2]
    if not bool(alpha.isfinite().all()):
        raise ValueError(
            "layer.alpha, the frozen output weights, must be finite, got NaN or infinity in it: "
            "assign others"
        )
    labels = labels_of(torch.sign(alpha).long() + 3 * index, layer.particles)
    _LABELS[layer] = (alpha.clone(), index.clone(), labels)
    return labels


def _is_same(a: Tensor, b: Tensor) -> bool:
    return a.device == b.device and a.dtype == b.dtype and torch.equal(a, b)


def labels_of(classes: Classes, particles: Tensor, frozen: Tensor | None = None) -> Tensor | None:
    """The labels (m,) of a cloud, None if they would all be equal.

    Args:
        classes: "sign": neurons that agree in ``frozen`` have equal labels; None: all have; or the
            labels themselves.
        particles: The cloud, (m, D).
        frozen: (m, q), what does not train.

    Raises:
        ValueError: The labels are no m integers.
    """
    m = len(particles)
    classes = checked_classes(classes)
    if classes is None:
        return None
    if isinstance(classes, Tensor):
        if classes.shape != (m,):
            raise ValueError(
                f"classes must be integer labels of shape ({m},), one per particle, got "
                f"{tuple(classes.shape)} of {classes.dtype}"
            )
        labels = classes.to(particles.device)
    elif frozen is None:
        return None
    else:
        labels = torch.unique(frozen, dim=0, return_inverse=True)[1]
    return None if m == 0 or bool((labels == labels[0]).all()) else labels


def _trains(p: nn.Parameter) -> bool:
    return p.requires_grad and p.numel() > 0


def _signs(a: Tensor) -> Tensor:
    return torch.sign(as_real(a).flatten(1))


def _check(p: Tensor) -> None:
    if p.layout != torch.strided:
        raise TypeError(f"parameters must be dense tensors, got layout {p.layout}")
    # Imported by whoever made one: not loaded here, it costs half a second.
    module = sys.modules.get("torch.distributed.tensor")
    if module is not None and isinstance(p, module.DTensor):
        raise TypeError(
            "DTensor parameters (FSDP2, tensor parallel) are not supported: a step would see the "
            "local shard as the whole cloud. Use DistributedDataParallel"
        )
    if getattr(p, "_fsdp_flattened", False):  # the mark that FSDP1 leaves, whatever its options
        raise TypeError(
            "parameters sharded by FSDP (FullyShardedDataParallel) are not supported: a step would "
            "see the local shard as the whole cloud. Use DistributedDataParallel"
        )


def _misfit(layout: str, needs: str, params: Sequence[Tensor]) -> ValueError:
    shapes = [tuple(p.shape) for p in params]
    return ValueError(f"layout={layout!r} needs {needs}, got shapes {shapes}")
