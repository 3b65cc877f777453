"""The numbers of a report as one row of a table."""

from __future__ import annotations

from dataclasses import asdict, fields
from typing import Any

from torch_wprox.report.grid_step import JKOReport
from torch_wprox.report.step import StepReport

Report = StepReport | JKOReport


def numbers_of(report: Report) -> dict[str, Any]:
    """Return the scalars of a report, and its transport counts, as a flat dict.

    Example:
        >>> from torch_wprox.report import Status, numbers_of, unmoved
        >>> numbers = numbers_of(unmoved(1.0, Status.NO_MOVE, 1))
        >>> numbers["status"], numbers["loss_after"], numbers["transport_solved"]
        ('no_move', 1.0, 0)
    """
    values = {f.name: getattr(report, f.name) for f in fields(report)}
    numbers = {n: v for n, v in values.items() if v is None or isinstance(v, bool | int | float)}
    numbers.pop("assignment", None)
    counts = asdict(report.transport) if isinstance(report, StepReport) else {}
    return {
        "status": str(report.status),
        **numbers,
        **{f"transport_{name}": count for name, count in counts.items()},
    }
