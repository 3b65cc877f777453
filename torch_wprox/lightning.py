"""Callbacks for a Lightning Trainer, of ``pytorch_lightning`` and of ``import lightning as L``.

This is the only file that imports Lightning. The two packages are twins, but their classes are
unrelated to each other. The callbacks here are subclasses of both ``Callback`` classes where both
packages are installed, so either Trainer takes them, and ``isinstance`` holds for either.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from torch_wprox.progress import ProgressBar
from torch_wprox.recording import TrajectoryRecorder
from torch_wprox.report import JKOReport, Report, StepReport, numbers_of

if TYPE_CHECKING:
    from pytorch_lightning import Callback, LightningModule, Trainer
else:

    def _callback_classes() -> tuple[type, ...]:
        found = []
        for package in ("pytorch_lightning", "lightning.pytorch"):
            try:
                found.append(importlib.import_module(package).Callback)
            except ModuleNotFoundError as error:
                if error.name not in (package, package.partition(".")[0]):
                    raise
        if not found:
            raise ModuleNotFoundError(
                "torch_wprox.lightning needs a Lightning: pip install pytorch-lightning"
            )
        return tuple(found)

    Callback = type("Callback", _callback_classes(), {"__module__": __name__})

__all__ = ["ProxMonitor", "StepProgress", "TrajectoryCallback"]

DEFAULT_METRICS = (
    "loss_before",
    "loss_after",
    "objective",
    "distance_sq",
    "wasserstein_sq",
    "wasserstein_eps",
    "frobenius_sq",
    "permuted_fraction",
    "mean_displacement",
    "residual",
    "evaluations",
    "lower_bound",
    "gap",
    "certified",
    "estimate",
)


class ProxMonitor(Callback):
    """Logs the report of every proximal step, and refuses settings that would falsify the steps.

    It logs from ``on_train_batch_end``, once per step: ``self.log`` inside ``training_step`` is
    called at every inner evaluation (and with ``on_epoch=True`` averages over them). It refuses

    - ``accumulate_grad_batches > 1``, looked at on every batch because a scheduler may change it:
      gradients of other batches would add up inside the inner solver;
    - ``gradient_clip_val``: the inner solver would see clipped gradients, which belong to no
      function.

    With optimizers that have no ``report`` (Adam, say) it does nothing, so that optimizers can be
    swapped. One logged number costs about half a millisecond: name fewer ``metrics`` where a step
    is short.

    Args:
        metrics: Fields of :class:`StepReport` and :class:`JKOReport` to log; what a report does not
            have, or has as None, is skipped, and so is ``certified`` where there is no bound.
        prefix: Of the logged names; with several optimizers the index follows: "prox/1/".
        prog_bar: Fields to show in the progress bar as well.

    Raises:
        ValueError: A metric is not a number of either report.

    Example:
        >>> monitor = ProxMonitor(metrics=("loss_after", "wasserstein_sq"))
        >>> monitor.metrics
        ('loss_after', 'wasserstein_sq')
    """

    def __init__(
        self,
        metrics: tuple[str, ...] = DEFAULT_METRICS,
        *,
        prefix: str = "prox/",
        prog_bar: tuple[str, ...] = (),
    ) -> None:
        unknown = sorted({*metrics, *prog_bar} - {*DEFAULT_METRICS})
        if unknown:
            raise ValueError(f"metrics must be among {DEFAULT_METRICS}, got {unknown}")
        self.metrics = tuple(metrics)
        self.prefix = prefix
        self.prog_bar = tuple(prog_bar)
        self._logged: dict[int, Report] = {}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuse the settings before the first step."""
        self._refuse(trainer)

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Refuse what was changed since."""
        self._refuse(trainer)

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Log the reports that are new."""
        several = len(trainer.optimizers) > 1
        for index, report in _reports(trainer):
            if self._logged.get(index) is report:
                continue
            self._logged[index] = report
            prefix = f"{self.prefix}{index}/" if several else self.prefix
            numbers = numbers_of(report)
            if numbers.get("lower_bound") is None:
                numbers.pop("certified", None)
            for name in dict.fromkeys((*self.metrics, *self.prog_bar)):
                if numbers.get(name) is not None:
                    # batch_size is given so that Lightning need not guess it from the batch.
                    pl_module.log(
                        prefix + name,
                        float(numbers[name]),
                        on_step=True,
                        on_epoch=False,
                        prog_bar=name in self.prog_bar,
                        batch_size=1,
                    )

    def _refuse(self, trainer: Trainer) -> None:
        if not any(hasattr(optimizer, "report") for optimizer in trainer.optimizers):
            return
        # For a model with BatchNorm, StochasticWeightAveraging appends an epoch that "accumulates"
        # all batches without backward, to recompute the statistics: no harm in that.
        takes_steps = not getattr(trainer.fit_loop, "_skip_backward", False)
        if trainer.accumulate_grad_batches > 1 and takes_steps:
            raise ValueError(
                f"accumulate_grad_batches={trainer.accumulate_grad_batches}: a proximal step "
                "evaluates its closure many times, and the gradients of the other batches would "
                "add up inside it, so it would solve another problem. Use "
                "accumulate_grad_batches=1 and larger batches"
            )
        if trainer.gradient_clip_val:
            raise ValueError(
                f"gradient_clip_val={trainer.gradient_clip_val}: the inner solver of a proximal "
                "step needs the gradients of the loss as they are; clipped ones belong to no "
                "function. Use gradient_clip_val=None: no step size can diverge here, and a "
                "smaller gamma shortens the step"
            )


class TrajectoryCallback(Callback):
    """Records the particles and the reports of a run with a :class:`TrajectoryRecorder`.

    Args:
        submodule: Name of the submodule to record, "" for the whole LightningModule.
        inputs: Points at which to record the submodule's outputs.
        every: Keep the particles at every this many batches.
        csv: File for the reports, written by rank 0 when training ends; None: no file.

    Attributes:
        recorder: The recorder of the present run; before a run, None.

    Example:
        >>> callback = TrajectoryCallback(every=10)
        >>> callback.recorder is None
        True
    """

    def __init__(
        self,
        submodule: str = "",
        *,
        inputs: Tensor | None = None,
        every: int = 1,
        csv: str | Path | None = None,
    ) -> None:
        self.recorder: TrajectoryRecorder | None = None
        self._submodule = submodule
        self._inputs = inputs
        self._every = every
        self._csv = csv

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin a new record with the initial particles."""
        module = pl_module.get_submodule(self._submodule)
        inputs = None if self._inputs is None else self._inputs.to(pl_module.device)
        self.recorder = TrajectoryRecorder(module, inputs=inputs, every=self._every)
        self.recorder.record()

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Record the particles, and the report if the optimizer has one."""
        assert self.recorder is not None
        self.recorder.record(next((report for _, report in _reports(trainer)), None))

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the CSV file, if one is wanted."""
        if self._csv is not None and self.recorder is not None and trainer.is_global_zero:
            Path(self._csv).parent.mkdir(parents=True, exist_ok=True)
            self.recorder.to_csv(self._csv)


class StepProgress(Callback):
    """Shows a progress bar of every proximal step, below that of the Trainer.

    For steps that take seconds: the Trainer's own bar moves once per step. Optimizers that have a
    ``callback`` already keep it; with optimizers that take none (Adam, say) it does nothing.

    Args:
        options: Of :class:`torch_wprox.progress.ProgressBar`, such as ``total`` or ``file``.

    Example:
        >>> progress = StepProgress(total=1000)  # the optimizer's max_eval
    """

    def __init__(self, **options: Any) -> None:
        self._options = {"leave": False, "position": 1, **options}
        self._bars: list[tuple[Any, ProgressBar]] = []

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Give every optimizer that has none a bar."""
        for optimizer in trainer.optimizers:
            if getattr(optimizer, "callback", self) is None:
                # Every rank has one, since all of them ask the first whether to end the step.
                bar = ProgressBar(**{"disable": not trainer.is_global_zero, **self._options})
                optimizer.callback = bar  # type: ignore[attr-defined]
                self._bars.append((optimizer, bar))

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take the bars away."""
        self._take_away()

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Take the bars away."""
        self._take_away()

    def _take_away(self) -> None:
        for optimizer, bar in self._bars:
            bar.close()
            optimizer.callback = None
        self._bars.clear()


def _reports(trainer: Trainer) -> Iterator[tuple[int, Report]]:
    for index, optimizer in enumerate(trainer.optimizers):
        report = getattr(optimizer, "report", None)
        if isinstance(report, StepReport | JKOReport):
            yield index, report
