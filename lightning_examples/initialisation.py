"""Small and large initialisation: alignment first, then convergence (section 5 of the note).

    python -m lightning_examples.initialisation

Both layers train, balanced at the start (|w_i| = |alpha_i| ~ scale), by short proximal steps: the
implicit Euler scheme of the gradient flow, time t = m gamma per step. While the output is near
zero a neuron's direction u climbs alpha G(u), G(u) = (2/n) sum_j y_j relu<x_j, u>, whose local
maxima are the extremal vectors of Maennel, Bousquet and Gelly (2018).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from matplotlib import pyplot as plt
from torch import Tensor

from lightning_examples import experiment, output, problems
from lightning_examples.experiment import Run
from torch_wprox import FrobeniusProx, plotting

SCALES = (1e-3, 1e-2, 1e-1, 1.0)
EXTREMAL = {sign: problems.extremal(*problems.sine_period(), sign) for sign in (1.0, -1.0)}


# %% How near the neurons are to the extremal vectors
def angles_of(run: Run) -> tuple[Tensor, Tensor]:
    """Angles (T, k) of the neurons that are active at the start, and their signs (k,)."""
    ways = torch.stack(run.positions)
    ways = ways[:, problems.activates(ways[0, :, :2], problems.sine_period()[0])]
    return torch.atan2(ways[:, :, 1], ways[:, :, 0]), ways[0, :, 2].sign()


def alignment(run: Run) -> Tensor:
    """Median over neurons, (T,), of the cosine to the nearest extremal vector of their sign."""
    angles, signs = angles_of(run)
    near = [(angles[:, signs == s, None] - e).cos().amax(dim=2) for s, e in EXTREMAL.items()]
    return torch.cat(near, dim=1).quantile(0.5, dim=1)


def row(name: str, seed: int, run: Run, dt: float) -> dict[str, Any]:
    steps = sum(loss > 0.9 * run.losses[0] for loss in run.losses[1:])
    first, last = alignment(run)[[0, steps]].tolist()
    numbers = {"plateau": steps * dt, "alignment at start": first, "at its end": last}
    return {"run": name, "seed": seed, **numbers, "loss": run.losses[-1]}


# %% The figure
def figure(runs: dict[tuple[str, int], Run], dt: float) -> Any:
    (top, middle), planes = plt.subplots(2, 2)[1]
    curves = experiment.loss_curves(runs)
    time = torch.arange(len(next(iter(runs.values())).losses)) * dt
    near = {key: alignment(run) for key, run in runs.items()}
    cosines = {k: torch.stack([c for (n, _), c in near.items() if n == k]) for k in curves}
    for ax, label, values in (
        (top, "loss $F$", {k: y for k, (_, y) in curves.items()}),
        (middle, "cosine to an extremal vector", cosines),
    ):
        samples = {k: (time, y) for k, y in values.items()}
        plotting.plot_bands(samples, ax, xlabel="time $t$", ylabel=label, log="y" * (ax is top))
    top.set(ylim=(1e-8, None))
    for ax, name in zip(planes, list(curves)[:: len(curves) - 1], strict=True):
        angles, signs = angles_of(runs[name, 0])
        angles[1:][angles.diff(dim=0).abs() > torch.pi] = torch.nan  # once around
        for sign, color in ((1.0, plotting.POSITIVE), (-1.0, plotting.NEGATIVE)):
            ax.plot(time, angles[:, signs == sign].rad2deg(), color=color, lw=0.8, alpha=0.7)
            for angle in EXTREMAL[sign].rad2deg().tolist():
                ax.axhline(angle, color=color, ls="--", lw=1.2)
        ax.set(xlabel=f"time $t$ ({name}, first seed)", ylabel="angle of $(w, b)$ in degrees")
        ax.set(xlim=(0, min(25.0, time[-1].item())), yticks=range(-180, 181, 60))
    return top


def main(argv: Sequence[str] | None = None) -> dict[tuple[str, int], Run]:
    numbers = {"m": 50, "dt": 0.25, "time": 80.0, "seeds": 3}
    args = experiment.parser(__doc__, "initialisation", **numbers).parse_args(argv)
    if args.fast:
        args.m, args.time, args.seeds = 20, 10.0, 1
    how: dict[str, Any] = {"max_eval": 15, "tolerance_grad": 1e-3}
    runs = {}
    for scale, seed in [(scale, seed) for scale in SCALES for seed in range(args.seeds)]:
        runs[f"scale {scale:g}", seed] = experiment.train(
            problems.balanced_layer(args.m, scale, seed),
            lambda p: FrobeniusProx(p, args.dt / args.m, **how),
            problems.sine_period(),
            round(args.time / args.dt),
            progress=not args.no_progress,
        )
    rows = [row(*key, run, args.dt) for key, run in runs.items()]
    output.tabulate(args.out / "initialisation.csv", rows)
    with plotting.style():
        output.save(figure(runs, args.dt), args.out / "initialisation.png", size=(12, 9))
    return runs


if __name__ == "__main__":
    main()
