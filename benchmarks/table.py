"""What the benchmarks share: the machine in one line, tables (printed and as CSV), quartiles.

A benchmark calls `add_arguments` on its parser and fills a `Table`. With ``--csv PATH`` the table
is also written to that file, from where a page of the documentation includes it.
"""

from __future__ import annotations

import argparse
import csv
import platform
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import torch


def machine(dtype: str = "float64") -> str:
    """Return CPU model, number of cores, threads and versions; nothing that names the host."""
    model = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [line for line in info.read_text().splitlines() if line.startswith("model name")]
        model = names[0].split(":", 1)[1].strip() if names else model
        cores = sum(line.startswith("processor") for line in info.read_text().splitlines())
        model = f"{model}, {cores} cores"
    threads = torch.get_num_threads()
    return f"{model}, {threads} thread(s) used, torch {torch.__version__}, {dtype}"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add ``--csv`` and ``--keep``, which `Table` reads."""
    parser.add_argument(
        "--csv",
        type=Path,
        metavar="PATH",
        help="also write the table here, for the docs: docs/benchmarks/NAME.csv",
    )
    parser.add_argument(
        "--keep", action="store_true", help="keep the rows of the CSV file that this run lacks"
    )


class Table:
    """A table that is printed as markdown row by row and, with ``--csv``, written as CSV.

    The file is complete after every row: a run that is stopped leaves what it has measured.

    Args:
        columns: the head.
        args: parsed arguments of `add_arguments`; None: print only.
        part: for a benchmark with several tables, the name of this one: ``--csv docs/maps.csv``
            and part "small" give ``docs/maps_small.csv``.
        labels: how many cells at the beginning of a row say which row it is. With ``--keep`` a row
            takes the place of the row of the file with the same labels.

    Raises:
        ValueError: with ``--keep``, where the file has other columns.
    """

    def __init__(
        self,
        columns: Sequence[str],
        args: argparse.Namespace | None = None,
        part: str = "",
        labels: int = 1,
    ) -> None:
        self.columns = list(columns)
        self.path: Path | None = None if args is None else args.csv
        if self.path is not None and part:
            self.path = self.path.with_stem(f"{self.path.stem}_{part}")
        self._labels = labels
        self._rows: dict[tuple[str, ...], list[str]] = {}
        if self.path is not None and args is not None and args.keep and self.path.exists():
            head, *rows = read(self.path)
            if head != self.columns:
                raise ValueError(
                    f"--keep: {self.path} has the columns {head}, not {self.columns}; "
                    "write it anew without --keep"
                )
            self._rows = {tuple(cells[:labels]): cells for cells in rows}
        print(header(self.columns), flush=True)

    def add(self, cells: Iterable[object]) -> None:
        """Print one row, and write the file."""
        found = list(map(str, cells))
        if len(found) != len(self.columns):
            raise ValueError(f"{len(found)} cells for {len(self.columns)} columns: {found}")
        print(row(found), flush=True)
        self._rows[tuple(found[: self._labels])] = found
        if self.path is not None:
            write(self.path, [self.columns, *self._rows.values()])


def read(path: Path) -> list[list[str]]:
    """Return the rows of a CSV file, the head first."""
    with path.open(newline="") as file:
        return list(csv.reader(file))


def write(path: Path, rows: Iterable[Sequence[str]]) -> None:
    """Write a CSV file, the head first."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows(rows)


def row(cells: Iterable[object]) -> str:
    """Return one line of a markdown table."""
    return "| " + " | ".join(map(str, cells)) + " |"


def header(names: Sequence[str]) -> str:
    """Return the head of a markdown table."""
    return row(names) + "\n|" + "---|" * len(names)


def quartiles(values: Sequence[float]) -> str:
    """Return the median with the quartiles, as ``0.2424 (0.2391, 0.2502)``."""
    if len(values) == 1:
        return short(values[0])
    low, middle, high = np.quantile(values, [0.25, 0.5, 0.75])
    return f"{short(middle)} ({short(low)}, {short(high)})"


def short(value: float) -> str:
    """Return four digits."""
    return f"{value:.4g}"
