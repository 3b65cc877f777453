"""One run through a Lightning Trainer, and the flags that every example has."""

from __future__ import annotations

import argparse
import logging
import math
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import repeat
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ModelCheckpoint
from torch import Tensor, nn
from torch.optim import Optimizer

from lightning_examples.problems import Batch, mean_squared_error
from torch_wprox import MeanFieldLayer, StepReport

MakeOptimizer = Callable[[Iterable[nn.Parameter]], Optimizer]
Loss = Callable[[nn.Module, Tensor, Tensor], Tensor]


FLAGS = {
    "batch": "size of a minibatch",
    "cone": "width of the narrow initialisation, as a share of the full circle",
    "dt": "time of one implicit Euler step, t = m gamma",
    "evaluations": "closure evaluations allowed in one step",
    "gamma": "step size",
    "m": "number of neurons",
    "max_eval": "closure evaluations allowed in one step",
    "n": "number of data points",
    "reference": "neurons of the network that stands for infinitely many",
    "seeds": "runs of each kind, with other initialisations",
    "show": "the seed whose neurons are drawn",
    "side": "neurons on a side of the grid at the start",
    "steps": "proximal steps",
    "time": "time of the flow",
}
"""What the flags that several examples share mean; an example says the rest itself."""


def parser(description: str | None, out: str, **numbers: float) -> argparse.ArgumentParser:
    """Return a parser with the flags that every example has, and one per number of ``FLAGS``."""
    made = argparse.ArgumentParser(
        description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    made.add_argument("--out", type=Path, default=Path("out") / out, help="folder of the figures")
    made.add_argument("--fast", action="store_true", help="a small run that ends in seconds")
    made.add_argument("--no-progress", action="store_true", help="no progress bar")
    for name, value in numbers.items():
        flag = f"--{name.replace('_', '-')}"
        made.add_argument(flag, type=type(value), default=value, help=FLAGS[name])
    return made


def so_far(name: str, done: int, count: int, seconds: float) -> str:
    """Return what was done, and how long the rest takes if it takes as long on average."""
    left = seconds / done * (count - done)
    return f"{name}: done after {seconds / 60:.1f} min in all, about {left / 60:.0f} min left\n"


class Regression(pl.LightningModule):
    """Any model with any optimizer: nothing in it knows of proximal steps."""

    def __init__(self, model: nn.Module, make_optimizer: MakeOptimizer, loss: Loss) -> None:
        super().__init__()
        self.model, self.make_optimizer, self.loss = model, make_optimizer, loss
        self.evaluations = 0

    def training_step(self, batch: Batch, index: int) -> Tensor:
        self.evaluations += 1
        return self.loss(self.model, *batch)

    def configure_optimizers(self) -> Optimizer:
        return self.make_optimizer(self.model.parameters())


@dataclass(frozen=True)
class FullBatch:
    """All data, ``steps`` times: any iterable with a length is a loader to Lightning."""

    data: Batch
    steps: int

    def __len__(self) -> int:
        return self.steps

    def __iter__(self) -> Iterator[Batch]:
        return repeat(self.data, self.steps)


@dataclass(frozen=True)
class Minibatches:
    """``steps`` batches of ``size``, every pass over the data in a new random order."""

    data: Batch
    size: int
    steps: int

    def __len__(self) -> int:
        return self.steps

    def __iter__(self) -> Iterator[Batch]:
        x, y = self.data
        per_pass = len(x) // self.size
        for step in range(self.steps):
            if step % per_pass == 0:
                order = torch.randperm(len(x))
            rows = order[step % per_pass * self.size :][: self.size]
            yield x[rows], y[rows]


@dataclass
class Run:
    """One run: what each step reported and where the particles were.

    Attributes:
        model: The trained model.
        losses: F before the first step and after each, steps + 1 numbers.
        validation: The loss on the validation data at the same times; empty without such data.
        evaluations: Closure evaluations spent until then.
        positions: Particles at the same times, (m, D) each; empty for models without a measure.
        reports: One report per step; empty for other optimizers.
    """

    model: Any
    losses: list[float] = field(default_factory=list)
    validation: list[float] = field(default_factory=list)
    evaluations: list[int] = field(default_factory=list)
    positions: list[Tensor] = field(default_factory=list)
    reports: list[StepReport] = field(default_factory=list)


class _Record(pl.Callback):
    """Writes a :class:`Run` while the Trainer steps."""

    def __init__(self, run: Run, loss: Loss, data: Batch, validation: Batch | None) -> None:
        self.run, self.loss, self.data, self.validation = run, loss, data, validation

    def on_train_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        self.snapshot(module)

    def on_train_batch_end(self, trainer: pl.Trainer, module: pl.LightningModule, *_: Any) -> None:
        report = getattr(trainer.optimizers[0], "report", None)
        if report is not None:
            self.run.reports.append(report)
        self.snapshot(module)

    @torch.no_grad()
    def snapshot(self, module: Any) -> None:
        run = self.run
        run.losses.append(self.loss(run.model, *self.data).item())
        run.evaluations.append(module.evaluations)
        if self.validation is not None:
            run.validation.append(self.loss(run.model, *self.validation).item())
        if hasattr(run.model, "positions"):
            run.positions.append(run.model.positions())


def train(
    model: nn.Module,
    make_optimizer: MakeOptimizer,
    data: Batch,
    steps: int,
    *,
    batch: int | None = None,
    validation: Batch | None = None,
    loss: Loss = mean_squared_error,
    callbacks: Sequence[pl.Callback] = (),
    progress: bool = False,
) -> Run:
    """Train for ``steps`` steps, on all data or on minibatches, through a Lightning Trainer.

    The losses recorded are those on all data.
    """
    run = Run(model)
    loader = FullBatch(data, steps) if batch is None else Minibatches(data, batch, steps)
    record = _Record(run, loss, data, validation)
    made = trainer(max_epochs=1, callbacks=[record, *callbacks], progress=progress)
    fit(made, Regression(model, make_optimizer, loss), loader)
    return run


def trainer(*, progress: bool = False, logger: Any = False, **options: Any) -> pl.Trainer:
    """Return a Trainer on one CPU that says nothing beside its progress bar."""
    for name in ("pytorch_lightning.utilities.rank_zero", "lightning.pytorch.utilities.rank_zero"):
        logging.getLogger(name).setLevel(logging.ERROR)
    return pl.Trainer(
        accelerator="cpu",
        devices=1,
        logger=logger,
        log_every_n_steps=1,
        enable_checkpointing=any(isinstance(c, ModelCheckpoint) for c in options["callbacks"]),
        enable_model_summary=False,
        enable_progress_bar=progress,
        **options,
    )


def fit(trainer: pl.Trainer, module: pl.LightningModule, data: Any) -> None:
    """Fit, without the warnings that do not concern an example."""
    with _quiet():
        trainer.fit(module, data)


def test(trainer: pl.Trainer, module: pl.LightningModule, data: Any) -> dict[str, float]:
    """Return what the module logs on the test data."""
    with _quiet():
        (logged,) = trainer.test(module, data, verbose=False)
    return dict(logged)


@contextmanager
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        # Lightning 2.6 asks torch >= 2.13 this way.
        warnings.filterwarnings("ignore", ".isinstance.treespec, LeafSpec.. is deprecated")
        warnings.filterwarnings("ignore", ".*does not have many workers")
        warnings.filterwarnings("ignore", "Checkpoint directory .* exists")
        yield


class Budget(pl.Callback):
    """Ends a run after so many closure evaluations, or seconds inside training steps.

    Attributes:
        evaluations: Closure evaluations so far.
        seconds: Spent in training batches so far.
    """

    def __init__(self, evaluations: float = math.inf, seconds: float = math.inf) -> None:
        self._most = (evaluations, seconds)
        self.evaluations, self.seconds = 0, 0.0

    def on_before_backward(self, *_: Any) -> None:
        self.evaluations += 1

    def on_train_batch_start(self, *_: Any) -> None:
        self._began = time.perf_counter()

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        self.seconds += time.perf_counter() - self._began
        if self.evaluations >= self._most[0] or self.seconds >= self._most[1]:
            trainer.should_stop = True


def watch(
    model: MeanFieldLayer, make_optimizer: MakeOptimizer, data: Batch
) -> tuple[Run, list[Tensor]]:
    """Take one step and return with it the particles at every evaluation of the closure."""
    seen: list[Tensor] = []

    def loss(model: Any, x: Tensor, y: Tensor) -> Tensor:
        seen.append(model.positions())
        return mean_squared_error(model, x, y)

    return train(model, make_optimizer, data, 1, loss=loss), seen


def loss_curves(runs: Mapping[tuple[str, int], Run]) -> dict[str, tuple[range, Tensor]]:
    """Return name to (steps, losses (seeds, T)) for runs by (name, seed): for ``plot_bands``."""
    losses: dict[str, list[list[float]]] = {}
    for (name, _), run in runs.items():
        losses.setdefault(name, []).append(run.losses)
    return {name: (range(len(rows[0])), torch.tensor(rows)) for name, rows in losses.items()}
