"""Exact transport between clouds of equal mass: assignment, its proof, its repair.

Small classes are solved at every point that a solver tries; large ones hold their assignment there
and improve it cheaply now and then. At the end of a step it is proved optimal, or solved from
prices that come close. Everything here is float64 on the CPU.
"""

from torch_wprox.distances.emd.distance import EMD
from torch_wprox.distances.emd.wasserstein import wasserstein_sq

__all__ = [
    "EMD",
    "wasserstein_sq",
]
