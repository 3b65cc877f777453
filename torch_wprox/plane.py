"""Figures in the plane of neurons: the public face of :mod:`torch_wprox.plotting.plane`."""

from torch_wprox.plotting.plane import (
    animate_trajectories,
    evenly_along,
    inactive_cone,
    plot_arrows,
    plot_inactive,
    plot_rays,
    plot_ways,
)

__all__ = [
    "animate_trajectories",
    "evenly_along",
    "inactive_cone",
    "plot_arrows",
    "plot_inactive",
    "plot_rays",
    "plot_ways",
]
