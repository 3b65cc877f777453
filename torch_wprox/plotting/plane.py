"""Figures in the plane of neurons: where none activates data, rays, arrows, and an animation.

Each draws into the axes that it is given, on top of :func:`torch_wprox.plotting.plot_trajectories`,
and returns them. A neuron v of the plane is (w, b) with a bias (inputs x_j, one number each), or
(w_1, w_2) without (inputs with two coordinates); it activates x_j where <x_j, v> > 0.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from torch_wprox.plotting.look import NEGATIVE, PALETTE, POSITIVE
from torch_wprox.plotting.neurons import plot_trajectories

if TYPE_CHECKING:
    from matplotlib.animation import FuncAnimation
    from matplotlib.axes import Axes

__all__ = [
    "animate_trajectories",
    "evenly_along",
    "inactive_cone",
    "plot_arrows",
    "plot_inactive",
    "plot_rays",
    "plot_ways",
]

_SHADE = "#dddddd"


def inactive_cone(inputs: Tensor) -> Tensor | None:
    """Return the two rays that bound {v : <x_j, v> <= 0 for all j}: neurons without a gradient.

    The cone is an intersection of half-planes, so its rays are normal to data: of +-(x_j turned by
    a right angle), those that lie in every half-plane.

    Args:
        inputs: Data x_j, (n,) or (n, 1): a coordinate 1 for the bias is added; or (n, 2).

    Returns:
        Unit vectors (2, 2), counter-clockwise; None where the cone is no sector of less than half
        a turn: a ray, nothing, or a half-plane (one data point).

    Example:
        >>> inactive_cone(torch.tensor([-1.0, 0.0, 1.0])).mul(2**0.5).round()
        tensor([[-1., -1.],
                [ 1., -1.]], dtype=torch.float64)
    """
    x = _with_bias(inputs)
    normals = torch.stack([-x[:, 1], x[:, 0]], dim=1)
    normals = normals / normals.norm(dim=1, keepdim=True)
    rays = torch.cat([normals, -normals])
    rays = rays[(rays @ x.T <= 1e-12 * x.norm(dim=1)).all(dim=1)]
    if not len(rays):
        return None
    turn = rays[:, None, 0] * rays[None, :, 1] - rays[:, None, 1] * rays[None, :, 0]
    first, last = divmod(int(turn.argmax()), len(rays))
    return rays[[first, last]] if turn[first, last] > 1e-12 else None


def plot_inactive(ax: Axes, inputs: Tensor, label: str = "activates no data") -> Axes:
    """Shade the cone of neurons that activate no data; it sets no limits.

    Args:
        ax: Where to draw; its limits are taken as they are.
        inputs: Data, as for :func:`inactive_cone`.
        label: For the legend.

    Example:
        >>> import matplotlib; matplotlib.use("agg")
        >>> from matplotlib import pyplot
        >>> ax = pyplot.figure().add_subplot()
        >>> len(plot_inactive(ax, torch.tensor([-1.0, 1.0])).patches)
        1
    """
    rays = inactive_cone(inputs)
    limits = ax.get_xlim(), ax.get_ylim()
    if rays is not None:
        far = 4.0 * max(abs(end) for pair in limits for end in pair)
        corners = torch.cat([torch.zeros(1, 2), far * rays]).tolist()
        ax.fill(*zip(*corners, strict=True), color=_SHADE, zorder=-1, lw=0, label=label)
    ax.set(xlim=limits[0], ylim=limits[1])
    return ax


def plot_rays(
    ax: Axes, directions: Tensor, color: str = PALETTE[6], line: str = "--", label: str = ""
) -> Axes:
    """Draw rays from the origin to the edge of the axes; they set no limits.

    Args:
        ax: Where to draw; its limits are taken as they are.
        directions: (k, 2), of any length > 0.
        color: Of the rays.
        line: Their line style.
        label: For the legend, once.

    Example:
        >>> import matplotlib; matplotlib.use("agg")
        >>> from matplotlib import pyplot
        >>> ax = pyplot.figure().add_subplot()
        >>> len(plot_rays(ax, torch.tensor([[1.0, 1.0], [0.0, 1.0]])).lines)
        2
    """
    limits = ax.get_xlim(), ax.get_ylim()
    far = 4.0 * max(abs(end) for pair in limits for end in pair)
    for index, (u, v) in enumerate((far * directions / directions.norm(dim=1)[:, None]).tolist()):
        name = "_nolegend_" if index or not label else label
        ax.plot([0, u], [0, v], color=color, ls=line, lw=1.1, zorder=1, label=name)
    ax.set(xlim=limits[0], ylim=limits[1])
    return ax


def plot_arrows(ax: Axes, start: Tensor, arrows: Tensor, color: str, label: str = "") -> Axes:
    """Draw arrows in data coordinates.

    Args:
        ax: Where to draw.
        start: Where they begin, (k, 2).
        arrows: From there, (k, 2).
        color: Of the arrows.
        label: For the legend.

    Example:
        >>> import matplotlib; matplotlib.use("agg")
        >>> from matplotlib import pyplot
        >>> ax = pyplot.figure().add_subplot()
        >>> len(plot_arrows(ax, torch.zeros(3, 2), torch.ones(3, 2), "black").collections)
        1
    """
    tails, tips = start.detach().cpu().numpy(), arrows.detach().cpu().numpy()
    how: dict[str, Any] = {"angles": "xy", "scale_units": "xy", "scale": 1, "width": 0.004}
    ax.quiver(*tails.T, *tips.T, color=color, zorder=3, label=label or None, **how)
    return ax


def evenly_along(way: Tensor, k: int) -> Tensor:
    """Return the indices (k,) of points spread evenly over the length of a trajectory (T, D).

    Example:
        >>> evenly_along(torch.tensor([[0.0], [1.0], [1.1], [3.0], [4.0]]), 2)
        tensor([1, 3])
    """
    length = torch.cat([way.new_zeros(1), way.diff(dim=0).norm(dim=1).cumsum(0)])
    wanted = (torch.arange(k, dtype=way.dtype) + 0.5) / k * length[-1]
    return torch.searchsorted(length, wanted).clamp(max=len(way) - 1)


def plot_ways(
    ax: Axes, ways: Tensor, color: str = PALETTE[6], label: str = "", line: str = "-"
) -> Axes:
    """Draw the trajectories of some neurons again, thick, to make them stand out.

    Args:
        ax: Where to draw.
        ways: (T, k, 2).
        color: Of the trajectories.
        label: For the legend, once.
        line: Their line style.

    Example:
        >>> import matplotlib; matplotlib.use("agg")
        >>> from matplotlib import pyplot
        >>> ax = pyplot.figure().add_subplot()
        >>> len(plot_ways(ax, torch.randn(5, 3, 2)).lines)
        3
    """
    for index, way in enumerate(ways.detach().cpu().transpose(0, 1)):
        name = "_nolegend_" if index or not label else label
        ax.plot(*way.T.numpy(), line, color=color, lw=1.8, zorder=3, label=name)
    return ax


def animate_trajectories(
    ways: Mapping[str, Tensor],
    signs: Tensor,
    *,
    inputs: Tensor | None = None,
    between: int = 4,
    labels: tuple[str, str] = ("weight $w$", "bias $b$"),
) -> FuncAnimation:
    """Animate descents side by side, neurons moving along straight lines between iterates.

    Args:
        ways: Name of a descent to its positions, (T, m, 2).
        signs: (m,).
        inputs: Data x_j for the activation lines and the inactive cone, as for
            :func:`inactive_cone`.
        between: Frames per step, >= 1.
        labels: Of the axes.

    Returns:
        The animation: keep it until it is saved, then close its figure.

    Raises:
        ValueError: ``ways`` is empty or ``between`` < 1.

    Example:
        >>> import matplotlib; matplotlib.use("agg")
        >>> from matplotlib import pyplot
        >>> film = animate_trajectories({"prox": torch.randn(3, 4, 2)}, torch.ones(4), between=2)
        >>> len(list(film.new_frame_seq()))
        5
        >>> film._draw_was_started = True  # nothing is saved here
        >>> pyplot.close("all")
    """
    if not ways or between < 1:
        raise ValueError(f"need a descent and between >= 1, got {len(ways)} and {between!r}")
    from matplotlib import pyplot
    from matplotlib.animation import FuncAnimation

    figure, row = pyplot.subplots(1, len(ways), sharex=True, sharey=True, squeeze=False)
    every = torch.cat([way.detach().cpu().reshape(-1, 2) for way in ways.values()])
    low, high = every.amin(dim=0), every.amax(dim=0)
    left, right = (low - 0.05 * (high - low)).tolist(), (high + 0.05 * (high - low)).tolist()
    classes = [(POSITIVE, signs.cpu() > 0), (NEGATIVE, signs.cpu() <= 0)]
    moving = []
    for ax, (name, way) in zip(row[0], ways.items(), strict=True):
        plot_trajectories(way[:1], signs, ax, inputs=inputs, labels=labels)
        ax.get_legend().remove()
        for start in ax.get_lines():
            start.set_alpha(0.35)
        ax.set(xlim=(left[0], right[0]), ylim=(left[1], right[1]))
        if inputs is not None:
            plot_inactive(ax, inputs)
        for color, members in classes:
            trails = ax.plot([], [], color=color, lw=0.6, alpha=0.6)[0]
            heads = ax.plot([], [], color=color, marker=".", ms=5, ls="none")[0]
            moving.append((ax, name, way[:, members].detach().cpu(), trails, heads))

    def draw(frame: int) -> list[Any]:
        step, part = divmod(frame, between)
        for ax, name, way, trails, heads in moving:
            now = way[step]
            if part:
                now = torch.lerp(now, way[step + 1], part / between)
            done = torch.cat([way[: step + 1], now[None]])
            gap = torch.full_like(now, torch.nan)  # lifts the pen between two neurons
            trails.set_data(*torch.cat([done, gap[None]]).transpose(0, 1).reshape(-1, 2).T.numpy())
            heads.set_data(*now.T.numpy())
            ax.set_title(f"{name}, step {step}")
        return [artist for *_, trails, heads in moving for artist in (trails, heads)]

    steps = min(len(way) for way in ways.values()) - 1
    return FuncAnimation(figure, draw, frames=steps * between + 1, repeat=False)


def _with_bias(inputs: Tensor) -> Tensor:
    """Return the data (n, 2), float64, a coordinate 1 added to (n,) or (n, 1)."""
    x = inputs.detach().cpu().double().reshape(len(inputs), -1)
    x = torch.cat([x, torch.ones_like(x)], dim=1) if x.shape[1] == 1 else x
    if x.shape[1] != 2:
        raise ValueError(f"inputs must be (n,), (n, 1) or (n, 2), got {tuple(inputs.shape)}")
    return x
