"""What the examples share: the note's data, one run through a Trainer, the output folder."""

from __future__ import annotations

import argparse
import csv
import logging
import math
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import repeat
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytorch_lightning as pl
import torch
from matplotlib import pyplot as plt
from matplotlib.animation import FuncAnimation, PillowWriter
from matplotlib.axes import Axes
from numpy.typing import NDArray
from PIL import Image, ImageSequence
from pytorch_lightning.callbacks import ModelCheckpoint
from sklearn.datasets import load_diabetes
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer

from torch_wprox import MeanFieldLayer, StepReport

Batch = tuple[Tensor, Tensor]
MakeOptimizer = Callable[[Iterable[nn.Parameter]], Optimizer]
Loss = Callable[[nn.Module, Tensor, Tensor], Tensor]


def parser(description: str | None, out: str, **numbers: float) -> argparse.ArgumentParser:
    """Return a parser with the flags that every example has, and one per number."""
    made = argparse.ArgumentParser(
        description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    made.add_argument("--out", type=Path, default=Path("out") / out, help="folder of the figures")
    made.add_argument("--fast", action="store_true", help="a small run that ends in seconds")
    made.add_argument("--no-progress", action="store_true", help="no progress bar")
    for name, value in numbers.items():
        flag = f"--{name.replace('_', '-')}"
        made.add_argument(flag, type=type(value), default=value, help="see the source")
    return made


def sinus(n: int = 5) -> tuple[Tensor, Tensor]:
    """Return x, y (n, 1) of the note's section 3: y = sin(10 x - pi/2) + .2 x - .5 on [-.5, .5]."""
    x = torch.linspace(-0.5, 0.5, n, dtype=torch.float64).unsqueeze(1)
    return x, torch.sin(10 * x - torch.pi / 2) + 0.2 * x - 0.5


def diabetes(train: int = 354, seed: int = 0) -> tuple[Batch, Batch]:
    """Return (x, y) for training and validation: scikit-learn's 442 patients, standardised.

    x is (n, 10), y (n, 1); both have mean 0 and variance 1 on the training part.
    """
    features, target = load_diabetes(return_X_y=True, scaled=False)
    data = torch.tensor(np.column_stack([features, target]), dtype=torch.get_default_dtype())
    data = data[torch.from_numpy(np.random.default_rng(seed).permutation(len(data)))]
    data = (data - data[:train].mean(0)) / data[:train].std(0)
    return (data[:train, :-1], data[:train, -1:]), (data[train:, :-1], data[train:, -1:])


def note_layer(m: int = 50, seed: int = 0, scale: float = 1e-2) -> MeanFieldLayer:
    """Return the note's network: frozen signs, half of them +, output summed over m neurons."""
    return signed_layer(scale * np.random.default_rng(seed).standard_normal((m, 2)))


def signed_layer(
    W: NDArray[np.float64],
    reduction: Literal["mean", "sum"] = "sum",
    *,
    bias: bool = True,
    alpha: Tensor | None = None,
) -> MeanFieldLayer:
    """Return neurons W (m, D), frozen signs alpha (m,); None: + for the first half, - after it."""
    m, columns = W.shape
    kind: dict[str, Any] = {"parameterization": "signed", "dtype": torch.float64}
    layer = MeanFieldLayer(columns - bias, m, bias=bias, reduction=reduction, **kind)
    if alpha is not None:
        layer.alpha = alpha
    with torch.no_grad():
        layer.particles.copy_(torch.from_numpy(W))
    return layer


def balanced_layer(m: int, scale: float, seed: int) -> MeanFieldLayer:
    """Return m neurons (w, b, alpha), |alpha| = |(w, b)| ~ scale, + for the first half, summed."""
    layer = MeanFieldLayer(1, m, reduction="sum", dtype=torch.float64)
    w = torch.from_numpy(scale * np.random.default_rng(seed).standard_normal((m, 2)))
    signs = torch.where(torch.arange(m) < m // 2, 1.0, -1.0)
    with torch.no_grad():
        layer.particles.copy_(torch.cat([w, (signs * w.norm(dim=1))[:, None]], dim=1))
    return layer


def extremal(x: Tensor, y: Tensor, sign: float, points: int = 36_000) -> Tensor:
    """Return the angles of the extremal vectors of Maennel, Bousquet and Gelly (2018).

    Local maxima on the circle of sign G(u), G(u) = (2/n) sum_j y_j relu<(x_j, 1), u>, to a
    hundredth of a degree; not where G = 0, which moves nothing.

    Args:
        x: Inputs (n, 1).
        y: Labels (n, 1).
        sign: Of the output weight.
        points: Angles tried.
    """
    angles = torch.arange(points, dtype=torch.float64) * (2 * torch.pi / points)
    G = sign * 2 * (y * torch.relu(x * angles.cos() + angles.sin())).mean(dim=0)
    top = (G.roll(1) < G) & (G.roll(-1) <= G) & (G.abs() > 1e-9)
    return torch.atan2(angles.sin(), angles.cos())[top]


def least_loss(x: Tensor, y: Tensor, kinks: Sequence[float]) -> float:
    """Return the least mean squared error of a continuous function, affine between the kinks."""
    A = torch.cat([torch.ones_like(x), x, *(torch.relu(x - kink) for kink in kinks)], dim=1)
    return F.mse_loss(A @ torch.linalg.lstsq(A, y).solution, y).item()


def activates(W: Tensor, x: Tensor) -> Tensor:
    """Return (m,): whether neurons (w, b) = W (m, 2) activate any of the data x (n, 1)."""
    return (W[:, :1] @ x.T + W[:, 1:] > 0).any(dim=1)


def mean_squared_error(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """The note's (30)."""
    return F.mse_loss(model(x), y)


class Points(nn.Module):
    """A cloud of points (m, D) that is no network: one matrix is one cloud."""

    def __init__(self, start: Tensor) -> None:
        super().__init__()
        self.points = nn.Parameter(start.clone())

    def positions(self) -> Tensor:
        return self.points.detach().clone()


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


def tabulate(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Print the table and write it."""
    print_table(rows)
    write_csv(path, rows)


def print_table(rows: Sequence[dict[str, Any]]) -> None:
    """Print one line per row, numbers with four significant digits."""
    cells = [[_cell(value, 4) for value in row.values()] for row in rows]
    heads = list(rows[0])
    widths = [max(len(row[i]) for row in [heads, *cells]) for i in range(len(heads))]
    for row in [heads, ["-" * width for width in widths], *cells]:
        print("  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)))


def save(ax: Axes, path: Path, size: tuple[float, float]) -> None:
    """Write the figure of ``ax`` as a PNG, ``size`` in inches, and close it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure = ax.figure.figure
    figure.set_size_inches(*size)
    figure.savefig(path)
    plt.close(figure)
    print(f"wrote {path}")


def save_gif(animation: FuncAnimation, path: Path, size: tuple[float, float], fps: int) -> None:
    """Write the animation, ``size`` in inches, in 48 colours to keep it small; close its figure."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure = animation._fig  # type: ignore[attr-defined]
    figure.set_size_inches(*size)
    animation.save(path, writer=PillowWriter(fps=fps), dpi=80)
    plt.close(figure)
    with Image.open(path) as frames:
        palette = [f.convert("RGB").quantize(48) for f in ImageSequence.Iterator(frames)]
    how: dict[str, Any] = {"duration": 1000 // fps, "loop": 0, "optimize": True}
    palette[0].save(path, save_all=True, append_images=palette[1:], **how)
    print(f"wrote {path}")


def write_csv(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Write one line per row; numbers with six significant digits."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        for row in rows:
            writer.writerow({name: _cell(value, 6) for name, value in row.items()})


def _cell(value: Any, digits: int) -> str:
    if isinstance(value, float):
        return f"{value:.{digits}g}"
    return "" if value is None else str(value)
