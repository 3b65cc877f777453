"""The five-point sine, with proofs: how far from optimal is each step, and a trained network?

    python -m lightning_examples.certified

Left: proximal descents solved locally and globally; the minimum of each step lies in the band under
its objective. Right: a network trained by Adam with weight decay; no network of any width can be
below the band. Both bounds come from the closure alone and do not care who moved the neurons.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from matplotlib import pyplot as plt
from torch import Tensor

from lightning_examples import experiment, output, problems
from torch_wprox import FrobeniusProx, MeanFieldLayer, WassersteinProx, plotting
from torch_wprox.certified.certificate import certify, certify_training
from torch_wprox.report import Certificate

Certified = tuple[list[int], list[Certificate]]


def backward_of(layer: MeanFieldLayer) -> Tensor:
    loss = problems.mean_squared_error(layer, *problems.sinus())
    loss.backward()
    return loss


# %% A proximal descent, and a certificate for every step that it took
def descent(kind: Any, args: argparse.Namespace, **options: Any) -> Certified:
    layer, data, gamma = problems.note_layer(seed=args.seed), problems.sinus(), args.gamma
    optimizer = lambda p: kind(p, gamma, **options)  # noqa: E731
    run = experiment.train(layer, optimizer, data, args.steps, progress=not args.no_progress)
    distance = "frobenius" if kind is FrobeniusProx else "emd"
    closure, found = partial(backward_of, layer), []
    for before, after in pairwise(run.positions):
        layer.particles.data.copy_(after)
        found.append(certify(layer, closure, before, gamma, distance=distance))
    return list(range(1, args.steps + 1)), found


# %% A network trained by Adam, and what any network could reach
def training(args: argparse.Namespace) -> Certified:
    start, decay = torch.Generator().manual_seed(args.seed), {"weight_decay": args.weight_decay}
    layer = MeanFieldLayer(1, 50, reduction="sum", generator=start, dtype=torch.float64)
    optimizer = lambda p: torch.optim.Adam(p, 1e-2, **decay)  # noqa: E731
    data, count = problems.sinus(), args.iterations
    run = experiment.train(layer, optimizer, data, count, progress=not args.no_progress)
    times, found = sorted({round(count ** (i / 20)) for i in range(21)}), []
    closure = partial(backward_of, layer)
    for t in times:
        layer.particles.data.copy_(run.positions[t])
        found.append(certify_training(layer, closure, **decay))
    return times, found


def main(argv: Sequence[str] | None = None) -> dict[str, Certified]:
    parser = experiment.parser(__doc__, "certified")
    parser.add_argument("--gamma", type=float, default=1.0, help="step size")
    parser.add_argument("--steps", type=int, default=10, help="proximal steps")
    parser.add_argument("--seed", type=int, default=0, help="seed of the initialisation")
    parser.add_argument("--max-eval", type=int, default=2000, help="evaluations per local step")
    parser.add_argument("--iterations", type=int, default=5000, help="iterations of Adam")
    parser.add_argument("--weight-decay", type=float, default=1e-2, help="weight decay of Adam")
    args = parser.parse_args(argv)
    if args.fast:
        args.steps, args.max_eval, args.iterations = min(args.steps, 2), 60, 300
    steps = {
        "Wasserstein": descent(WassersteinProx, args, max_eval=args.max_eval),
        "Frobenius": descent(FrobeniusProx, args, max_eval=args.max_eval),
        "global": descent(WassersteinProx, args, solver="global"),
    }
    trained = {"Adam": training(args)}
    columns = ("objective", "lower_bound", "relative_gap", "certified")
    rows = [
        {"run": name, "step": t} | {c: getattr(certificate, c) for c in columns}
        for name, found in (steps | trained).items()
        for t, certificate in zip(*found, strict=True)
    ]
    output.print_table(rows)
    output.write_csv(args.out / "certified.csv", rows)
    with plotting.style():
        _, (left, right) = plt.subplots(1, 2)
        plotting.plot_certificates(steps, left)
        plotting.plot_certificates(trained, right, xlabel="iteration", ylabel="objective $F$")
        right.set_xscale("log")
        output.save(left, args.out / "certified.png", size=(12, 5))
    return steps | trained


if __name__ == "__main__":
    main()
