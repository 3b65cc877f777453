"""Networks that are measures: their particles, parameterisations and grids.

A layer holds the measure and nothing else: it knows no distance and no optimizer. `MeanFieldLayer`
has particles that move, `GridLayer` has particles on a fixed grid that exchange mass. Both can be
watched, or answer a given output instead of their own, which lets a closure be read as a function
of the layer's output.
"""

from torch_wprox.layers.grid import GridLayer
from torch_wprox.layers.mean_field import MeanFieldLayer, live_layer_of, live_layers
from torch_wprox.layers.parameterizations import PARAMETERIZATIONS, Parameterization
from torch_wprox.layers.substitution import Observation, OutputSubstitution

__all__ = [
    "PARAMETERIZATIONS",
    "GridLayer",
    "MeanFieldLayer",
    "Observation",
    "OutputSubstitution",
    "Parameterization",
    "live_layer_of",
    "live_layers",
]
