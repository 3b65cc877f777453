"""Which layer a bare parameter belongs to."""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING

from torch import nn

if TYPE_CHECKING:
    from torch_wprox.layers import MeanFieldLayer

# Attributes of a Parameter do not survive deepcopy, `.double()` or load_state_dict(assign=True);
# the layer that owns it does know. So an optimizer that is handed bare parameters asks the layers
# that are alive.
_LIVE: weakref.WeakSet[MeanFieldLayer] = weakref.WeakSet()


def register(layer: MeanFieldLayer) -> None:
    """Remember a layer for as long as it lives."""
    _LIVE.add(layer)


def live_layers() -> dict[int, MeanFieldLayer]:
    """Every parameter, by id, of every MeanFieldLayer that is alive, with its layer."""
    return {
        id(parameter): layer
        for layer in list(_LIVE)
        for parameter in layer._parameters.values()
        if parameter is not None
    }


def live_layer_of(parameter: nn.Parameter) -> MeanFieldLayer | None:
    """The MeanFieldLayer that owns this parameter, or None.

    Example:
        >>> from torch_wprox.layers import MeanFieldLayer
        >>> layer = MeanFieldLayer(1, width=4)
        >>> other = nn.Linear(1, 1)
        >>> live_layer_of(layer.particles) is layer, live_layer_of(other.weight)
        (True, None)
    """
    return live_layers().get(id(parameter))
