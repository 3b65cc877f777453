"""Real data: disease progression of 442 patients, against Adam and L-BFGS at equal evaluations.

    python -m lightning_examples.diabetes

Every optimizer may evaluate the closure equally often. A proximal step spends its share inside its
inner solver, Adam one per step, torch's L-BFGS in its line searches. First every step sees all
patients, then a minibatch of them, on which a proximal step spends at most five evaluations.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import torch
from matplotlib import pyplot as plt

from lightning_examples import experiment, output, problems
from lightning_examples.experiment import MakeOptimizer, Run
from torch_wprox import FrobeniusProx, MeanFieldLayer, WassersteinProx, plotting

PER_BATCH = 5  # evaluations that a step may spend on a minibatch


# %% Four optimizers, one budget
def contestants(args: argparse.Namespace, share: int) -> dict[str, tuple[MakeOptimizer, int]]:
    """Name to (optimizer, steps): steps times evaluations per step is the budget."""
    prox = {"gamma": args.gamma, "max_eval": share}
    line = {"max_eval": share, "max_iter": share, "line_search_fn": "strong_wolfe"}
    return {
        "WassersteinProx": (lambda p: WassersteinProx(p, **prox), args.budget // share),
        "FrobeniusProx": (lambda p: FrobeniusProx(p, **prox), args.budget // share),
        "Adam": (lambda p: torch.optim.Adam(p, lr=args.lr), args.budget),
        "LBFGS": (lambda p: torch.optim.LBFGS(p, lr=1.0, **line), args.budget // share),
    }


def compare(args: argparse.Namespace, batch: int | None, share: int) -> dict[str, Run]:
    data, validation = problems.diabetes()
    how = {"batch": batch, "validation": validation, "progress": not args.no_progress}
    runs = {}
    for name, (optimizer, steps) in contestants(args, share).items():
        torch.manual_seed(args.seed)
        layer = MeanFieldLayer(10, args.m, output_bias=True)
        runs[name] = experiment.train(layer, optimizer, data, steps, **how)
    return runs


# %% Training and validation loss, without and with minibatches
def figure(runs: dict[str, dict[str, Run]], args: argparse.Namespace) -> None:
    with plotting.style():
        _, axes = plt.subplots(2, 2, sharex=True, sharey="row")
        for column, (title, found) in zip(axes.T, runs.items(), strict=True):
            train = {name: (run.evaluations, run.losses) for name, run in found.items()}
            validation = {name: (run.evaluations, run.validation) for name, run in found.items()}
            plotting.plot_curves(train, column[0], xlabel="", ylabel="training loss $F$")
            plotting.plot_curves(validation, column[1], ylabel="validation loss", log=False)
            column[1].get_legend().remove()
            column[1].set(ylim=(0.4, 1.4))
            column[0].set_title(title, y=1.17)
        output.save(axes[0, 0], args.out / "diabetes.png", size=(11, 7))


def main(argv: Sequence[str] | None = None) -> dict[str, Run]:
    parser = experiment.parser(__doc__, "diabetes")
    parser.add_argument("--m", type=int, default=100, help="neurons")
    parser.add_argument("--gamma", type=float, default=1.0, help="step size of the proximal steps")
    parser.add_argument("--lr", type=float, default=1e-2, help="step size of Adam")
    parser.add_argument("--budget", type=int, default=2000, help="closure evaluations of a run")
    parser.add_argument("--steps", type=int, default=20, help="proximal steps on all patients")
    parser.add_argument("--batch", type=int, default=64, help="patients in a minibatch")
    parser.add_argument("--seed", type=int, default=0, help="seed of network and batches")
    args = parser.parse_args(argv)
    if args.fast:
        args.budget, args.steps = 60, 3
    runs = {
        "all patients in every step": compare(args, None, args.budget // args.steps),
        f"minibatches of {args.batch}": compare(args, args.batch, PER_BATCH),
    }
    rows = [
        {
            "data": data,
            "optimizer": name,
            "evaluations": run.evaluations[-1],
            "training loss": run.losses[-1],
            "validation loss": run.validation[-1],
            "best validation loss": min(run.validation),
        }
        for data, found in runs.items()
        for name, run in found.items()
    ]
    output.tabulate(args.out / "diabetes.csv", rows)
    figure(runs, args)
    return {f"{name}, {data}": run for data, found in runs.items() for name, run in found.items()}


if __name__ == "__main__":
    main()
