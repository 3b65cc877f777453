"""Physics-informed networks: Poisson's and Burgers' equation, beside LBFGS, SSBroyden and Adam.

    python -m lightning_examples.pinn

A tanh network of 921 numbers is trained on all points at once, by float64, through a Lightning
Trainer. Every optimizer may evaluate the closure equally often. A proximal step at large gamma is
nearly plain minimisation: its inner solver is a self-scaled quasi-Newton method, whose matrix goes
on from step to step.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from matplotlib import pyplot as plt
from torch import Tensor, nn

from lightning_examples import equations, experiment, output
from lightning_examples.equations import Equation
from lightning_examples.ssbroyden import SSBroyden
from torch_wprox import FrobeniusProx, plotting

OURS = "FrobeniusProx"
Make = Callable[[nn.Module], torch.optim.Optimizer]


# %% Four optimizers; a step of each is some evaluations of the closure
def optimizers(gamma: float, lr: float) -> dict[str, Make]:
    line: dict[str, Any] = {"line_search_fn": "strong_wolfe", "history_size": 100}
    line |= {"tolerance_grad": 0, "tolerance_change": 0}

    def ours(net: nn.Module) -> torch.optim.Optimizer:
        groups = [{"params": [p], "layout": "plain"} for p in net.parameters()]
        return FrobeniusProx(groups, gamma=gamma)

    return {
        OURS: ours,
        "SSBroyden": lambda net: SSBroyden(net.parameters(), max_iter=50),
        "LBFGS": lambda net: torch.optim.LBFGS(net.parameters(), max_iter=50, **line),
        "Adam": lambda net: torch.optim.Adam(net.parameters(), lr=lr),
    }


class Solver(pl.LightningModule):
    """The network and its equation; nothing in it knows of proximal steps."""

    def __init__(self, net: nn.Sequential, equation: Equation, make: Make) -> None:
        super().__init__()
        self.net, self.equation, self.make = net, equation, make

    def training_step(self, batch: Any, index: int) -> Tensor:
        return self.equation.loss(self.net)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return self.make(self.net)


# %% One run: the lowest loss so far, and the error of the solution, over evaluations and time
@dataclass
class Curve(pl.Callback):
    """What a run left after every step, and its end once the budget is spent.

    Attributes:
        budget: Closure evaluations.
        seconds: Processor time in training steps.
    """

    budget: int
    points: Tensor
    losses: list[float] = field(default_factory=list)
    evaluations: list[int] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    errors: list[float] = field(default_factory=list)
    _count: int = 0
    _spent: float = 0.0

    def on_before_backward(self, *_: Any) -> None:
        self._count += 1

    def on_train_batch_start(self, *_: Any) -> None:
        self._began = time.process_time()

    def on_train_batch_end(self, trainer: pl.Trainer, module: Any, *_: Any) -> None:
        self._spent += time.process_time() - self._began
        is_over = self._count >= self.budget
        if is_over or self._count >= 1.05 * (self.evaluations or [0])[-1]:
            self.losses.append(module.equation.loss(module.net).item())
            self.errors.append(module.equation.error(module.net, self.points))
            self.evaluations.append(self._count)
            self.seconds.append(self._spent)
        trainer.should_stop |= is_over


def run(name: str, equation: Equation, args: argparse.Namespace) -> tuple[nn.Sequential, Curve]:
    net = equations.network(args.seed)
    curve = Curve(args.budget, grid(equation, 50)[0])
    trainer = experiment.trainer(
        max_epochs=1, callbacks=[curve], progress=not args.no_progress, inference_mode=False
    )
    module = Solver(net, equation, optimizers(args.gamma, args.lr)[name])
    experiment.fit(trainer, module, experiment.FullBatch((torch.zeros(1),) * 2, args.budget))
    return net, curve


def grid(equation: Equation, n: int) -> tuple[Tensor, list[float]]:
    """Return n^2 points over the domain and its (left, right, bottom, top)."""
    left = math.floor(equation.edge[:, 0].min().item())
    x, y = np.meshgrid(np.linspace(left, 1, n), np.linspace(0, 1, n))
    return torch.from_numpy(np.stack([x.ravel(), y.ravel()], 1)), [left, 1.0, 0.0, 1.0]


# %% Curves above, the solution found and its error below
Runs = dict[str, tuple[nn.Sequential, Curve]]


def figure(found: dict[str, tuple[Equation, Runs]], path: Path) -> None:
    with plotting.style():
        _, axes = plt.subplots(len(found), 4)
        for row, (name, (equation, runs)) in zip(axes, found.items(), strict=True):
            curves = {k: curve for k, (_, curve) in runs.items()}
            losses = {k: (c.evaluations, c.losses) for k, c in curves.items()}
            timed = {k: (c.seconds, c.losses) for k, c in curves.items()}
            errors = {k: (c.evaluations, c.errors) for k, c in curves.items()}
            plotting.plot_curves(losses, row[0], ylabel=f"{name}: loss $F$")
            plotting.plot_curves(timed, row[1], xlabel="processor time, s", ylabel="loss $F$")
            plotting.plot_curves(errors, row[2], ylabel="relative error of $u$")
            for ax in row[:3]:
                ax.set_xlim(left=0)
            for ax in row[1:3]:
                ax.get_legend().remove()
            x, extent = grid(equation, 200)
            with torch.no_grad():
                u = runs[OURS][0](x)[:, 0].view(200, 200)
            values = u.numpy()
            image = row[3].imshow(
                values, origin="lower", extent=extent, aspect="auto", cmap="coolwarm"
            )
            row[3].figure.colorbar(image, ax=row[3])
            row[3].grid(False)
            second = "$t$" if name == "Burgers" else "$y$"
            row[3].set(xlabel="$x$", ylabel=second, title=f"{OURS}: $u$")
        output.save(axes[0, 0], path, size=(18, 4.2 * len(found)))


def main(argv: Sequence[str] | None = None) -> list[dict[str, Any]]:
    parser = experiment.parser(__doc__, "pinn")
    parser.add_argument("--gamma", type=float, default=1e10, help="step size of the proximal steps")
    parser.add_argument("--lr", type=float, default=3e-3, help="step size of Adam")
    parser.add_argument("--budget", type=int, default=2000, help="closure evaluations of a run")
    parser.add_argument("--seed", type=int, default=0, help="seed of the initialisation")
    args = parser.parse_args(argv)
    if args.fast:
        args.budget = 30
    found: dict[str, tuple[Equation, Runs]] = {}
    rows = []
    for name, make in equations.EQUATIONS.items():
        equation = make()
        runs = {k: run(k, equation, args) for k in optimizers(args.gamma, args.lr)}
        found[name] = (equation, runs)
        for optimizer, (_, curve) in runs.items():
            rows.append({"equation": name, "optimizer": optimizer})
            rows[-1] |= {"evaluations": curve.evaluations[-1], "loss": curve.losses[-1]}
            rows[-1] |= {"error": curve.errors[-1], "seconds": curve.seconds[-1]}
    output.tabulate(args.out / "pinn.csv", rows)
    figure(found, args.out / "pinn.png")
    return rows


if __name__ == "__main__":
    main()
