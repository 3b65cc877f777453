"""The optimizers: one proximal step from closure to report.

This room only conducts: it reads the parameters as clouds, builds the prox objective, hands it to a
solver, accepts the best point, and keeps what the next step can use.
"""

from torch_wprox.optim.functional import prox
from torch_wprox.optim.optimizers import FrobeniusProx, WassersteinProx
from torch_wprox.optim.proximal_point import ProximalPoint

__all__ = [
    "FrobeniusProx",
    "ProximalPoint",
    "WassersteinProx",
    "prox",
]
