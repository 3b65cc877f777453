"""A classifier of handwritten digits with minibatches: Adam swapped for WassersteinProx.

    python -m lightning_examples.digits

scikit-learn's 1797 digits, 64-200-10, cross-entropy. Every optimizer gets the same number of
closure evaluations, over a range of its step size; Adam also the same time. A last run shows that
checkpoints, early stopping and the learning rate monitor of Lightning work as with any optimizer.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from statistics import median
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import EarlyStopping, LearningRateMonitor, ModelCheckpoint
from pytorch_lightning.loggers import CSVLogger

from lightning_examples import experiment, output
from lightning_examples.classifier import Classifier, Digits
from torch_wprox import FrobeniusProx, WassersteinProx, particle_groups, plotting

# %% What is swapped
MAKE: dict[str, Any] = {
    "WassersteinProx": lambda net, g: WassersteinProx(particle_groups(net), gamma=g, max_eval=5),
    "FrobeniusProx": lambda net, g: FrobeniusProx(particle_groups(net), gamma=g, max_eval=5),
    "Adam": lambda net, lr: torch.optim.Adam(net.parameters(), lr=lr),
}
STEP_SIZES = {
    "WassersteinProx": (1.0, 10.0, 100.0, 1000.0),
    "FrobeniusProx": (1.0, 10.0, 100.0, 1000.0),
    "Adam": (1e-4, 1e-3, 1e-2, 1e-1),
}


# %% One run within a budget of closure evaluations, or of seconds
def run(args: argparse.Namespace, name: str, size: float, seed: int, **limit: Any) -> Any:
    pl.seed_everything(seed, verbose=False)
    spent = experiment.Budget(**limit)
    trainer = experiment.trainer(max_epochs=-1, limit_val_batches=0, callbacks=[spent])
    module, data = Classifier(lambda net: MAKE[name](net, size)), Digits(seed, args.batch)
    experiment.fit(trainer, module, data)
    row = {"optimizer": name, "budget": next(iter(limit)), "step size": size, "seed": seed}
    row |= experiment.test(trainer, module, data)
    return row | {"evaluations": spent.evaluations, "seconds": spent.seconds}


# %% A guest among Lightning's callbacks and loggers
def guest(args: argparse.Namespace) -> pl.Trainer:
    pl.seed_everything(args.seeds, verbose=False)
    best = ModelCheckpoint(args.out / "run", monitor="validation accuracy", mode="max")
    patience = EarlyStopping("validation accuracy", mode="max", patience=4)
    trainer = experiment.trainer(
        **{"max_epochs": 3 if args.fast else 30, "progress": not args.no_progress},
        logger=CSVLogger(args.out / "run"),
        callbacks=[best, patience, LearningRateMonitor()],
    )
    module = Classifier(lambda net: MAKE["WassersteinProx"](net, 10.0))
    experiment.fit(trainer, module, Digits(args.seeds, args.batch))
    return trainer


def main(argv: Sequence[str] | None = None) -> pl.Trainer:
    parser = experiment.parser(__doc__, "digits")
    parser.add_argument("--seeds", type=int, default=5, help="runs of each kind")
    parser.add_argument("--budget", type=int, default=700, help="closure evaluations of a run")
    parser.add_argument("--batch", type=int, default=200, help="size of a minibatch")
    args = parser.parse_args(argv)
    if args.fast:
        args.seeds, args.budget = 1, 20
    rows = [
        run(args, name, size, seed, evaluations=args.budget)
        for name, sizes in STEP_SIZES.items()
        for size in sizes
        for seed in range(args.seeds)
    ]
    time = median(row["seconds"] for row in rows if row["optimizer"] == "WassersteinProx")
    for size in STEP_SIZES["Adam"]:
        rows += [run(args, "Adam", size, seed, seconds=time) for seed in range(args.seeds)]
    output.write_csv(args.out / "digits.csv", rows)
    samples: dict[str, Any] = {}
    for name, budget in dict.fromkeys((row["optimizer"], row["budget"]) for row in rows):
        kind = [row for row in rows if (row["optimizer"], row["budget"]) == (name, budget)]
        found = torch.tensor([row["accuracy"] for row in kind]).view(-1, args.seeds).T
        label = name if budget == "evaluations" else f"{name}, equal time"
        samples[label] = (STEP_SIZES[name], found)
        middle = zip(STEP_SIZES[name], found.median(0).values.tolist(), strict=True)
        output.print_table([{label: size, "median accuracy": share} for size, share in middle])
    with plotting.style():
        x = r"step size: $\gamma$ of the proximal steps, learning rate of Adam"
        ax = plotting.plot_bands(samples, xlabel=x, ylabel="test accuracy", log="x", marker="o")
        output.save(ax, args.out / "digits.png", size=(7.5, 4.5))
    return guest(args)


if __name__ == "__main__":
    main()
