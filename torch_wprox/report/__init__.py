"""Every result and its numbers: reports of steps, of steps on a grid, and certificates.

A report says why a solver ended, what the step cost and what it reached. Nothing here computes: the
rooms above fill the fields, and users read, print and record them.
"""

from torch_wprox.report.certificate import Certificate
from torch_wprox.report.grid_step import JKOReport
from torch_wprox.report.progress import Progress
from torch_wprox.report.status import Status
from torch_wprox.report.step import (
    MEASURED,
    Bound,
    StepReport,
    TransportCounts,
    UnreadReport,
    unmoved,
)
from torch_wprox.report.table import Report, numbers_of

__all__ = [
    "MEASURED",
    "Bound",
    "Certificate",
    "JKOReport",
    "Progress",
    "Report",
    "Status",
    "StepReport",
    "TransportCounts",
    "UnreadReport",
    "numbers_of",
    "unmoved",
]
