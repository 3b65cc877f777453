"""As gamma -> 0 every descent is the gradient flow (sections 7 and 8 of the note).

    python -m lightning_examples.flow_vs_prox

One network, one time T in T/gamma steps: explicit (gradient descent with step size m gamma) and
implicit (both proximal steps), against the flow W' = -m grad F by a fine Runge-Kutta method.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from lightning_examples import experiment, output, problems
from lightning_examples.flow import gradient_flow
from torch_wprox import FrobeniusProx, WassersteinProx, plotting

SCALE = 1.0  # of the initialisation
SOLVED: dict[str, Any] = {"solver": "bfgs", "max_eval": 60, "tolerance_grad": 1e-5}
MAKE: dict[str, Any] = {
    "gradient descent": lambda p, m, g: torch.optim.SGD(p, lr=m * g),
    "Frobenius prox": lambda p, m, g: FrobeniusProx(p, g, **SOLVED),
    "Wasserstein prox": lambda p, m, g: WassersteinProx(p, g, **SOLVED),
}


# %% The descents
def descend(args: argparse.Namespace, name: str, seed: int, steps: int, exact: Tensor) -> Any:
    gamma = args.time / steps
    make = partial(MAKE[name], m=args.m, g=gamma)
    layer = problems.note_layer(args.m, seed, SCALE)
    run = experiment.train(layer, make, problems.sinus(), steps)
    far = (run.positions[-1] - exact).square().sum(1).mean().sqrt().item()
    swaps = max([r.permuted_fraction or 0.0 for r in run.reports], default=0.0)
    row = {"descent": name, "seed": seed, "gamma": gamma, "steps": steps}
    return {**row, "error": far, "permuted fraction": swaps}


# %% The figure and the slopes
def summary(rows: list[dict[str, Any]], seeds: int) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    samples, slopes = {}, []
    for name in MAKE:
        kind = [row for row in rows if row["descent"] == name]
        gammas = list(dict.fromkeys(row["gamma"] for row in kind))
        found = torch.tensor([row["error"] for row in kind]).view(seeds, -1)
        samples[name] = (gammas, found)
        middle, last = found.median(0).values.log(), len(gammas) // 2
        slope = (middle[last] - middle[-1]) / math.log(gammas[last] / gammas[-1])
        slopes.append({"descent": name, "slope": slope.item()})
    return samples, slopes


def main(argv: Sequence[str] | None = None) -> list[dict[str, Any]]:
    parser = experiment.parser(__doc__, "flow_vs_prox")
    parser.add_argument("--m", type=int, default=10, help="neurons")
    parser.add_argument("--time", type=float, default=0.02, help="T, where all are compared")
    parser.add_argument("--halvings", type=int, default=7, help="how often gamma = T is halved")
    parser.add_argument("--seeds", type=int, default=5, help="runs of each kind")
    args = parser.parse_args(argv)
    if args.fast:
        args.halvings, args.seeds = 3, 1
    exact = []
    for seed in range(args.seeds):
        layer, (x, y) = problems.note_layer(args.m, seed, SCALE), problems.sinus()
        loss = partial(problems.mean_squared_error, layer, x, y)
        exact.append(gradient_flow(layer, loss, args.time, 2000)[-1])
    rows = [
        descend(args, name, seed, 2**k, exact[seed])
        for name in MAKE
        for seed in range(args.seeds)
        for k in range(args.halvings + 1)
    ]
    samples, slopes = summary(rows, args.seeds)
    output.print_table(slopes)
    output.write_csv(args.out / "flow_vs_prox.csv", rows)
    with plotting.style():
        how = {"xlabel": r"$\gamma$", "ylabel": "distance to the flow (root mean square)"}
        ax = plotting.plot_bands(samples, log="xy", marker="o", **how)
        output.save(ax, args.out / "flow_vs_prox.png", size=(7, 4.5))
    return rows


if __name__ == "__main__":
    main()
