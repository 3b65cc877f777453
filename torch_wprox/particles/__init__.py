"""Parameters as clouds of particles.

Which tensors of a model form a cloud, how a cloud is read from them and written back as a matrix
(m, D) with one particle per row, and all clouds and plain tensors together as one flat vector.
"""

from torch_wprox.particles.flat import FlatParameters
from torch_wprox.particles.groups import particle_groups
from torch_wprox.particles.layouts import LAYOUTS, Classes, layout_of, views_of_group
from torch_wprox.particles.views import CloudView, CurvedView, PairView, PlainView, View

__all__ = [
    "LAYOUTS",
    "Classes",
    "CloudView",
    "CurvedView",
    "FlatParameters",
    "PairView",
    "PlainView",
    "View",
    "layout_of",
    "particle_groups",
    "views_of_group",
]
