"""The look of all figures: colours, line styles, axes and their legend."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import cycle
from typing import TYPE_CHECKING, Any

from torch import Tensor

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Blue, vermilion, green, purple, orange, sky blue, black (Okabe and Ito 2008)."""
NEGATIVE, POSITIVE = PALETTE[0], PALETTE[1]
"""Colours of neurons with negative and with positive output weight."""

GREY, BROWN, OLIVE = "#999999", "#8C510A", "#7A7A00"

DESCENTS = {
    "global": PALETTE[2],
    "adam": PALETTE[3],
    "lbfgs": PALETTE[6],
    "l-bfgs": PALETTE[6],
    "frobenius": PALETTE[1],
    "wasserstein": PALETTE[0],
    "emd": PALETTE[0],
    "gradient descent": PALETTE[4],
    "explicit": PALETTE[4],
    "sgd": PALETTE[4],
    "ssbroyden": OLIVE,
    "bfgs": PALETTE[0],
    "sinkhorn": PALETTE[5],
    "entropic": PALETTE[5],
    "sliced": BROWN,
    "debiased": BROWN,
}
"""One colour for each kind of descent in all figures; the first word found in a name counts."""
LINES: tuple[Any, ...] = ("-", "--", "-.", ":", (0, (6, 1)), (0, (3, 1, 1, 1, 1, 1)), (0, (1, 2)))
"""As many line styles as colours, so that no two curves of a figure share one."""


@contextmanager
def style() -> Iterator[None]:
    """Give all figures one look; a context manager around making and saving them.

    Example:
        >>> import matplotlib; matplotlib.use("agg")
        >>> from matplotlib import pyplot
        >>> with style():
        ...     ax = pyplot.figure().add_subplot()
        >>> ax.spines["top"].get_visible()
        False
    """
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


def axes_or_new(ax: Axes | None) -> Axes:
    """Return ``ax``, or the axes of a new figure."""
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

    Example:
        >>> import matplotlib; matplotlib.use("agg")
        >>> from matplotlib import pyplot
        >>> ax = pyplot.figure().add_subplot()
        >>> line = ax.plot([0, 1], label="loss")
        >>> legend_above(ax, columns=1)
        >>> [text.get_text() for text in ax.get_legend().get_texts()]
        ['loss']
    """
    handles = ax.get_legend_handles_labels()[0] if handles is None else handles
    corner = (0.0, 1.0)
    ax.legend(
        handles=handles, ncols=columns, loc="lower left", bbox_to_anchor=corner, borderaxespad=0.2
    )


def colors_of(names: Iterable[str]) -> list[str]:
    """Return a colour for each name: that of its descent, else one that no other name here has.

    Beside descents, other names take colours that no descent has anywhere.

    Example:
        >>> colors_of(["Frobenius", "Adam", "other"]) == [PALETTE[1], PALETTE[3], GREY]
        True
        >>> colors_of(["scale 1", "scale 2"]) == [PALETTE[0], PALETTE[1]]
        True
    """
    names = list(names)
    known = [next((DESCENTS[word] for word in DESCENTS if word in n.lower()), None) for n in names]
    free = cycle((GREY, OLIVE, BROWN) if any(known) else PALETTE)
    return [next(free) if color is None else color for color in known]


def label_log_axis(ax: Axes) -> None:
    """Write 0.2 and 0.5 where a logarithmic axis would say 2 x 10^-1: if it spans few decades."""
    from matplotlib.ticker import LogLocator

    low, high = ax.get_ylim()
    if ax.get_yscale() == "log" and high < 100 * low:
        ax.yaxis.set_minor_locator(LogLocator(subs=(2, 5)))
        ax.yaxis.set_minor_formatter("{x:.2g}")
        ax.yaxis.set_major_formatter("{x:.2g}")


def array(values: Any) -> Any:
    """Return a tensor as an array of the CPU, anything else as it is."""
    return values.detach().cpu().numpy() if isinstance(values, Tensor) else values
