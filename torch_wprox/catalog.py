"""The distances by their names."""

from __future__ import annotations

from collections.abc import Callable

from torch_wprox.distances import EMD, Distance, Frobenius
from torch_wprox.sinkhorn import Sinkhorn
from torch_wprox.sliced import Sliced

_BY_NAME: dict[str, Callable[[], Distance]] = {
    "frobenius": Frobenius,
    "emd": EMD,
    "sinkhorn": Sinkhorn,
    "sliced": Sliced,
}


def distance_named(distance: str | Distance) -> Distance:
    """Return the distance of that name with its default options; an object as it is.

    Raises:
        ValueError: No distance has that name.
    """
    if not isinstance(distance, str):
        return distance
    if distance not in _BY_NAME:
        known = ", ".join(repr(name) for name in _BY_NAME)
        raise ValueError(
            f"distance must be one of {known} or an object with options, got {distance!r}"
        )
    return _BY_NAME[distance]()
