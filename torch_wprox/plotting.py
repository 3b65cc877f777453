"""Figures: pure functions ``(..., ax=None) -> Axes``.

Every function draws into ``ax``, or into a new figure, and returns the axes it drew into.
matplotlib is imported when one of them is called and not before. The colours are those of Okabe and
Ito, which can be told apart with any colour vision; line styles and markers say the same again.

Example:
    >>> import matplotlib; matplotlib.use("agg")
    >>> ax = plot_trajectories(torch.randn(11, 6, 2), signs=torch.tensor([1.0, -1.0] * 3))
    >>> ax.get_xlabel(), ax.get_ylabel()
    ('weight $w$', 'bias $b$')
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from torch_wprox.report import StepReport

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from torch_wprox.certificate import Certificate

__all__ = [
    "NEGATIVE",
    "PALETTE",
    "POSITIVE",
    "legend_above",
    "plot_certificates",
    "plot_curves",
    "plot_descent",
    "plot_function",
    "plot_trajectories",
    "style",
]

PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Blue, vermilion, green, purple, orange, sky blue, black (Okabe and Ito 2008)."""
NEGATIVE, POSITIVE = PALETTE[0], PALETTE[1]
"""Colours of neurons with negative and with positive output weight."""

_GREY = "#999999"


@contextmanager
def style() -> Iterator[None]:
    """Give all figures one look; a context manager around making and saving them."""
    import matplotlib
    from cycler import cycler

    settings: Any = {
        "axes.prop_cycle": cycler(color=PALETTE),
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "axes.axisbelow": True,
        "axes.titlesize": "medium",
        "grid.color": "#e6e6e6",
        "grid.linewidth": 0.6,
        "legend.frameon": False,
        "legend.fontsize": "small",
        "lines.linewidth": 1.6,
        "figure.constrained_layout.use": True,
        "figure.dpi": 100,
        "savefig.dpi": 110,
        "font.size": 10,
        "image.cmap": "cividis",
    }
    with matplotlib.rc_context(settings):
        yield


def plot_descent(
    runs: Mapping[str, Sequence[StepReport]],
    ax: Axes | None = None,
    *,
    permuted: bool = True,
) -> Axes:
    """Draw loss, distances between iterates and permuted fraction of several descents.

    Solid: F(W_t). Dashed and dotted: W2^2 and Frobenius^2 between W_{t-1} and W_t. Thick and pale,
    on a second axis to the right: the fraction of particles that the optimal assignment exchanges.

    Args:
        runs: Name of a descent to the reports of its steps; one colour each.
        ax: Where to draw; None: a new figure.
        permuted: Whether to draw the permuted fraction.

    Returns:
        The axes; the second axis, if drawn, is ``ax.figure.axes[-1]``.

    Raises:
        ValueError: ``runs`` is empty.

    Source: the figures of the note (Mercklé 2024), section 3.
    """
    if not any(runs.values()):
        raise ValueError("runs must hold the reports of at least one step")
    from matplotlib.ticker import MaxNLocator

    ax = _axes(ax)
    fraction = ax.twinx() if permuted else None
    drawn: list[Any] = []
    for (name, reports), color in zip(runs.items(), _colors(), strict=False):
        steps = range(1, len(reports) + 1)
        losses = [reports[0].loss_before, *(r.loss_after for r in reports)]
        label = f"{name}: loss $F(W_t)$"
        drawn += ax.plot(range(len(losses)), losses, color=color, marker="o", ms=3, label=label)
        for kind, symbol, line in (
            ("wasserstein_sq", r"$W_2^2(W_t, W_{t-1})$", "--"),
            ("frobenius_sq", r"$\frac{1}{m}|W_t - W_{t-1}|_F^2$", ":"),
        ):
            values = [_positive(getattr(r, kind)) for r in reports]
            drawn += ax.plot(steps, values, color=color, ls=line, label=f"{name}: {symbol}")
        if fraction is not None:
            values = [_number(r.permuted_fraction) for r in reports]
            label = f"{name}: permuted fraction"
            drawn += fraction.plot(steps, values, color=color, lw=6, alpha=0.25, label=label)
    ax.set_yscale("log")
    # Distances that are rounding must not set the scale.
    largest = max(r.loss_before for reports in runs.values() for r in reports)
    ax.set_ylim(bottom=max(ax.get_ylim()[0], 1e-12 * largest))
    ax.set_xlabel("step $t$")
    ax.set_ylabel("loss; squared distance between iterates")
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    if fraction is not None:
        fraction.set_ylim(-0.02, 1.02)
        fraction.set_ylabel("permuted fraction")
        fraction.grid(False)
        fraction.spines["right"].set_visible(True)
        ax.set_zorder(fraction.get_zorder() + 1)  # the thin lines lie on top of the thick ones
        ax.patch.set_visible(False)
    legend_above(ax, columns=len(runs), handles=drawn)
    return ax


def plot_curves(
    curves: Mapping[str, tuple[Sequence[float] | Tensor, Sequence[float] | Tensor]],
    ax: Axes | None = None,
    *,
    xlabel: str = "closure evaluations",
    ylabel: str = "loss $F$",
    log: bool = True,
) -> Axes:
    """Draw curves by name: loss against evaluations, error against gamma and the like.

    Args:
        curves: Name to (x, y), each (T,).
        ax: Where to draw; None: a new figure.
        xlabel: Of the horizontal axis.
        ylabel: Of the vertical axis.
        log: Whether the vertical axis is logarithmic.
    """
    ax = _axes(ax)
    lines = ("-", "--", "-.", ":")
    for index, ((name, (x, y)), color) in enumerate(zip(curves.items(), _colors(), strict=False)):
        ax.plot(_array(x), _array(y), color=color, ls=lines[index % len(lines)], label=name)
    ax.set_yscale("log" if log else "linear")
    ax.set_xlabel(xlabel)
    ax.set_ylabel(ylabel)
    legend_above(ax, columns=min(len(curves), 3))
    return ax


def plot_bands(
    samples: Mapping[str, tuple[Sequence[float] | Tensor, Any]],
    ax: Axes | None = None,
    *,
    xlabel: str,
    ylabel: str,
    log: str = "",
    marker: str = "",
) -> Axes:
    """Draw the median over runs by name, in a band from the first to the third quartile.

    Args:
        samples: Name to (x, y), (T,) and (runs, T).
        ax: Where to draw; None: a new figure.
        xlabel: Of the horizontal axis.
        ylabel: Of the vertical axis.
        log: Which axes are logarithmic: "", "x", "y" or "xy".
        marker: Of the medians, as in matplotlib.
    """
    import numpy as np

    ax = _axes(ax)
    lines = ("-", "--", "-.", ":")
    for index, ((name, (x, y)), color) in enumerate(zip(samples.items(), _colors(), strict=False)):
        low, middle, high = np.quantile(np.asarray(_array(y), dtype=float), [0.25, 0.5, 0.75], 0)
        line: dict[str, Any] = {
            "color": color,
            "ls": lines[index % len(lines)],
            "marker": marker or None,
        }
        ax.plot(_array(x), middle, label=name, ms=4, **line)
        ax.fill_between(_array(x), low, high, color=color, alpha=0.18, lw=0)
    ax.set_xscale("log" if "x" in log else "linear")
    ax.set_yscale("log" if "y" in log else "linear")
    ax.set_xlabel(xlabel)
    ax.set_ylabel(ylabel)
    low, high = ax.get_ylim()
    if "y" in log and high < 30 * low:  # else labels like 4 x 10^-1 take the room
        ax.yaxis.set_minor_formatter("{x:.2g}")
        ax.yaxis.set_major_formatter("{x:.2g}")
    if all(isinstance(x, range) for x, _ in samples.values()):
        ax.locator_params(axis="x", integer=True)
    legend_above(ax, columns=min(len(samples), 3))
    return ax


def plot_certificates(
    runs: Mapping[str, tuple[Sequence[float], Sequence[Certificate | StepReport]]],
    ax: Axes | None = None,
    *,
    xlabel: str = "step $t$",
    ylabel: str = "objective $P$",
) -> Axes:
    """Draw objectives, each with the band down to its lower bound: the minimum lies in the band.

    A bound that is not proved at every point is called estimated in the legend.

    Args:
        runs: Name to (x, certificates), one for each x; reports of globally solved steps will do.
        ax: Where to draw; None: a new figure.
        xlabel: Of the horizontal axis.
        ylabel: Of the vertical axis, which is logarithmic.

    Raises:
        ValueError: A report has no lower bound.
    """
    ax = _axes(ax)
    markers, kinds = ("o", "s", "^", "v"), set()
    for index, ((name, (x, found)), color) in enumerate(zip(runs.items(), _colors(), strict=False)):
        bounds = [c.lower_bound for c in found]
        if any(bound is None for bound in bounds):
            raise ValueError(f"a report of {name!r} has no lower bound: use certify")
        values = [c.objective for c in found]
        marker = markers[index % len(markers)]
        ax.plot(x, values, color=color, marker=marker, ms=4, label=name)
        low = [bound if bound is not None and bound > 0 else float("nan") for bound in bounds]
        ax.fill_between(x, low, values, color=color, alpha=0.18, lw=0)
        ax.plot(x, low, color=color, lw=0.8)
        kinds.add("proved" if all(c.certified for c in found) else "estimated")
    for kind in sorted(kinds):
        ax.fill_between([], [], [], color=_GREY, alpha=0.3, lw=0, label=f"to the {kind} bound")
    ax.set_yscale("log")
    ax.set_xlabel(xlabel)
    ax.set_ylabel(ylabel)
    legend_above(ax, columns=2)
    return ax


def plot_trajectories(
    positions: Tensor,
    signs: Tensor | None = None,
    ax: Axes | None = None,
    *,
    inputs: Tensor | None = None,
    coordinates: tuple[int, int] = (0, 1),
    labels: tuple[str, str] = ("weight $w$", "bias $b$"),
    line: str = "-",
    name: str = "",
) -> Axes:
    """Draw the way of every particle, with a circle where it began.

    Negative neurons are blue, positive ones vermilion. A neuron changes the data that it activates
    where it crosses one of the grey lines <x_j, w> + b = 0. Call it twice on one axes, with two
    values of ``line``, to compare two descents.

    Args:
        positions: (T, m, D).
        signs: (m,), None where there are none: all neurons in one colour.
        ax: Where to draw; None: a new figure.
        inputs: Data x_j, (n,) or (n, 1): draws their activation lines, for coordinates (w, b); or
            (n, 2) for neurons without a bias: the lines <x_j, w> = 0.
        coordinates: The two columns of a particle to draw.
        labels: Of the axes.
        line: Line style of the ways.
        name: Of the descent, for the legend.

    Raises:
        ValueError: ``positions`` is not (T, m, D) with D >= 2, or ``signs`` is not (m,).

    Source: the figures of the note (Mercklé 2024), sections 2 and 3.
    """
    if positions.ndim != 3 or positions.shape[2] < 2:
        raise ValueError(
            f"positions must be (T, m, D) with D >= 2, got shape {tuple(positions.shape)}"
        )
    m = positions.shape[1]
    if signs is not None and signs.shape != (m,):
        raise ValueError(f"signs must be ({m},), got shape {tuple(signs.shape)}")
    ax = _axes(ax)
    ways = _array(positions[:, :, list(coordinates)])
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
        _once(ax, [], [], color=_GREY, ls=line, label=name)
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
    curves: Mapping[str, tuple[Tensor, Tensor]],
    ax: Axes | None = None,
) -> Axes:
    """Draw data points and the functions that were fitted to them.

    Args:
        x: Inputs of the data, (n,) or (n, 1).
        y: Labels, (n,) or (n, 1).
        curves: Name to (inputs, outputs) of a function on a grid, each (N,) or (N, 1).
        ax: Where to draw; None: a new figure.
    """
    ax = _axes(ax)
    for (name, (grid, values)), color, line in zip(
        curves.items(), _colors(), ("-", "--", "-.", ":") * 3, strict=False
    ):
        ax.plot(
            _array(grid.reshape(-1)), _array(values.reshape(-1)), color=color, ls=line, label=name
        )
    points: dict[str, Any] = {"color": "black", "marker": "o", "ls": "none", "ms": 5, "zorder": 3}
    ax.plot(_array(x.reshape(-1)), _array(y.reshape(-1)), label="data $(x_j, y_j)$", **points)
    ax.set_xlabel("input $x$")
    ax.set_ylabel("output $f(x)$")
    legend_above(ax, columns=min(len(curves) + 1, 3))
    return ax


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
        how: dict[str, Any] = {"color": _GREY, "lw": 0.7, "zorder": 0}
        if second:
            ax.axline((0.0, 0.0), slope=-first / second, **how)  # a slope sets no limits
        elif first:
            ax.axvline(0.0, **how)
    ax.plot([], [], color=_GREY, lw=0.7, label=zero)


def _axes(ax: Axes | None) -> Axes:
    if ax is not None:
        return ax
    from matplotlib import pyplot

    return pyplot.figure().add_subplot()


def legend_above(ax: Axes, *, columns: int, handles: Sequence[Any] | None = None) -> None:
    """Put one legend above the axes, where it hides nothing.

    Args:
        ax: The axes.
        columns: Of the legend.
        handles: What it names; None: all that has a label.
    """
    handles = ax.get_legend_handles_labels()[0] if handles is None else handles
    corner = (0.0, 1.0)
    ax.legend(
        handles=handles, ncols=columns, loc="lower left", bbox_to_anchor=corner, borderaxespad=0.2
    )


def _once(ax: Axes, x: Any, y: Any, *, label: str, **how: Any) -> None:
    """Draw with a label, unless the legend has it already."""
    present = ax.get_legend_handles_labels()[1]
    ax.plot(x, y, label="_nolegend_" if label in present else label, **how)


def _colors() -> Iterator[str]:
    while True:
        yield from PALETTE


def _array(values: Any) -> Any:
    return values.detach().cpu().numpy() if isinstance(values, Tensor) else values


def _number(value: float | None) -> float:
    return float("nan") if value is None else value


def _positive(value: float | None) -> float:
    """A logarithmic axis leaves a gap where nothing moved."""
    return value if value is not None and value > 0 else float("nan")
