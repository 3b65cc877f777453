"""PyTorch optimizers that take proximal steps in the space of measures."""

from torch_wprox.certificate import Certificate, certify, certify_training
from torch_wprox.distances import EMD, Frobenius
from torch_wprox.functional import prox, wasserstein_sq
from torch_wprox.grid import GridLayer
from torch_wprox.groups import particle_groups
from torch_wprox.jko import EntropicJKO, JKOReport
from torch_wprox.layers import MeanFieldLayer
from torch_wprox.optimizers import FrobeniusProx, WassersteinProx
from torch_wprox.proximal_point import ProximalPoint
from torch_wprox.report import Bound, Status, StepReport, TransportCounts
from torch_wprox.sinkhorn import Sinkhorn
from torch_wprox.sliced import Sliced
from torch_wprox.solvers import BFGS, LBFGS, FirstOrder, Global, GradientDescent

__all__ = [
    "BFGS",
    "EMD",
    "LBFGS",
    "Bound",
    "Certificate",
    "EntropicJKO",
    "FirstOrder",
    "Frobenius",
    "FrobeniusProx",
    "Global",
    "GradientDescent",
    "GridLayer",
    "JKOReport",
    "MeanFieldLayer",
    "ProximalPoint",
    "Sinkhorn",
    "Sliced",
    "Status",
    "StepReport",
    "TransportCounts",
    "WassersteinProx",
    "certify",
    "certify_training",
    "particle_groups",
    "prox",
    "wasserstein_sq",
]
__version__ = "0.1.0.dev0"
