"""Where the neurons go, and the function that they make."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import cycle
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from torch_wprox.plotting.look import (
    GREY,
    LINES,
    NEGATIVE,
    PALETTE,
    POSITIVE,
    array,
    axes_or_new,
    colors_of,
    legend_above,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from torch_wprox.recording import TrajectoryRecorder


def plot_trajectories(
    positions: Tensor | TrajectoryRecorder,
    signs: Tensor | None = None,
    ax: Axes | None = None,
    *,
    inputs: Tensor | None = None,
    coordinates: tuple[int, int] = (0, 1),
    labels: tuple[str, str] = ("weight $w$", "bias $b$"),
    line: str = "-",
    name: str = "",
) -> Axes:
    """Draw the trajectory of every particle, with a circle where it began.

    Negative neurons are blue, positive ones vermilion. A neuron changes the data that it activates
    where it crosses one of the grey lines <x_j, w> + b = 0. Call it twice on one axes, with two
    values of ``line``, to compare two descents.

    Args:
        positions: (T, m, D), or a :class:`~torch_wprox.recording.TrajectoryRecorder` of one cloud,
            which knows the signs too.
        signs: (m,), None where there are none: all neurons in one colour.
        ax: Where to draw; None: a new figure.
        inputs: Data x_j, (n,) or (n, 1): draws their activation lines, for coordinates (w, b); or
            (n, 2) for neurons without a bias: the lines <x_j, w> = 0.
        coordinates: The two columns of a particle to draw.
        labels: Of the axes.
        line: Line style of the trajectories.
        name: Of the descent, for the legend.

    Raises:
        ValueError: ``positions`` is not (T, m, D) with D >= 2, or ``signs`` is not (m,).
        TypeError: ``positions`` is neither a tensor nor a recorder.

    Example:
        >>> import matplotlib; matplotlib.use("agg")
        >>> ax = plot_trajectories(torch.randn(11, 6, 2), signs=torch.tensor([1.0, -1.0] * 3))
        >>> ax.get_xlabel(), ax.get_ylabel()
        ('weight $w$', 'bias $b$')

    Source: the figures of the note (Mercklé 2024), sections 2 and 3.
    """
    if not isinstance(positions, Tensor):
        positions, signs = _recorded(positions, signs)
    if positions.ndim != 3 or positions.shape[2] < 2:
        raise ValueError(
            f"positions must be (T, m, D) with D >= 2, got shape {tuple(positions.shape)}"
        )
    m = positions.shape[1]
    if signs is not None and signs.shape != (m,):
        raise ValueError(f"signs must be ({m},), got shape {tuple(signs.shape)}")
    ax = axes_or_new(ax)
    ways = array(positions[:, :, list(coordinates)])
    classes = [("neurons", PALETTE[2], torch.ones(m, dtype=torch.bool))]
    if signs is not None:
        signs = signs.detach().cpu()
        classes = [("positive", POSITIVE, signs > 0), ("negative", NEGATIVE, signs <= 0)]
    for kind, color, members in classes:
        chosen = ways[:, members.cpu().numpy()]
        ax.plot(chosen[:, :, 0], chosen[:, :, 1], color=color, ls=line, lw=0.9, alpha=0.85)
        ax.plot(*chosen[-1].T, color=color, marker=".", ms=5, ls="none")
        start = {"marker": "o", "ms": 6, "mfc": "none", "mew": 1.1, "ls": "none"}
        _once(ax, *chosen[0].T, color=color, label=f"{kind}: initial position", **start)
    if name:
        _once(ax, [], [], color=GREY, ls=line, label=name)
    if inputs is not None:
        _activation_lines(ax, inputs)
    ax.set_xlabel(labels[0])
    ax.set_ylabel(labels[1])
    ax.locator_params(axis="x", nbins=6)  # signed decimals are wide
    legend_above(ax, columns=2)
    return ax


def plot_function(
    x: Tensor,
    y: Tensor,
    curves: nn.Module | Mapping[str, nn.Module | tuple[Tensor, Tensor]],
    ax: Axes | None = None,
) -> Axes:
    """Draw data points and the functions that were fitted to them.

    Args:
        x: Inputs of the data, (n,) or (n, 1).
        y: Labels, (n,) or (n, 1).
        curves: The fitted model, or name to a model, or name to (inputs, outputs) of a function on
            a grid, each (N,) or (N, 1). Models are drawn a tenth beyond the data on both sides.
        ax: Where to draw; None: a new figure.

    Raises:
        TypeError: An argument is of another type.
        ValueError: The inputs are not one number each.

    Example:
        >>> import matplotlib; matplotlib.use("agg")
        >>> x = torch.linspace(-1, 1, 5)[:, None]
        >>> ax = plot_function(x, x.sin(), nn.Linear(1, 1))
        >>> [line.get_label() for line in ax.lines]
        ['model', 'data $(x_j, y_j)$']
    """
    if isinstance(x, nn.Module):
        raise TypeError("x must be the inputs of the data: call plot_function(x, y, model)")
    curves = _on_grids(x, {"model": curves} if isinstance(curves, nn.Module) else curves)
    ax = axes_or_new(ax)
    for (name, (grid, values)), color, line in zip(
        curves.items(), colors_of(curves), cycle(LINES), strict=False
    ):
        ax.plot(
            array(grid.reshape(-1)), array(values.reshape(-1)), color=color, ls=line, label=name
        )
    points: dict[str, Any] = {"color": "black", "marker": "o", "ls": "none", "ms": 5, "zorder": 3}
    ax.plot(array(x.reshape(-1)), array(y.reshape(-1)), label="data $(x_j, y_j)$", **points)
    ax.set_xlabel("input $x$")
    ax.set_ylabel("output $f(x)$")
    legend_above(ax, columns=min(len(curves) + 1, 3))
    return ax


def _recorded(recorder: Any, signs: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Return positions (T, m, D) and signs (m,) that a recorder of one cloud has."""
    if not hasattr(recorder, "snapshots"):
        raise TypeError(
            "positions must be a tensor (T, m, D) or a TrajectoryRecorder, got "
            f"{type(recorder).__name__}"
        )
    if len(recorder.names) != 1:
        raise ValueError(
            f"the recorder has the clouds {recorder.names}: draw one of them, "
            "plot_trajectories(recorder.positions(name))"
        )
    return recorder.positions(), recorder.signs() if signs is None else signs


@torch.no_grad()
def _on_grids(
    x: Tensor, curves: Mapping[str, nn.Module | tuple[Tensor, Tensor]]
) -> dict[str, tuple[Tensor, Tensor]]:
    """Return every curve as (inputs, outputs), models evaluated around the data."""
    if not isinstance(curves, Mapping):
        raise TypeError(
            'curves must be a model, or a dict such as {"fit": model} or {"fit": (grid, '
            f"outputs)}}, got {type(curves).__name__}"
        )
    if x.numel() != len(x):
        raise ValueError(f"x must be (n,) or (n, 1): one input each, got shape {tuple(x.shape)}")
    low, high = float(x.min()), float(x.max())
    beyond = 0.1 * (high - low)
    grid = torch.linspace(low - beyond, high + beyond, 401).to(x)[:, None]
    return {
        name: (grid, curve(grid)) if isinstance(curve, nn.Module) else curve
        for name, curve in curves.items()
    }


def _activation_lines(ax: Axes, inputs: Tensor) -> None:
    """Lines {(w, b): x_j w + b = 0}, or {w: <x_j, w> = 0} for (n, 2); they set no limits."""
    points = inputs.detach().cpu().double().reshape(len(inputs), -1)
    no_bias = points.shape[1] == 2
    if points.shape[1] == 1:
        points = torch.cat([points, torch.ones_like(points)], dim=1)
    if points.shape[1] != 2:
        raise ValueError(f"inputs must be (n,), (n, 1) or (n, 2), got {tuple(inputs.shape)}")
    zero = r"$\langle x_j, w\rangle = 0$" if no_bias else r"$\langle x_j, w\rangle + b = 0$"
    if zero in ax.get_legend_handles_labels()[1]:
        return
    for first, second in points.tolist():
        how: dict[str, Any] = {"color": GREY, "lw": 0.7, "zorder": 0}
        if second:
            ax.axline((0.0, 0.0), slope=-first / second, **how)  # a slope sets no limits
        elif first:
            ax.axvline(0.0, **how)
    ax.plot([], [], color=GREY, lw=0.7, label=zero)


def _once(ax: Axes, x: Any, y: Any, *, label: str, **how: Any) -> None:
    """Draw with a label, unless the legend has it already."""
    present = ax.get_legend_handles_labels()[1]
    ax.plot(x, y, label="_nolegend_" if label in present else label, **how)
