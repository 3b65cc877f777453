"""The step solved in the space of measures, with a bound on how far it is from optimal.

A tower: the problem in the output of a layer (``problem``), the best responses of its particles to
a loss gradient (``responses``), the relaxed problem and its lower bound (``bound``), the search for
particles near it (``search``), and on top the solver and the certificates of given parameters.
"""

from torch_wprox.certified.certificate import certify, certify_training
from torch_wprox.certified.solver import Global

__all__ = [
    "Global",
    "certify",
    "certify_training",
]
