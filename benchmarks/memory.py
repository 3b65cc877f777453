"""Peak memory of a process, and runs in a process of their own."""

from __future__ import annotations

import multiprocessing
import resource
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any


def peak_kib() -> int:
    """Return the peak of resident memory of this process.

    On Linux not by ``ru_maxrss``, which a process inherits from the one that started it.
    """
    status = Path("/proc/self/status")
    if status.exists():
        (line,) = (x for x in status.read_text().splitlines() if x.startswith("VmHWM"))
        return int(line.split()[1])
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def in_a_child(function: Callable[[Any], Any], argument: Any) -> Any:
    """Return ``function(argument)``, computed in a fresh process: its peak of memory is its own.

    None if the process was killed. Both must be picklable.
    """
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe(duplex=False)
    process = context.Process(target=_send, args=(function, argument, there))
    process.start()
    there.close()
    try:
        return here.recv()
    except EOFError:
        return None
    finally:
        process.join()


def _send(function: Callable[[Any], Any], argument: Any, pipe: Connection) -> None:
    pipe.send(function(argument))
