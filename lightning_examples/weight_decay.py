"""Both layers trained with weight decay, by explicit and implicit steps (section 10 of the note).

    python -m lightning_examples.weight_decay

F = MSE + (weight_decay/2)|(W, alpha)|^2. Its global minimum is known (a convex program) and bounded
from the closure alone by ``certify_training``: so one sees how far each descent is from it. Neurons
that activate no data have no gradient but the decay: they shrink, unless transport moves them.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from matplotlib import pyplot as plt

from lightning_examples import experiment, output, problems
from torch_wprox import FrobeniusProx, MeanFieldLayer, WassersteinProx, certify_training, plotting

LR = 0.05  # of the explicit steps: 200 of them for the time m gamma of an implicit one


def network(m: int, seed: int) -> MeanFieldLayer:
    layer = MeanFieldLayer(1, m, parameterization="joint", reduction="sum", dtype=torch.float64)
    start = 0.3 * np.random.default_rng(seed).standard_normal((m, 3))
    with torch.no_grad():
        layer.particles.copy_(torch.from_numpy(start))
    return layer


# %% One descent: F and the size of the neurons that began dead, over the time of the flow
def descend(args: argparse.Namespace, name: str, seed: int) -> tuple[dict[str, Any], Any]:
    x, y = problems.sinus()
    layer, each = network(args.m, seed), args.m * args.gamma
    dead = (layer.particles.detach()[:, :2] @ torch.cat([x, x**0], 1).T <= 0).all(1)
    prox = {"gamma": args.gamma, "weight_decay": args.decay, "max_eval": args.max_eval}
    make: dict[str, Any] = {
        "explicit": partial(torch.optim.SGD, lr=LR, weight_decay=args.decay),
        "Frobenius": partial(FrobeniusProx, **prox),
        "Wasserstein": partial(WassersteinProx, **prox),
        "solved globally": partial(WassersteinProx, **prox, solver="global"),
    }
    every = round(each / LR) if name == "explicit" else 1
    run = experiment.train(layer, make[name], (x, y), every * args.steps)
    ways, losses = torch.stack(run.positions[::every]), torch.tensor(run.losses[::every])
    values = losses + 0.5 * args.decay * ways.square().sum((1, 2))

    def closure() -> torch.Tensor:
        loss = problems.mean_squared_error(layer, x, y)
        loss.backward()
        return loss

    bound = certify_training(layer, closure, weight_decay=args.decay)
    size = ways[:, dead].norm(dim=2).median(1).values
    return {"F": values, "size": size, "time": each * torch.arange(len(ways))}, bound


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    parser = experiment.parser(__doc__, "weight_decay")
    parser.add_argument("--m", type=int, default=50, help="neurons")
    parser.add_argument("--gamma", type=float, default=0.2, help="step size of the implicit steps")
    parser.add_argument("--decay", type=float, default=0.03, help="weight decay")
    parser.add_argument("--steps", type=int, default=20, help="implicit steps")
    parser.add_argument("--seeds", type=int, default=3, help="runs of each kind")
    parser.add_argument("--max-eval", type=int, default=200, help="evaluations per step")
    args = parser.parse_args(argv)
    if args.fast:
        args.m, args.steps, args.seeds, args.max_eval = 20, 2, 1, 40
    found: dict[str, Any] = {}
    rows = []
    for name in ("explicit", "Frobenius", "Wasserstein", "solved globally"):
        found[name] = [descend(args, name, seed) for seed in range(args.seeds)]
        for seed, (way, bound) in enumerate(found[name]):
            row = {"descent": name, "seed": seed, "F": bound.objective, "bound": bound.lower_bound}
            row |= {"proved": bound.certified, "gap %": 100 * bound.relative_gap}
            rows.append({**row, "size of the dead": way["size"][-1].item()})
    output.print_table(rows)
    output.write_csv(args.out / "weight_decay.csv", rows)
    least = max(row["bound"] for row in rows)
    with plotting.style():
        _, (left, right) = plt.subplots(1, 2)
        for ax, key, label, shift in (
            (left, "F", "$F$ above the proved lower bound of its minimum", least),
            (right, "size", "neurons that began dead: median of $|(w, \\alpha)|$", 0.0),
        ):
            curves = {
                name: (runs[0][0]["time"], torch.stack([way[key] for way, _ in runs]) - shift)
                for name, runs in found.items()
            }
            plotting.plot_bands(curves, ax, xlabel="time", ylabel=label, log="y")
        output.save(left, args.out / "weight_decay.png", size=(11, 4.8))
    return found


if __name__ == "__main__":
    main()
