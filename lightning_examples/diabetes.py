"""Real data: disease progression of 442 patients, against Adam and L-BFGS at equal evaluations.

    python -m lightning_examples.diabetes

Every optimizer may evaluate the closure equally often. A proximal step spends its share inside its
inner solver, Adam one per step, torch's L-BFGS in its line searches.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import torch

from lightning_examples import experiment
from lightning_examples.experiment import MakeOptimizer, Run
from torch_wprox import FrobeniusProx, MeanFieldLayer, WassersteinProx, plotting


# %% Four optimizers, one budget
def contestants(args: argparse.Namespace) -> dict[str, tuple[MakeOptimizer, int]]:
    """Name to (optimizer, steps): steps times evaluations per step is the budget."""
    share = args.budget // args.steps
    prox = {"gamma": args.gamma, "max_eval": share}
    line = {"max_eval": share, "max_iter": share, "line_search_fn": "strong_wolfe"}
    return {
        "WassersteinProx": (lambda p: WassersteinProx(p, **prox), args.steps),
        "FrobeniusProx": (lambda p: FrobeniusProx(p, **prox), args.steps),
        "Adam": (lambda p: torch.optim.Adam(p, lr=args.lr), args.budget),
        "LBFGS": (lambda p: torch.optim.LBFGS(p, lr=1.0, **line), args.steps),
    }


def compare(args: argparse.Namespace) -> dict[str, Run]:
    data, validation = experiment.diabetes()
    return {
        name: experiment.train(
            MeanFieldLayer(
                10, args.m, output_bias=True, generator=torch.Generator().manual_seed(args.seed)
            ),
            optimizer,
            data,
            steps,
            validation=validation,
            progress=not args.no_progress,
        )
        for name, (optimizer, steps) in contestants(args).items()
    }


def main(argv: Sequence[str] | None = None) -> dict[str, Run]:
    parser = experiment.parser(__doc__, "diabetes")
    parser.add_argument("--m", type=int, default=100, help="neurons")
    parser.add_argument("--gamma", type=float, default=1.0, help="step size of the proximal steps")
    parser.add_argument("--lr", type=float, default=1e-2, help="step size of Adam")
    parser.add_argument("--budget", type=int, default=2000, help="closure evaluations each")
    parser.add_argument("--steps", type=int, default=20, help="proximal steps")
    parser.add_argument("--seed", type=int, default=0, help="of the initialisation")
    args = parser.parse_args(argv)
    if args.fast:
        args.budget, args.steps = 60, 3
    runs = compare(args)
    rows = [
        {
            "optimizer": name,
            "evaluations": run.evaluations[-1],
            "training loss": run.losses[-1],
            "validation loss": run.validation[-1],
            "best validation loss": min(run.validation),
        }
        for name, run in runs.items()
    ]
    experiment.print_table(rows)
    experiment.write_csv(args.out / "diabetes.csv", rows)
    curves = {name: (run.evaluations, run.losses) for name, run in runs.items()}
    with plotting.style():
        ax = plotting.plot_curves(curves, ylabel="training loss $F$ (standardised target)")
        experiment.save(ax, args.out / "diabetes.png", size=(7, 4.5))
    return runs


if __name__ == "__main__":
    main()
