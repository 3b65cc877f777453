"""PyTorch optimizers that take proximal steps in the space of measures."""

from torch_wprox.certified import Global, certify, certify_training
from torch_wprox.distances import EMD, Frobenius, Sinkhorn, Sliced, wasserstein_sq
from torch_wprox.jko import EntropicJKO
from torch_wprox.layers import GridLayer, MeanFieldLayer
from torch_wprox.maps import ConvexMap, LearnedEnergy, MapFlow, learn_energy
from torch_wprox.optim import FrobeniusProx, ProximalPoint, WassersteinProx, prox
from torch_wprox.particles import particle_groups
from torch_wprox.report import (
    Bound,
    Certificate,
    JKOReport,
    Progress,
    Status,
    StepReport,
    TransportCounts,
)
from torch_wprox.solvers import BFGS, LBFGS, FirstOrder, GradientDescent

__all__ = [
    "BFGS",
    "EMD",
    "LBFGS",
    "Bound",
    "Certificate",
    "ConvexMap",
    "EntropicJKO",
    "FirstOrder",
    "Frobenius",
    "FrobeniusProx",
    "Global",
    "GradientDescent",
    "GridLayer",
    "JKOReport",
    "LearnedEnergy",
    "MapFlow",
    "MeanFieldLayer",
    "Progress",
    "ProximalPoint",
    "Sinkhorn",
    "Sliced",
    "Status",
    "StepReport",
    "TransportCounts",
    "WassersteinProx",
    "certify",
    "certify_training",
    "learn_energy",
    "particle_groups",
    "prox",
    "wasserstein_sq",
]
__version__ = "0.1.0"
