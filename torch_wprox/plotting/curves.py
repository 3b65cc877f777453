"""Numbers over steps, evaluations and step sizes: losses, distances, bounds."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import cycle
from typing import TYPE_CHECKING, Any

from torch import Tensor

from torch_wprox.plotting.look import (
    GREY,
    LINES,
    array,
    axes_or_new,
    colors_of,
    label_log_axis,
    legend_above,
)
from torch_wprox.report import StepReport

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from torch_wprox.recording import TrajectoryRecorder
    from torch_wprox.report import Certificate


if TYPE_CHECKING:
    Descent = Sequence[StepReport] | Sequence[float] | Tensor | TrajectoryRecorder


def plot_descent(
    runs: Mapping[str, Descent],
    ax: Axes | None = None,
    *,
    permuted: bool = True,
) -> Axes:
    """Draw loss, distances between iterates and permuted fraction of several descents.

    Solid: F(W_t). Dashed and dotted: W2^2 and Frobenius^2 between W_{t-1} and W_t. Thick and pale,
    on a second axis to the right: the fraction of particles that the optimal assignment exchanges.
    A descent given by its losses alone, such as a run of Adam, has the solid line only.

    Args:
        runs: Name of a descent to the reports of its steps, to a
            :class:`~torch_wprox.recording.TrajectoryRecorder` that has them, or to its losses, the
            first one before the first step. One colour each.
        ax: Where to draw; None: a new figure.
        permuted: Whether to draw the permuted fraction.

    Returns:
        The axes; the second axis, if drawn, is ``ax.figure.axes[-1]``.

    Raises:
        ValueError: ``runs`` is empty.
        TypeError: A descent is none of the above.

    Example:
        >>> import matplotlib; matplotlib.use("agg")
        >>> ax = plot_descent({"Adam": [1.0, 0.5, 0.25]})
        >>> [line.get_label() for line in ax.lines]
        ['Adam: loss $F(W_t)$']

    Source: the figures of the note (Mercklé 2024), section 3.
    """
    if not isinstance(runs, Mapping):
        raise TypeError(
            f'runs must be a dict such as {{"Adam": losses}} or {{"prox": reports}}, got '
            f"{type(runs).__name__}"
        )
    descents = {name: _losses_and_reports(name, run) for name, run in runs.items()}
    if not any(losses for losses, _ in descents.values()):
        raise ValueError("runs must hold the reports or the losses of at least one step")
    from matplotlib.ticker import MaxNLocator

    ax = axes_or_new(ax)
    permuted = permuted and any(reports for _, reports in descents.values())
    fraction = ax.twinx() if permuted else None
    drawn: list[Any] = []
    for (name, (losses, reports)), color in zip(descents.items(), colors_of(descents), strict=True):
        steps = range(1, len(reports) + 1)
        label = f"{name}: loss $F(W_t)$"
        drawn += ax.plot(range(len(losses)), losses, color=color, marker="o", ms=3, label=label)
        for kind, symbol, line in (
            ()
            if not reports
            else (
                ("wasserstein_sq", r"$W_2^2(W_t, W_{t-1})$", "--"),
                ("frobenius_sq", r"$\frac{1}{m}|W_t - W_{t-1}|_F^2$", ":"),
            )
        ):
            values = [_positive(getattr(r, kind)) for r in reports]
            drawn += ax.plot(steps, values, color=color, ls=line, label=f"{name}: {symbol}")
        if fraction is not None and reports:
            values = [_number(r.permuted_fraction) for r in reports]
            label = f"{name}: permuted fraction"
            drawn += fraction.plot(steps, values, color=color, lw=6, alpha=0.25, label=label)
    ax.set_yscale("log")
    # Distances that are rounding must not set the scale.
    largest = max(loss for losses, _ in descents.values() for loss in losses)
    ax.set_ylim(bottom=max(ax.get_ylim()[0], 1e-12 * largest))
    ax.set_xlabel("step $t$")
    distances = any(reports for _, reports in descents.values())
    ax.set_ylabel("loss; squared distance between iterates" if distances else "loss")
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

    Example:
        >>> import matplotlib; matplotlib.use("agg")
        >>> ax = plot_curves({"error": ([1, 2, 3], [0.1, 0.01, 0.001])}, xlabel="step")
        >>> ax.get_xlabel(), ax.get_yscale()
        ('step', 'log')
    """
    ax = axes_or_new(ax)
    for (name, (x, y)), color, line in zip(
        curves.items(), colors_of(curves), cycle(LINES), strict=False
    ):
        ax.plot(array(x), array(y), color=color, ls=line, label=name)
    ax.set_yscale("log" if log else "linear")
    label_log_axis(ax)
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
        samples: Name to (x, y), (T,) and (runs, T); NaN where a run has no value.
        ax: Where to draw; None: a new figure.
        xlabel: Of the horizontal axis.
        ylabel: Of the vertical axis.
        log: Which axes are logarithmic: "", "x", "y" or "xy".
        marker: Of the medians, as in matplotlib.

    Example:
        >>> import matplotlib; matplotlib.use("agg")
        >>> runs = [[1.0, 0.5], [1.0, 0.25], [1.0, 0.125]]  # three runs of two steps
        >>> ax = plot_bands({"prox": (range(2), runs)}, xlabel="step", ylabel="loss")
        >>> ax.lines[0].get_ydata().tolist()
        [1.0, 0.25]
    """
    import numpy as np

    ax = axes_or_new(ax)
    for (name, (x, y)), color, line in zip(
        samples.items(), colors_of(samples), cycle(LINES), strict=False
    ):
        low, middle, high = np.nanquantile(np.asarray(array(y), dtype=float), [0.25, 0.5, 0.75], 0)
        how: dict[str, Any] = {"color": color, "ls": line, "marker": marker or None}
        ax.plot(array(x), middle, label=name, ms=4, **how)
        ax.fill_between(array(x), low, high, color=color, alpha=0.18, lw=0)
    ax.set_xscale("log" if "x" in log else "linear")
    ax.set_yscale("log" if "y" in log else "linear")
    ax.set_xlabel(xlabel)
    ax.set_ylabel(ylabel)
    label_log_axis(ax)
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

    Example:
        >>> import matplotlib; matplotlib.use("agg")
        >>> from torch_wprox import Certificate
        >>> found = [Certificate(2.0, 1.0, True, 9), Certificate(1.5, 1.2, True, 9)]
        >>> ax = plot_certificates({"prox": ([1, 2], found)})
        >>> [text.get_text() for text in ax.get_legend().get_texts()]
        ['prox', 'to the proved bound']
    """
    ax = axes_or_new(ax)
    markers, kinds = ("o", "s", "^", "v"), set()
    for index, ((name, (x, found)), color) in enumerate(
        zip(runs.items(), colors_of(runs), strict=True)
    ):
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
        ax.fill_between([], [], [], color=GREY, alpha=0.3, lw=0, label=f"to the {kind} bound")
    ax.set_yscale("log")
    label_log_axis(ax)
    ax.set_xlabel(xlabel)
    ax.set_ylabel(ylabel)
    legend_above(ax, columns=2)
    return ax


def _losses_and_reports(name: str, run: Any) -> tuple[list[float], list[StepReport]]:
    """Return the losses of a descent, from before its first step on, and its reports if any."""
    if callable(recorded := getattr(run, "reports", None)):
        run = recorded()
    if not isinstance(run, Iterable):
        run = [run]
    reports = list(run.tolist() if isinstance(run, Tensor) else run)
    if all(isinstance(r, StepReport) for r in reports):
        return [*(r.loss_before for r in reports[:1]), *(r.loss_after for r in reports)], reports
    try:
        return [float(loss) for loss in reports], []
    except (TypeError, ValueError):
        kinds = sorted({type(r).__name__ for r in reports})
        raise TypeError(
            f"runs[{name!r}] must be the reports of its steps (opt.report after each), a "
            f"TrajectoryRecorder, or its losses as numbers, got a sequence of {', '.join(kinds)}"
        ) from None


def _number(value: float | None) -> float:
    return float("nan") if value is None else value


def _positive(value: float | None) -> float:
    """A logarithmic axis leaves a gap where nothing moved."""
    return value if value is not None and value > 0 else float("nan")
