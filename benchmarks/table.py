"""What the benchmarks share: the machine in one line, markdown tables, medians with quartiles."""

from __future__ import annotations

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
