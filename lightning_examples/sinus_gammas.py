"""The five-point sine over step sizes and seeds: where the two descents differ, and get stuck.

    python -m lightning_examples.sinus_gammas

The setting of `sinus`, gamma = 10^a for a = 0, .., -5, ten steps each as in the note, so that the
time travelled, ten m gamma, shrinks with gamma.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from matplotlib import pyplot as plt

from lightning_examples import experiment, output, problems
from lightning_examples.experiment import Run
from torch_wprox import FrobeniusProx, WassersteinProx, plotting
from torch_wprox.plotting.look import colors_of

GAMMAS = [10.0**a for a in range(-5, 1)]
Key = tuple[str, float, int]  # descent, gamma, seed
MAKE: dict[str, Any] = {
    "Wasserstein": lambda p, g, n: WassersteinProx(p, g, max_eval=n),
    "Frobenius": lambda p, g, n: FrobeniusProx(p, g, max_eval=n),
    "global": lambda p, g, n: WassersteinProx(p, g, solver="global"),
}


# %% The runs: seed 0 is solved globally too, other seeds differ little there
def descents(args: argparse.Namespace) -> dict[Key, Run]:
    data, progress, runs = problems.sinus(), not args.no_progress, {}
    for g, seed in itertools.product(GAMMAS, range(args.seeds)):
        for name in list(MAKE)[: 2 + (seed == 0)]:
            layer = problems.note_layer(args.m, seed)
            made = partial(MAKE[name], g=g, n=args.evaluations)
            runs[name, g, seed] = experiment.train(layer, made, data, args.steps, progress=progress)
    return runs


# %% The table
def row(key: Key, run: Run, runs: dict[Key, Run]) -> dict[str, Any]:
    name, gamma, seed = key
    start, end = run.positions[0], run.positions[-1]
    other = runs["Frobenius", gamma, seed].positions[-1]
    gaps = [r.gap / r.objective for r in run.reports if r.gap is not None]
    apart = ((end - other).norm() / (other - start).norm()).item()
    head = {"descent": name, "gamma": gamma, "seed": seed, "loss": run.losses[-1], "apart": apart}
    permuted = max(r.permuted_fraction or 0.0 for r in run.reports)
    return head | {"permuted": permuted, "relative gap": max(gaps, default=None)}


# %% The figure
def figure(rows: list[dict[str, Any]]) -> Any:
    left, middle, right = plt.subplots(1, 3)[1]

    def over(column: str, name: str) -> tuple[list[float], torch.Tensor]:
        runs = [r for r in rows if r["descent"] == name]
        values = torch.full((max(r["seed"] for r in runs) + 1, len(GAMMAS)), torch.nan)
        for r in runs:
            values[r["seed"], GAMMAS.index(r["gamma"])] = r[column]
        return GAMMAS, values

    how: dict[str, Any] = {"xlabel": r"step size $\gamma$", "marker": "o"}
    losses = {name: over("loss", name) for name in MAKE}
    plotting.plot_bands(losses, left, ylabel="loss after ten steps", log="xy", **how)
    apart = {"how far apart the two end": over("apart", "Wasserstein")}
    fraction = {f"largest permuted fraction, {n}": over("permuted", n) for n in list(MAKE)[:2]}
    plotting.plot_bands(
        apart | fraction, middle, ylabel="share of the distance moved", log="x", **how
    )
    plotting.legend_above(middle, columns=1)
    names = list(MAKE)[:2]
    for name, marker, color in zip(names, "ox", colors_of(names), strict=True):
        ends = sorted(r["loss"] for r in rows if r["descent"] == name and r["gamma"] == 1)
        right.ecdf(ends, marker=marker, color=color, label=name)
    for name, kinks, line in (("affine", (), ":"), ("one bump", (0.0, 0.25), "-.")):
        least = problems.least_loss(*problems.sinus(), kinks)
        right.axvline(least, color="black", ls=line, label=f"least loss, {name}: {least:.4f}")
    right.set(xscale="log", ylim=(0, 1.03), xlabel=r"loss, $\gamma = 1$", ylabel="share of seeds")
    plotting.legend_above(right, columns=2)
    return left


def main(argv: Sequence[str] | None = None) -> dict[Key, Run]:
    numbers = {"m": 50, "steps": 10, "seeds": 12, "evaluations": 100}
    args = experiment.parser(__doc__, "sinus_gammas", **numbers).parse_args(argv)
    if args.fast:
        args.m, args.steps, args.seeds, args.evaluations = 20, 2, 2, 20
    runs = descents(args)
    rows = [row(key, run, runs) for key, run in runs.items()]
    output.tabulate(args.out / "sinus_gammas.csv", rows)
    with plotting.style():
        output.save(figure(rows), args.out / "sinus_gammas.png", size=(14, 4.8))
        for ax, g in zip(both := plt.subplots(1, 2)[1], (1e-3, 1.0), strict=True):
            reports = {
                name: runs[name, g, min(1, args.seeds - 1)].reports for name in list(MAKE)[:2]
            }
            plotting.plot_descent(reports, ax).set_xlabel(rf"step $t$, $\gamma = {g:g}$")
        output.save(both[0], args.out / "sinus_gammas_steps.png", size=(14, 5))
    return runs


if __name__ == "__main__":
    main()
