"""Running a closure many times as one function, on all ranks.

A step evaluates the user's closure again and again and needs the same function every time: random
numbers are replayed, gradients cleared, losses averaged over the ranks. This room holds what does
that, the frame of the optimizers whose step does it, what such a frame refuses or warns about, and
how ranks agree on a number.
"""

from torch_wprox.closure.guards import GradientWatch
from torch_wprox.closure.optimizer import ClosureOptimizer
from torch_wprox.closure.ranks import Agree, alone, process_group_of
from torch_wprox.closure.runner import CLOSURE_HELP, Closure, ClosureRunner
from torch_wprox.closure.watch import Callback, Watch

__all__ = [
    "CLOSURE_HELP",
    "Agree",
    "Callback",
    "Closure",
    "ClosureOptimizer",
    "ClosureRunner",
    "GradientWatch",
    "Watch",
    "alone",
    "process_group_of",
]
