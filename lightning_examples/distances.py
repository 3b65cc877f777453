"""One run under exact, entropic and sliced transport (section 9 of the note).

    python -m lightning_examples.distances

The five-point sine with the same step under the exact distance (EMD), the Sinkhorn divergence at
several blurs and the sliced distance with several numbers of projections: what each step costs,
how its distance compares with the true W2^2 of the same move, and where the neurons go.
"""

from __future__ import annotations

import argparse
import itertools
import math
import time
import warnings
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from matplotlib import pyplot as plt

from lightning_examples import experiment, output, problems
from torch_wprox import EMD, Sinkhorn, Sliced, StepReport, WassersteinProx, plotting

KINDS: dict[str, dict[str, Any]] = {
    "EMD": {"distance": EMD()},
    "EMD, solved globally": {"distance": EMD(), "solver": "global"},
    "Sinkhorn, blur 0.01": {"distance": Sinkhorn(blur=0.01)},
    "Sinkhorn, blur 0.1": {"distance": Sinkhorn(blur=0.1)},
    "Sinkhorn, blur 1": {"distance": Sinkhorn(blur=1.0)},
    "sliced, 5 projections": {"distance": Sliced(projections=5)},
    "sliced, 50 projections": {"distance": Sliced(projections=50)},
}
MOVED = 1e-9  # below this W2^2 nothing has moved, and no ratio has a meaning
SHOWN = ("EMD", "Sinkhorn, blur 0.1", "sliced, 50 projections")


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    numbers = {"m": 50, "gamma": 1.0, "steps": 10, "seeds": 5, "max_eval": 100}
    args = experiment.parser(__doc__, "distances", **numbers).parse_args(argv)
    if args.fast:
        args.steps, args.seeds, args.max_eval = 2, 1, 15
    runs, rows = {}, []
    for name, seed in itertools.product(KINDS, range(args.seeds)):
        kind, began = KINDS[name], time.process_time()
        runs[name, seed] = run = experiment.train(
            problems.note_layer(args.m, seed, scale=1e-2),
            partial(WassersteinProx, gamma=args.gamma, max_eval=args.max_eval, **kind),
            problems.sinus(),
            args.steps,
            progress=not args.no_progress,
        )
        spent = (time.process_time() - began) / run.evaluations[-1]
        for t, report in enumerate(run.reports, start=1):
            true, own = report.wasserstein_sq, report.distance_sq
            row = {"distance": name, "seed": seed, "step": t, "loss": report.loss_after}
            row |= {"own": own, "W2^2": true}
            row["own / W2^2"] = own / true if true > MOVED else None
            rows.append({**row, "ms per evaluation": 1e3 * spent})
    output.print_table([row for row in rows if row["step"] in (1, args.steps)])
    output.write_csv(args.out / "distances.csv", rows)
    with plotting.style():
        figure(runs, args)
    return runs


def ratio(report: StepReport) -> float:
    """Return the own distance over the true one; NaN where nothing has moved."""
    true = report.wasserstein_sq or 0.0
    return report.distance_sq / true if true > MOVED else math.nan


# %% The figures: loss, own distance against the true one, and the trajectories of the neurons
def figure(runs: dict[tuple[str, int], experiment.Run], args: argparse.Namespace) -> None:
    _, (left, right) = plt.subplots(1, 2)
    losses = experiment.loss_curves(runs)
    plotting.plot_bands(losses, left, xlabel="step $t$", ylabel="loss $F$", log="y")
    ratios = {
        name: (
            range(1, args.steps + 1),
            [[ratio(r) for r in runs[name, seed].reports] for seed in range(args.seeds)],
        )
        for name in KINDS
    }
    with warnings.catch_warnings():  # nothing has moved in any run of a kind
        warnings.filterwarnings("ignore", "All-NaN slice", RuntimeWarning)
        label = "own distance / true $W_2^2$"
        plotting.plot_bands(ratios, right, xlabel="step $t$", ylabel=label)
    right.get_legend().remove()
    output.save(left, args.out / "distances.png", size=(11, 4.8))
    _, axes = plt.subplots(1, len(SHOWN), sharex=True, sharey=True)
    x, _ = problems.sinus()
    for ax, name in zip(axes, SHOWN, strict=True):
        ways, signs = torch.stack(runs[name, 0].positions), runs[name, 0].model.signs
        plotting.plot_trajectories(ways, signs, ax, inputs=x, name=name)
    output.save(axes[0], args.out / "distances_neurons.png", size=(14, 5))


if __name__ == "__main__":
    main()
