"""Wasserstein and Frobenius proximal descent, side by side (section 3 of the note).

    python -m lightning_examples.sinus

A network of m neurons with frozen signs fits n points of a sinus, from a small initialisation, in a
few large steps. Both descents pay for the way of the neurons, one neuron by neuron (Frobenius), the
other after the cheapest exchange of neurons of one sign (Wasserstein). A third one solves the
same steps globally, with a lower bound: what the two differ in is how far they get.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

import torch
from matplotlib import pyplot as plt

from lightning_examples import experiment, output, problems
from lightning_examples.experiment import Run
from torch_wprox import FrobeniusProx, WassersteinProx, plotting
from torch_wprox.lightning import ProxMonitor
from torch_wprox.report import numbers_of

COLUMNS = "loss_after wasserstein_sq frobenius_sq permuted_fraction evaluations gap"


# %% The descents, all from one initialisation
def descents(args: argparse.Namespace) -> dict[str, Run]:
    local: dict[str, Any] = {"solver": args.solver, "max_eval": args.max_eval}
    optimizers = {
        "Wasserstein": lambda p: WassersteinProx(p, args.gamma, distance=args.distance, **local),
        "Frobenius": lambda p: FrobeniusProx(p, args.gamma, **local),
        "global": lambda p: WassersteinProx(p, args.gamma, solver="global"),
    }
    return {
        name: experiment.train(
            problems.note_layer(args.m, args.seed, args.scale),
            optimizer,
            problems.sinus(args.n),
            args.steps,
            callbacks=[ProxMonitor(prog_bar=("loss_after",))],
            progress=not args.no_progress,
        )
        for name, optimizer in optimizers.items()
    }


# %% The table
def table(runs: dict[str, Run]) -> list[dict[str, Any]]:
    rows = []
    for name, run in runs.items():
        for t, report in enumerate(run.reports, start=1):
            numbers = numbers_of(report)
            rows.append({"descent": name, "step": t, **{c: numbers[c] for c in COLUMNS.split()}})
    output.print_table(rows)
    return rows


# %% The figures
def figures(runs: dict[str, Run], args: argparse.Namespace) -> None:
    x, y = problems.sinus(args.n)
    grid = torch.linspace(-0.6, 0.6, 241, dtype=x.dtype)
    fits = {name: (grid, run.model(grid[:, None]).detach()) for name, run in runs.items()}
    with plotting.style():
        ax = plotting.plot_descent({name: run.reports for name, run in runs.items()})
        output.save(ax, args.out / "sinus.png", size=(9, 5))
        _, axes = plt.subplots(2, 2)
        for (name, run), ax in zip(runs.items(), axes.flat, strict=False):
            ways = torch.stack(run.positions)
            plotting.plot_trajectories(ways, run.model.signs, ax, inputs=x, name=name)
        plotting.plot_function(x, y, fits, axes[1, 1])
        output.save(axes[0, 0], args.out / "sinus_neurons.png", size=(10, 9))


def main(argv: Sequence[str] | None = None) -> dict[str, Run]:
    parser = experiment.parser(__doc__, "sinus")
    parser.add_argument("--m", type=int, default=50, help="neurons")
    parser.add_argument("--n", type=int, default=5, help="data points")
    parser.add_argument("--gamma", type=float, default=1.0, help="step size")
    parser.add_argument("--steps", type=int, default=10, help="proximal steps")
    parser.add_argument("--seed", type=int, default=0, help="seed of the initialisation")
    parser.add_argument("--scale", type=float, default=1e-2, help="size of the first weights")
    parser.add_argument("--solver", default="auto", help="local solver: auto, gd, bfgs, lbfgs, ...")
    parser.add_argument("--distance", default="emd", help="emd, sinkhorn or sliced")
    parser.add_argument("--max-eval", type=int, default=2000, help="evaluations per local step")
    args = parser.parse_args(argv)
    if args.fast:
        args.max_eval, args.steps = min(args.max_eval, 60), min(args.steps, 2)
    runs = descents(args)
    output.write_csv(args.out / "sinus.csv", table(runs))
    figures(runs, args)
    return runs


if __name__ == "__main__":
    main()
