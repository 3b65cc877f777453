"""Exact transport between clouds of equal mass: assignment, its proof, its repair.

The assignment of the last evaluation is proved optimal again where that is cheap, repaired where it
is not, and solved afresh only when asked for. Everything here is float64 on the CPU.
"""

from torch_wprox.distances.emd.distance import EMD
from torch_wprox.distances.emd.wasserstein import wasserstein_sq

__all__ = [
    "EMD",
    "wasserstein_sq",
]
