"""Proximal steps on minibatches beside Adam and SGD, at equal time.

    python -m benchmarks.minibatch            # about five minutes of CPU time
    python -m benchmarks.minibatch --seeds 1 --seconds 1

A classifier (Linear, ReLU, Linear; 200 hidden neurons; cross-entropy) on two sets: 50 000 synthetic
points with 54 features and 7 classes, 500 a batch, and scikit-learn's 1797 digits, 200 a batch. A
fifth is held out. Every optimizer gets the same CPU time, so that an evaluation of the closure
and the optimizer's own work count alike, whatever else the machine does. Printed are medians over
seeds of the accuracy on the points held out: at the end, of an exponential average of the iterates
(``torch.optim.swa_utils``, decay 0.98), and the best on the way; and the time per evaluation.

``falling`` schedules multiply the step size by (1 + cos(pi u))/2, u the share of the time spent.
"""

from __future__ import annotations

import argparse
import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from sklearn.datasets import load_digits, make_classification
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from benchmarks.table import Table, add_arguments
from torch_wprox import WassersteinProx

HIDDEN, DECAY, LOOKS = 200, 0.98, 20


@dataclass(frozen=True)
class Data:
    """Features and labels, to train on and held out; points of a batch; seconds per run."""

    name: str
    part: str  # of the table
    x: Tensor
    y: Tensor
    held_x: Tensor
    held_y: Tensor
    batch: int
    seconds: float


@dataclass(frozen=True)
class Way:
    """An optimizer with its settings; ``factor`` scales the batch."""

    name: str
    make: Callable[[nn.Module], Optimizer]
    falling: bool = False
    factor: int = 1


@dataclass(frozen=True)
class Outcome:
    """Accuracies on the held-out points, and seconds per evaluation of the closure."""

    last: float
    averaged: float
    best: float
    seconds: float


# %% What is compared
def prox(gamma: float | None = None, max_eval: int | None = None) -> Callable[..., Optimizer]:
    return lambda model: WassersteinProx(model.parameters(), gamma, max_eval=max_eval)


def adam(lr: float) -> Callable[..., Optimizer]:
    return lambda model: torch.optim.Adam(model.parameters(), lr)


def sgd(lr: float) -> Callable[..., Optimizer]:
    return lambda model: torch.optim.SGD(model.parameters(), lr, momentum=0.9)


WAYS = (
    Way("Adam, 1e-3", adam(1e-3)),
    Way("Adam, 1e-2, falling", adam(1e-2), falling=True),
    Way("SGD with momentum, 0.1, falling", sgd(0.1), falling=True),
    Way("WassersteinProx(parameters)", prox()),
    Way("gamma 1, falling", prox(1.0), falling=True),
    Way("gamma 1, falling, max_eval=4", prox(1.0, 4), falling=True),
    Way("gamma 1, falling, batches x 4", prox(1.0), falling=True, factor=4),
    Way("gamma 10, falling", prox(10.0), falling=True),
    Way("gamma 100", prox(100.0)),
)


def data_sets(seconds: float | None) -> list[Data]:
    x, y = make_classification(
        *(50_000, 54),
        n_informative=20,
        n_redundant=10,
        n_classes=7,
        n_clusters_per_class=3,
        random_state=0,
    )
    digits, labels = load_digits(return_X_y=True)
    return [
        split("50 000 points, 54 features, 7 classes", "synthetic", x, y, 500, seconds or 4.0),
        split("digits", "digits", digits, labels, 200, seconds or 1.5),
    ]


def split(name: str, part: str, x: object, y: object, batch: int, seconds: float) -> Data:
    """Shuffle, standardise by the training points, and hold a fifth out."""
    features, labels = torch.as_tensor(x, dtype=torch.float32), torch.as_tensor(y)
    order = torch.randperm(len(features), generator=torch.Generator().manual_seed(0))
    train, held = order.split(math.ceil(0.8 * len(order)))
    mean, scale = features[train].mean(0), features[train].std(0).clamp_min(1e-6)
    features = (features - mean) / scale
    trained, tested = (features[train], labels[train]), (features[held], labels[held])
    return Data(name, part, *trained, *tested, batch, seconds)


# %% One run
def run(data: Data, way: Way, seed: int) -> Outcome:
    torch.manual_seed(seed)
    model = nn.Sequential(
        nn.Linear(data.x.shape[1], HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, int(data.y.max()) + 1)
    )
    averaged = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(DECAY))
    optimizer = way.make(model)
    first = optimizer.param_groups[0]["lr"]
    generator = torch.Generator().manual_seed(seed)
    spent, evaluations, best, looks = 0.0, 0, 0.0, 0

    def accuracy(network: nn.Module) -> float:
        with torch.no_grad():
            return (network(data.held_x).argmax(1) == data.held_y).float().mean().item()

    while spent < data.seconds:
        size = way.factor * data.batch
        for rows in torch.randperm(len(data.x), generator=generator).split(size):
            began = time.process_time()
            x, y = data.x[rows], data.y[rows]

            def closure(x: Tensor = x, y: Tensor = y) -> Tensor:
                nonlocal evaluations
                evaluations += 1
                optimizer.zero_grad()
                loss: Tensor = nn.functional.cross_entropy(model(x), y)
                loss.backward()
                return loss

            if way.falling:
                share = min(spent / data.seconds, 1.0)
                for group in optimizer.param_groups:
                    group["lr"] = first * (1 + math.cos(math.pi * share)) / 2
            optimizer.step(closure)  # type: ignore[arg-type]  # torch wants it to return a float
            averaged.update_parameters(model)
            spent += time.process_time() - began
            if spent >= looks * data.seconds / LOOKS:
                looks, best = looks + 1, max(best, accuracy(model))
            if spent >= data.seconds:
                break
    last = accuracy(model)
    return Outcome(last, accuracy(averaged), max(best, last), spent / evaluations)


# %% The table
def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seeds", type=int, default=3, help="runs of each optimizer")
    parser.add_argument("--seconds", type=float, help="CPU time of a run (default: 4 and 1.5)")
    parser.add_argument("--fast", action="store_true", help="a smoke test: one short run of each")
    add_arguments(parser)
    args = parser.parse_args(argv)
    if args.fast:
        args.seeds, args.seconds = 1, 0.05
    torch.set_num_threads(1)
    for data in data_sets(args.seconds):
        print(f"\n{data.name}: {data.batch} a batch, {data.seconds:g} s a run\n")
        names = ["optimizer", "at the end", "averaged", "best", "time per evaluation"]
        table = Table(names, args, part=data.part)
        base = 0.0
        for way in WAYS:
            runs = [run(data, way, seed) for seed in range(args.seeds)]
            last, averaged, best, seconds = (
                statistics.median(getattr(r, f) for r in runs)
                for f in ("last", "averaged", "best", "seconds")
            )
            base = base or seconds  # of the first row
            ratio = seconds / base / way.factor
            numbers = [f"{value:.3f}" for value in (last, averaged, best)]
            table.add([way.name, *numbers, f"{ratio:.2f}"])


if __name__ == "__main__":
    main()
