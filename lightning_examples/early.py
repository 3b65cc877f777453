"""A random grid of neurons, and the triangle of those that do not move (section 2 of the note).

    python -m lightning_examples.early

Neurons with frozen signs start on a jittered grid in the plane of weight and bias, their output
close to zero. Proximal point (Frobenius) and Wasserstein descent, each with the inner loop of the
note (gradient descent, few iterations) and with a quasi-Newton one, and solved globally with a
bound.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from matplotlib import pyplot as plt

from lightning_examples import experiment, output, problems
from lightning_examples.experiment import Run
from torch_wprox import FrobeniusProx, MeanFieldLayer, WassersteinProx, plane, plotting

ACCURATE: dict[str, Any] = {"solver": "auto", "max_eval": 100}
NOTE: dict[str, Any] = {"solver": "gd", "max_eval": 30}
MAKE: dict[str, Any] = {
    "Frobenius": lambda p, g: FrobeniusProx(p, g, **ACCURATE),
    "Wasserstein": lambda p, g: WassersteinProx(p, g, **ACCURATE),
    "Frobenius, inner gd": lambda p, g: FrobeniusProx(p, g, **NOTE),
    "Wasserstein, inner gd": lambda p, g: WassersteinProx(p, g, **NOTE),
    "global": lambda p, g: WassersteinProx(p, g, solver="global"),  # of both: same minimisers
}


# %% The random grid: one neuron in each of side x side cells of [-1, 1]^2, signs at random
def grid(side: int, seed: int) -> MeanFieldLayer:
    rng = np.random.default_rng(seed)
    corners = np.stack(np.meshgrid(np.arange(side), np.arange(side)), -1).reshape(-1, 2)
    W = (corners + rng.uniform(size=corners.shape)) / side * 2 - 1
    return problems.signed_layer(rng.permutation(W), reduction="mean")


# %% What became of the neurons that activated no data
def row(name: str, seed: int, run: Run) -> dict[str, Any]:
    start, end = run.positions[0], run.positions[-1]
    far = (end - start)[~problems.activates(start, problems.sine_period()[0])].norm(dim=1)
    gaps = [report.gap / report.objective for report in run.reports if report.gap is not None]
    return {
        "descent": name,
        "seed": seed,
        "loss": run.losses[-1],
        "inactive": len(far),
        "inactive moved": int((far > 1e-3).sum()),
        "farthest": far.max().item(),
        "relative gap": max(gaps, default=None),
    }


# %% The figures: two descents from one grid, and the losses from all grids
def figures(runs: dict[tuple[str, int], Run], seed: int, args: argparse.Namespace) -> None:
    signs, x = runs["global", seed].model.signs, problems.sine_period()[0]
    ways = {name: torch.stack(runs[name, seed].positions) for name in list(MAKE)[:2]}
    with plotting.style():
        animation = plane.animate_trajectories(ways, signs, inputs=x, between=3)
        output.save_gif(animation, args.out / "early.gif", size=(9, 4.5), fps=9)
        (*planes, right) = plt.subplots(1, 3)[1]
        for ax, (name, way) in zip(planes, ways.items(), strict=True):
            plotting.plot_trajectories(way, signs, ax, inputs=x, name=name)
            moved = ~problems.activates(way[0], x) & ((way[-1] - way[0]).norm(dim=1) > 1e-3)
            plane.plot_ways(ax, way[:, moved], label="began inactive, moved")
            plane.plot_inactive(ax, x)
            plotting.legend_above(ax, columns=2)
        curves = experiment.loss_curves(runs)
        plotting.plot_bands(curves, right, xlabel="step $t$", ylabel="loss $F$")
        right.set(ylim=(0, None))
        output.save(right, args.out / "early.png", size=(14, 5))


def main(argv: Sequence[str] | None = None) -> dict[tuple[str, int], Run]:
    numbers = {"side": 10, "gamma": 5.0, "steps": 20, "seeds": 5, "show": 1}
    args = experiment.parser(__doc__, "early", **numbers).parse_args(argv)
    if args.fast:
        args.side, args.steps, args.seeds = 6, 3, 1
    runs = {}
    for key in [(name, seed) for seed in range(args.seeds) for name in MAKE]:
        optimizer = lambda p, make=MAKE[key[0]]: make(p, args.gamma)  # noqa: E731
        layer, progress = grid(args.side, key[1]), not args.no_progress
        runs[key] = experiment.train(
            layer, optimizer, problems.sine_period(), args.steps, progress=progress
        )
    output.tabulate(args.out / "early.csv", [row(*key, run) for key, run in runs.items()])
    figures(runs, min(args.show, args.seeds - 1), args)
    return runs


if __name__ == "__main__":
    main()
