"""Local search: solvers that minimise an `Objective` from its anchor.

Each is a frozen dataclass of options with one method, ``minimize``. A solver sees one objective and
a stopping rule; it knows neither the closure nor the distance. What they share is a line search,
the curvature pairs and the rules that end a search. The step that is solved in the space of
measures has a room of its own, :mod:`torch_wprox.certified`.
"""

from torch_wprox.solvers.auto import Auto
from torch_wprox.solvers.base import Solver
from torch_wprox.solvers.bfgs import BFGS
from torch_wprox.solvers.first_order import FirstOrder, adam
from torch_wprox.solvers.gradient_descent import GradientDescent
from torch_wprox.solvers.lbfgs import LBFGS
from torch_wprox.solvers.line_search import WeakWolfe
from torch_wprox.solvers.stopping import Stopping

__all__ = [
    "BFGS",
    "LBFGS",
    "Auto",
    "FirstOrder",
    "GradientDescent",
    "Solver",
    "Stopping",
    "WeakWolfe",
    "adam",
]
