"""Squared distances d(V, W) between a cloud and its anchor, with their gradients.

A distance object holds options only; ``anchored(W, classes)`` gives d(., W), which a step evaluates
at every inner iteration. Distances know no solver. Exact transport has a room of its own, ``emd``.
"""

from torch_wprox.distances.base import (
    AnchoredDistance,
    Distance,
    DistanceValue,
    Stateless,
    mean_squared,
)
from torch_wprox.distances.emd import EMD, wasserstein_sq
from torch_wprox.distances.frobenius import Frobenius
from torch_wprox.distances.sinkhorn import Sinkhorn
from torch_wprox.distances.sliced import Sliced

__all__ = [
    "EMD",
    "AnchoredDistance",
    "Distance",
    "DistanceValue",
    "Frobenius",
    "Sinkhorn",
    "Sliced",
    "Stateless",
    "mean_squared",
    "wasserstein_sq",
]
