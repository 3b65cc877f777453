"""The note's section 9: one run under exact, entropic and sliced transport.

    python -m lightning_examples.distances

The note's network with the same step under the exact distance (EMD), the Sinkhorn divergence at
several blurs and the sliced distance with several numbers of projections: what each step costs,
how its distance compares with the true W2^2 of the same move, and where the neurons go.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from matplotlib import pyplot as plt

from lightning_examples import experiment, output, problems
from torch_wprox import EMD, Sinkhorn, Sliced, WassersteinProx, plotting

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
    parser = experiment.parser(__doc__, "distances")
    parser.add_argument("--m", type=int, default=50, help="neurons")
    parser.add_argument("--gamma", type=float, default=1.0, help="step size")
    parser.add_argument("--steps", type=int, default=10, help="proximal steps")
    parser.add_argument("--seed", type=int, default=0, help="of the initialisation")
    parser.add_argument("--max-eval", type=int, default=100, help="evaluations per step")
    args = parser.parse_args(argv)
    if args.fast:
        args.steps, args.max_eval = 2, 15
    runs, rows = {}, []
    for name, kind in KINDS.items():
        began = time.perf_counter()
        runs[name] = run = experiment.train(
            problems.note_layer(args.m, args.seed, scale=1e-2),
            partial(WassersteinProx, gamma=args.gamma, max_eval=args.max_eval, **kind),
            problems.sinus(),
            args.steps,
            progress=not args.no_progress,
        )
        spent = (time.perf_counter() - began) / run.evaluations[-1]
        for t, report in enumerate(run.reports, start=1):
            true, own = report.wasserstein_sq, report.distance_sq
            row = {"distance": name, "step": t, "loss": report.loss_after, "own": own, "W2^2": true}
            row["own / W2^2"] = own / true if true > MOVED else None
            rows.append({**row, "ms per evaluation": 1e3 * spent})
    output.print_table([row for row in rows if row["step"] in (1, args.steps)])
    output.write_csv(args.out / "distances.csv", rows)
    with plotting.style():
        figure(runs, args)
    return runs


def moved(run: experiment.Run) -> list[Any]:
    return [(t, r) for t, r in enumerate(run.reports, 1) if (r.wasserstein_sq or 0) > MOVED]


# %% The figure: loss, own distance against the true one, and the neurons' ways
def figure(runs: dict[str, Any], args: Any) -> None:
    _, (left, right) = plt.subplots(1, 2)
    steps = range(args.steps + 1)
    plotting.plot_curves(
        {name: (steps, run.losses) for name, run in runs.items()}, left, xlabel="proximal step"
    )
    ratios = {
        name: zip(*((t, r.distance_sq / r.wasserstein_sq) for t, r in moved(run)), strict=True)
        for name, run in runs.items()
    }
    labels = {"xlabel": "proximal step", "ylabel": "own distance / true $W_2^2$"}
    plotting.plot_curves(ratios, right, log=False, **labels)
    right.get_legend().remove()
    output.save(left, args.out / "distances.png", size=(11, 4.8))
    _, axes = plt.subplots(1, len(SHOWN), sharex=True, sharey=True)
    x, _ = problems.sinus()
    for ax, name in zip(axes, SHOWN, strict=True):
        ways = torch.stack(runs[name].positions)
        plotting.plot_trajectories(ways, runs[name].model.signs, ax, inputs=x, name=name)
    output.save(axes[0], args.out / "distances_neurons.png", size=(14, 5))


if __name__ == "__main__":
    main()
