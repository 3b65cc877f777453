"""The distances and the solvers by their names."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

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

T = TypeVar("T")

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
    return _named("distance", distance, DISTANCES, method="anchored", example="EMD()")


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
    return _named("solver", solver, SOLVERS, method="minimize", example="LBFGS()")


def _named(
    argument: str, given: str | T, table: dict[str, Callable[[], T]], *, method: str, example: str
) -> T:
    """Return what ``given`` names in the table; an object that has the method, as it is."""
    if not isinstance(given, str):
        if isinstance(given, type) or not callable(getattr(given, method, None)):
            raise TypeError(
                f"{argument} must be a name or an object with options, such as {example}, got "
                f"{given!r}"
            )
        return given
    if given not in table:
        known = ", ".join(repr(name) for name in table)
        raise ValueError(
            f"{argument} must be one of {known} or an object with options, got {given!r}"
        )
    return table[given]()
