"""One long step on tables of data, solved three ways: how far from optimal does each solver end?

    python -m lightning_examples.tabular

Diabetes (354 patients, ten inputs) and a surface over the square (two inputs), each fitted by a
MeanFieldLayer in a LightningModule. Adam, BFGS and the global solver take the same proximal step
from the same neurons; the bound of the global one holds for all three, whoever moved the neurons.
With two inputs and a bias it is proved; with ten it is an estimate.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from matplotlib import pyplot as plt

from lightning_examples import experiment, output, problems
from lightning_examples.problems import Batch
from torch_wprox import WassersteinProx, plotting
from torch_wprox.plotting.look import colors_of

SOLVERS = {"Adam": "adam", "BFGS": "bfgs", "global": "global"}


# %% Two tables
def surface(n: int, seed: int = 0) -> tuple[Batch, Batch]:
    """Return (x, y) for training and validation: a wave over the square, noise only in training."""
    rng = np.random.default_rng(seed)

    def drawn(count: int, noise: float) -> Batch:
        x = rng.uniform(-1, 1, (count, 2))
        y = np.sin(3 * x[:, :1]) * np.cos(2 * x[:, 1:]) + noise * rng.standard_normal((count, 1))
        return torch.from_numpy(x), torch.from_numpy(y)

    return drawn(n, 0.1), drawn(500, 0.0)


def tables(args: argparse.Namespace) -> dict[str, tuple[Batch, Batch]]:
    """Return the data sets, all in float64."""
    train, validation = problems.diabetes()
    rows = 40 if args.fast else len(train[0])
    patients = (tuple(t[:rows].double() for t in train), tuple(t.double() for t in validation))
    return {"surface": surface(args.n), "diabetes": patients}  # type: ignore[dict-item]


# %% One step by every solver from the same neurons
def solved(name: str, args: argparse.Namespace, data: Batch, validation: Batch) -> dict[str, Any]:
    """Return one row: what a step by this solver reached on the data."""
    rng = np.random.default_rng(args.seed)
    W = 1e-2 * rng.standard_normal((args.m, data[0].shape[1] + 1))
    layer = problems.signed_layer(W)

    def optimizer(parameters: Any) -> WassersteinProx:
        return WassersteinProx(parameters, args.gamma, solver=SOLVERS[name], max_eval=args.max_eval)

    run = experiment.train(
        layer, optimizer, data, 1, validation=validation, progress=not args.no_progress
    )
    report = run.reports[0]
    return {
        "solver": name,
        "objective": report.objective,
        "loss": run.losses[-1],
        "validation loss": run.validation[-1],
        "lower bound": report.lower_bound,
        "proved": report.certified,
    }


def compared(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Return one row for each table and solver, all with the bound of the global solver."""
    rows = []
    for table, (data, validation) in tables(args).items():
        found = [solved(name, args, data, validation) for name in SOLVERS]
        bound, proved = found[-1]["lower bound"], found[-1]["proved"]
        for row in found:
            row |= {"lower bound": bound, "proved": proved}
            row["above the bound"] = row["objective"] / bound - 1.0
            rows.append({"table": table} | row)
    return rows


def draw(rows: list[dict[str, Any]]) -> Any:
    """Draw objectives over their bounds, and validation losses, for each table."""
    names = list(dict.fromkeys(row["table"] for row in rows))
    _, axes = plt.subplots(1, len(names))
    for ax, table in zip(axes, names, strict=True):
        own = [row for row in rows if row["table"] == table]
        place = np.arange(len(own))
        colors = colors_of(row["solver"] for row in own)
        for at, row, color in zip(place, own, colors, strict=True):
            label = f"objective $P$, {row['solver']}"
            ax.bar(at - 0.2, row["objective"], 0.4, color=color, label=label)
        validation = [row["validation loss"] for row in own]
        ax.plot(place + 0.2, validation, "D", color="black", label="validation loss")
        kind = "proved" if own[0]["proved"] else "estimated"
        ax.axhline(own[0]["lower bound"], color="black", lw=1, label=f"lower bound, {kind}")
        ax.set_xticks(place, [row["solver"] for row in own])
        ax.set_title(table)
        ax.set_ylim(0, 1.5 * max(validation + [row["objective"] for row in own]))
        ax.legend(loc="upper left", ncols=2)
    return axes[0]


def main(argv: Sequence[str] | None = None) -> list[dict[str, Any]]:
    parser = experiment.parser(__doc__, "tabular", gamma=1.0, m=20, n=80, max_eval=500)
    parser.add_argument("--seed", type=int, default=0, help="seed of the initialisation")
    args = parser.parse_args(argv)
    if args.fast:
        args.m, args.n, args.max_eval = 8, 15, 60
    rows = compared(args)
    output.print_table(rows)
    output.write_csv(args.out / "tabular.csv", rows)
    with plotting.style():
        output.save(draw(rows), args.out / "tabular.png", size=(10, 4.5))
    return rows


if __name__ == "__main__":
    main()
