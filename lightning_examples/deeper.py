"""Deeper networks: an MLP with three hidden layers and a transformer, beside Adam and L-BFGS.

    python -m lightning_examples.deeper

particle_groups finds the clouds of neurons; each has its own gamma, what is left is plain. Full
batches, cross-entropy, the same number of closure evaluations for all. Then once more with the
first layer frozen: the first Linear of the MLP, the embedding of the transformer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from matplotlib import pyplot as plt
from torch import nn

from lightning_examples import experiment, output
from lightning_examples.deeper_models import TASKS, cross_entropy
from torch_wprox import FrobeniusProx, WassersteinProx, particle_groups, plotting

PROX = {"WassersteinProx": WassersteinProx, "FrobeniusProx": FrobeniusProx}
RATES = (3e-3, 1e-2, 3e-2, 1e-1)
GAMMAS = ((1.0, 1.0, 10.0), (10.0, 100.0, 100.0), (1e3, 1e3, 1e3))  # two clouds, the rest
PAIRS = (20, 100)  # torch's L-BFGS has no step size, but a number of curvature pairs
SIZES = {"Adam": [(rate,) for rate in RATES], "LBFGS": [(float(k),) for k in PAIRS]}
SIZES |= dict.fromkeys(PROX, GAMMAS)
Runs = list[tuple[dict[str, Any], list[float]]]


# %% The four optimizers
@dataclass(frozen=True)
class Kind:
    """An optimizer, its rate, pairs or gammas, and whether the first layer is frozen."""

    optimizer: str
    sizes: tuple[float, ...]
    frozen: bool

    def make(self, model: nn.Module) -> torch.optim.Optimizer:
        if self.optimizer == "Adam":
            return torch.optim.Adam(model.parameters(), lr=self.sizes[0])
        if self.optimizer == "LBFGS":
            how = {"max_iter": 20, "max_eval": 20, "line_search_fn": "strong_wolfe"}
            return torch.optim.LBFGS(model.parameters(), history_size=int(self.sizes[0]), **how)
        groups = particle_groups(model)
        for group, gamma in zip(groups, self.sizes, strict=False):
            group["gamma"] = self.sizes[-1] if group["layout"] == "plain" else gamma
        return PROX[self.optimizer](groups, max_eval=20)


# %% One run: what it learned, and the lowest loss so far after every number of evaluations
def run(task: str, kind: Kind, seed: int, budget: int) -> tuple[dict[str, Any], list[float]]:
    pl.seed_everything(seed, verbose=False)
    make, data = TASKS[task]
    model, (train, (x, y)) = make(), data()
    next(model.children()).requires_grad_(not kind.frozen)
    limit = experiment.Budget(evaluations=budget)
    how: dict[str, Any] = {"loss": cross_entropy, "callbacks": [limit]}
    found = experiment.train(model, lambda _: kind.make(model), train, budget, **how)
    last = np.searchsorted(found.evaluations, range(budget + 1), side="right") - 1
    losses = np.minimum.accumulate(found.losses)[last].tolist()
    row = {"task": task, "first layer": "frozen" if kind.frozen else "trained"}
    sizes = " ".join(f"{s:g}" for s in kind.sizes)
    sizes += " pairs" if kind.optimizer == "LBFGS" else ""
    row |= {"optimizer": kind.optimizer, "step sizes": sizes}
    row |= {"seed": seed, "training loss": losses[-1]}
    row["test accuracy"] = (model(x).argmax(1) == y).float().mean().item()
    row["exchanged"] = max((r.permuted_fraction for r in found.reports), default=0.0)
    return row | {"seconds": limit.seconds}, losses


def main(argv: Sequence[str] | None = None) -> list[dict[str, Any]]:
    parser = experiment.parser(__doc__, "deeper")
    parser.add_argument("--seeds", type=int, default=3, help="runs of each kind")
    parser.add_argument("--budget", type=int, default=400, help="closure evaluations of a run")
    args = parser.parse_args(argv)
    if args.fast:
        args.seeds, args.budget = 1, 20
    sizes_of = {name: sizes[:1] if args.fast else sizes for name, sizes in SIZES.items()}
    rows, table, curves = [], [], {task: {} for task in TASKS}
    for task, frozen, name in product(TASKS, (False, True), sizes_of):
        kinds = [Kind(name, sizes, frozen) for sizes in sizes_of[name]]
        tried = [[run(task, k, s, args.budget) for s in range(args.seeds)] for k in kinds]
        rows += [row for runs in tried for row, _ in runs]
        best = min(tried, key=lambda runs: output.medians(r for r, _ in runs)["training loss"])
        label = f"{name}, frozen" if frozen else name
        curves[task][label] = (range(args.budget + 1), [losses for _, losses in best])
        table.append(output.medians(row for row, _ in best))
    output.print_table(table)
    output.write_csv(args.out / "deeper.csv", rows)
    with plotting.style():
        _, axes = plt.subplots(1, 2)
        for ax, (task, lines) in zip(axes, curves.items(), strict=True):
            how = {"xlabel": "closure evaluations", "ylabel": "training loss $F$"}
            plotting.plot_bands(lines, ax, **how, log="y").set_title(task, y=1.17)
        output.save(axes[0], args.out / "deeper.png", size=(11, 4.5))
    return rows


if __name__ == "__main__":
    main()
