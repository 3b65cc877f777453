"""What an example leaves behind: a table on the screen, a CSV, figures, an animation."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from matplotlib import pyplot as plt
from matplotlib.animation import FuncAnimation, PillowWriter
from matplotlib.axes import Axes
from PIL import Image, ImageSequence


def tabulate(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Print the table and write it."""
    print_table(rows)
    write_csv(path, rows)


def print_table(rows: Sequence[dict[str, Any]]) -> None:
    """Print one line per row, numbers with four significant digits."""
    cells = [[_cell(value, 4) for value in row.values()] for row in rows]
    heads = list(rows[0])
    widths = [max(len(row[i]) for row in [heads, *cells]) for i in range(len(heads))]
    for row in [heads, ["-" * width for width in widths], *cells]:
        print("  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)))


def medians(rows: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """Return one row: names as in the first one, the median of every float; no integers (seeds)."""
    rows = list(rows)
    kept = {name: value for name, value in rows[0].items() if not isinstance(value, int)}
    return {
        name: median(row[name] for row in rows) if isinstance(value, float) else value
        for name, value in kept.items()
    }


def save(ax: Axes, path: Path, size: tuple[float, float]) -> None:
    """Write the figure of ``ax`` as a PNG, ``size`` in inches, and close it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure = ax.figure.figure
    figure.set_size_inches(*size)
    figure.savefig(path)
    plt.close(figure)
    print(f"wrote {path}")


def save_gif(animation: FuncAnimation, path: Path, size: tuple[float, float], fps: int) -> None:
    """Write the animation, ``size`` in inches, in 48 colours to keep it small; close its figure."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure = animation._fig  # type: ignore[attr-defined]
    figure.set_size_inches(*size)
    animation.save(path, writer=PillowWriter(fps=fps), dpi=80)
    plt.close(figure)
    with Image.open(path) as frames:
        palette = [f.convert("RGB").quantize(48) for f in ImageSequence.Iterator(frames)]
    how: dict[str, Any] = {"duration": 1000 // fps, "loop": 0, "optimize": True}
    palette[0].save(path, save_all=True, append_images=palette[1:], **how)
    print(f"wrote {path}")


def write_csv(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Write one line per row; numbers with six significant digits."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        for row in rows:
            writer.writerow({name: _cell(value, 6) for name, value in row.items()})


def _cell(value: Any, digits: int) -> str:
    if isinstance(value, float):
        return f"{value:.{digits}g}"
    return "" if value is None else str(value)
