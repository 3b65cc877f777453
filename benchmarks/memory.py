"""Peak memory of a process."""

from __future__ import annotations

import resource
from pathlib import Path


def peak_kib() -> int:
    """Return the peak of resident memory of this process.

    On Linux not by ``ru_maxrss``, which a process inherits from the one that started it.
    """
    status = Path("/proc/self/status")
    if status.exists():
        (line,) = (x for x in status.read_text().splitlines() if x.startswith("VmHWM"))
        return int(line.split()[1])
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
