"""What examples of flows by convex maps share: a Lightning module, densities in a window."""

from __future__ import annotations

import argparse
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor

from lightning_examples import experiment
from torch_wprox import MapFlow, StepReport


class Flowing(pl.LightningModule):
    """A flow as a Lightning module: a batch is a step, a checkpoint holds the maps so far."""

    def __init__(self, flow: MapFlow, folder: Path, shown: str, every: int = 10) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.flow, self.folder, self.shown, self.every = flow, folder, shown, every
        self.reports: list[StepReport] = []

    def configure_optimizers(self) -> list[Any]:
        return []

    def training_step(self, batch: Any, index: int) -> None:
        self.reports.append(self.flow.step())
        self.log(self.shown, self.reports[-1].loss_after, prog_bar=True)
        if (index + 1) % self.every == 0:
            file = self.folder / f"step{index + 1}.ckpt"
            self.trainer.save_checkpoint(file, weights_only=False)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["flow"] = self.flow.state_dict()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.flow.load_state_dict(checkpoint["flow"])


def trained(flow: MapFlow, args: argparse.Namespace, shown: str, every: int = 10) -> Flowing:
    """Take ``args.steps`` steps by a Trainer, with a checkpoint after every so many."""
    module = Flowing(flow, args.out / "checkpoints", shown, every)
    run = experiment.trainer(max_epochs=1, callbacks=[], progress=not args.no_progress)
    experiment.fit(run, module, experiment.FullBatch((flow.points, flow.points), args.steps))
    return module


@dataclass(frozen=True)
class Window:
    """The square [-side, side]^2 in ``cells`` x ``cells`` cells."""

    side: float
    cells: int

    @property
    def area(self) -> float:
        return (2 * self.side / self.cells) ** 2

    def middles(self) -> Tensor:
        """Middles of the cells, (cells^2, 2)."""
        axis = torch.linspace(-self.side, self.side, self.cells + 1, dtype=torch.float64)
        middles = (axis[1:] + axis[:-1]) / 2
        return torch.cartesian_prod(middles, middles)

    def counted(self, x: Tensor) -> Tensor:
        """Share of the points x (m, 2) in every cell, (cells^2,)."""
        box = [self.cells, self.cells]
        counts = torch.histogramdd(x, box, range=[-self.side, self.side] * 2).hist
        return counts.flatten() / len(x)

    def draw(self, ax: Any, masses: Tensor, top: float) -> None:
        picture = masses.view(self.cells, self.cells).t().sqrt().numpy()
        extent = (-self.side, self.side) * 2
        how: dict[str, Any] = {"origin": "lower", "cmap": "magma", "vmin": 0, "vmax": top**0.5}
        ax.imshow(picture, extent=extent, **how)
        ax.set(xticks=[], yticks=[])


def normal(m: int, seed: int = 0) -> Tensor:
    """Normal points of low discrepancy in the plane, (m, 2)."""
    u = torch.quasirandom.SobolEngine(2, scramble=True, seed=seed).draw(m, dtype=torch.float64)
    return math.sqrt(2) * torch.erfinv(2 * u.clamp(1e-9, 1 - 1e-9) - 1)


def log_normal(x: Tensor) -> Tensor:
    """Log density of the standard normal distribution in the plane, (m,)."""
    return -x.square().sum(1) / 2 - math.log(2 * math.pi)


def kl(p: Tensor, q: Tensor) -> float:
    """Return KL(p, q) of two tables of masses."""
    return float((p * (p.clamp_min(1e-300) / q.clamp_min(1e-12)).log()).sum())
