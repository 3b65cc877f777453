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

GREY = "#999999"

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
    """Return a colour for each name: that of its descent, else one that no descent here has.

    Example:
        >>> colors_of(["Frobenius", "scale 1"]) == [PALETTE[1], PALETTE[0]]
        True
    """
    names = list(names)
    known = [next((DESCENTS[word] for word in DESCENTS if word in n.lower()), None) for n in names]
    free = cycle([color for color in PALETTE if color not in known] or PALETTE)
    return [next(free) if color is None else color for color in known]


def array(values: Any) -> Any:
    """Return a tensor as an array of the CPU, anything else as it is."""
    return values.detach().cpu().numpy() if isinstance(values, Tensor) else values
