"""The distances and the solvers by their names."""

from __future__ import annotations

from collections.abc import Callable

from torch_wprox.certified.solver import Global
from torch_wprox.distances.base import Distance
from torch_wprox.distances.emd.distance import EMD
from torch_wprox.distances.frobenius import Frobenius
from torch_wprox.distances.sinkhorn import Sinkhorn
from torch_wprox.distances.sliced import Sliced
from torch_wprox.maps.solver import ConvexMap
from torch_wprox.solvers.auto import Auto
from torch_wprox.solvers.base import Solver
from torch_wprox.solvers.bfgs import BFGS
from torch_wprox.solvers.first_order import adam
from torch_wprox.solvers.gradient_descent import GradientDescent
from torch_wprox.solvers.lbfgs import LBFGS

DISTANCES: dict[str, Callable[[], Distance]] = {
    "frobenius": Frobenius,
    "emd": EMD,
    "sinkhorn": Sinkhorn,
    "sliced": Sliced,
}


def distance_named(distance: str | Distance) -> Distance:
    """Return the distance of that name with its default options; an object as it is.

    Raises:
        TypeError: It is neither a name nor such an object.
        ValueError: No distance has that name.
    """
    if not isinstance(distance, str):
        if isinstance(distance, type) or not callable(getattr(distance, "anchored", None)):
            raise TypeError(
                f"distance must be a name or an object with options, such as EMD(), got "
                f"{distance!r}"
            )
        return distance
    if distance not in DISTANCES:
        known = ", ".join(repr(name) for name in DISTANCES)
        raise ValueError(
            f"distance must be one of {known} or an object with options, got {distance!r}"
        )
    return DISTANCES[distance]()


SOLVERS: dict[str, Callable[[], Solver]] = {
    "auto": Auto,
    "adam": adam,
    "gd": GradientDescent,
    "bfgs": BFGS,
    "lbfgs": LBFGS,
    "global": Global,
    "map": ConvexMap,
}


def solver_named(solver: str | Solver) -> Solver:
    """Return the solver of that name with its default options; an object is returned as it is.

    Raises:
        TypeError: It is neither a name nor such an object.
        ValueError: No solver has that name.
    """
    if not isinstance(solver, str):
        if isinstance(solver, type) or not callable(getattr(solver, "minimize", None)):
            raise TypeError(
                f"solver must be a name or an object with options, such as LBFGS(), got {solver!r}"
            )
        return solver
    if solver not in SOLVERS:
        known = ", ".join(repr(name) for name in SOLVERS)
        raise ValueError(f"solver must be one of {known} or an object with options, got {solver!r}")
    return SOLVERS[solver]()
