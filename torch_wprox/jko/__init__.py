"""The JKO step on a grid: entropic plans between measures on fixed points.

Newton's method on the semi-dual, L-BFGS, Newton-Krylov and Dykstra's algorithm, plain or debiased.
"""

from torch_wprox.jko.optimizer import EntropicJKO
from torch_wprox.report import JKOReport

__all__ = [
    "EntropicJKO",
    "JKOReport",
]
