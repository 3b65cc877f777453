"""A progress bar of a long step, by tqdm."""

from __future__ import annotations

from types import TracebackType
from typing import Any, Self

from torch_wprox.report import Progress


class ProgressBar:
    """A ``callback`` that shows a tqdm bar: one for every step, with objective and bound.

    Ctrl-C ends the step at its best point: the parameters keep what was reached, and the
    KeyboardInterrupt goes on.

    Args:
        total: Evaluations that a step may take (``max_eval``), for the estimate of the time left;
            None: not known.
        keep_best_on_interrupt: Whether Ctrl-C keeps the best point of the step. False: the
            parameters go back to where the step began.
        options: Of ``tqdm``, such as ``leave=False``, ``disable=True`` or ``file``.

    Example:
        >>> import io, torch, torch_wprox
        >>> bar = ProgressBar(total=50, file=io.StringIO())
        >>> V, report = torch_wprox.prox(
        ...     lambda V: V.square().sum(), torch.ones(2, 2), 1.0, max_eval=50, callback=bar
        ... )
        >>> bar.close()
        >>> bar.shown == report.evaluations
        True
    """

    def __init__(
        self, total: int | None = None, *, keep_best_on_interrupt: bool = True, **options: Any
    ) -> None:
        self.keep_best_on_interrupt = keep_best_on_interrupt
        self.shown = 0
        self._total = total
        self._options = options
        self._bar: Any = None

    def __call__(self, progress: Progress) -> None:
        """Show ``progress``; begin a new bar when a new step has begun."""
        from tqdm.auto import tqdm

        if progress.evaluation <= self.shown:
            self.close()
        if self._bar is None:
            self.shown = 0
            self._bar = tqdm(total=self._total, unit="eval", **self._options)
        numbers = {"P": f"{progress.best:.6g}"}
        if progress.lower_bound is not None:
            numbers["bound"] = f"{progress.lower_bound:.6g}"
        self._bar.set_postfix(numbers, refresh=False)
        self._bar.update(progress.evaluation - self.shown)
        self.shown = progress.evaluation

    def close(self) -> None:
        """Close the bar; the next call opens another."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def __enter__(self) -> Self:
        """Return the bar itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close the bar."""
        self.close()
