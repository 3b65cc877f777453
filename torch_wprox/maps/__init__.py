"""Convex maps: measures moved by gradients of convex functions, which are optimal by themselves.

By Brenier's theorem the gradient of a convex function is the cheapest way from any measure to its
image, so that a squared Wasserstein distance costs no assignment. :class:`ConvexMap` is the inner
solver that searches a step among such maps; :class:`MapFlow` composes them into gradient flows of
sampled measures, with entropy; :func:`learn_energy` asks the inverse question: which energy drove
a flow that was observed.
"""

from torch_wprox.maps.energies import CloudEnergy, CloudFunction, Entropy, Interaction, Potential
from torch_wprox.maps.features import polynomials, radial, ridges
from torch_wprox.maps.flow import MapFlow
from torch_wprox.maps.learn import learn_energy
from torch_wprox.maps.learned import LearnedEnergy
from torch_wprox.maps.log_det import LogDet
from torch_wprox.maps.potential import ConvexNetwork
from torch_wprox.maps.solver import ConvexMap
from torch_wprox.maps.transport_map import TransportMap

__all__ = [
    "CloudEnergy",
    "CloudFunction",
    "ConvexMap",
    "ConvexNetwork",
    "Entropy",
    "Interaction",
    "LearnedEnergy",
    "LogDet",
    "MapFlow",
    "Potential",
    "TransportMap",
    "learn_energy",
    "polynomials",
    "radial",
    "ridges",
]
