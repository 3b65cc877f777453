"""What a long step tells while it runs, and what may end it early: a callback, a time budget."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable
from typing import Any

import torch

from torch_wprox.closure.ranks import Agree, alone
from torch_wprox.report import Progress

LOGGER = logging.getLogger("torch_wprox")

Callback = Callable[[Progress], Any]
"""Called as a step goes on; a true answer ends the step at its best point."""


class Watch:
    """Tells how far a step is, and whether it has to end.

    Args:
        callback: Called with a :class:`~torch_wprox.Progress`; a true answer ends the step.
        seconds: Time budget, counted from the construction of the watch; None: no limit.
        agree: Makes a tensor the same on all ranks: the first rank decides for all.

    Attributes:
        has_ended: Whether the step has to end.
        is_needed: Whether anyone listens: else nothing is told.
        interrupt: Ctrl-C that came during the step, to go on once the best point is kept.
    """

    def __init__(
        self,
        callback: Callback | None = None,
        seconds: float | None = None,
        agree: Agree = alone,
    ) -> None:
        self._callback, self._seconds, self._agree = callback, seconds, agree
        self._start = time.perf_counter()
        self._logs = LOGGER.isEnabledFor(logging.DEBUG)
        self._decides = callback is not None or seconds is not None
        self.is_needed = self._decides or self._logs
        self.has_ended = False
        self.interrupt: KeyboardInterrupt | None = None

    @property
    def seconds(self) -> float:
        """Time since the step began."""
        return time.perf_counter() - self._start

    @property
    def seconds_left(self) -> float:
        """Time until the step has to end, ``inf`` without a limit; 0 once it has to."""
        if self.has_ended:
            return 0.0
        return math.inf if self._seconds is None else max(0.0, self._seconds - self.seconds)

    @property
    def keeps_best_on_interrupt(self) -> bool:
        """Whether Ctrl-C should leave the best point so far instead of the anchor."""
        return bool(getattr(self._callback, "keep_best_on_interrupt", False))

    def note(
        self,
        evaluation: int,
        objective: float,
        best: float,
        residual: float,
        lower_bound: float | None = None,
    ) -> bool:
        """Tell the callback and the log; return whether the step has to end.

        Args:
            evaluation: Number of evaluations so far.
            objective: Its value at the last one.
            best: The lowest value so far.
            residual: 2-norm of the gradient there, ``math.nan`` if not known.
            lower_bound: The bound so far, None without one.
        """
        if not self.is_needed:
            return False
        progress = Progress(evaluation, objective, best, residual, lower_bound, self.seconds)
        if self._logs:
            LOGGER.debug("%s", progress)
        if self._decides:
            wants = self._callback is not None and bool(self._callback(progress))
            late = self._seconds is not None and progress.seconds >= self._seconds
            self.has_ended = self.has_ended or self._agreed(wants or late)
        return self.has_ended

    def take_interrupt(self, interrupt: KeyboardInterrupt) -> None:
        """End the step at its best point if the callback has ``keep_best_on_interrupt``.

        Raises:
            KeyboardInterrupt: It has not: the step is undone, and the interrupt goes on.
        """
        if not self.keeps_best_on_interrupt:
            raise interrupt
        self.interrupt, self.has_ended = interrupt, True

    def is_over(self) -> bool:
        """Return whether the step has to end, by the clock or because the callback said so."""
        late = self._seconds is not None and self.seconds >= self._seconds
        if self._decides:
            self.has_ended = self.has_ended or self._agreed(late)
        return self.has_ended

    def _agreed(self, ends: bool) -> bool:
        if self._agree is alone:
            return ends
        return bool(self._agree(torch.tensor([float(ends)])).item())


def checked_callback(callback: Any) -> Callback | None:
    """Return ``callback`` if it can be called or is None.

    Raises:
        TypeError: It cannot be called.
    """
    if callback is None or callable(callback):
        return callback  # type: ignore[no-any-return]
    raise TypeError(
        f"callback must be None or callable with one argument, a Progress, got {callback!r}"
    )


def checked_seconds(seconds: Any) -> float | None:
    """Return ``seconds`` if it is a time budget or None.

    Raises:
        TypeError: It is not a number.
        ValueError: It is not positive.
    """
    if seconds is None:
        return None
    try:
        number = float(seconds)
    except (TypeError, ValueError):
        raise TypeError(f"seconds must be a number > 0 or None, got {seconds!r}") from None
    if not number > 0 or math.isnan(number):
        raise ValueError(f"seconds must be > 0 or None (no limit), got {number!r}")
    return number
