"""The note's section 9: one Wasserstein gradient flow, by particles and on a grid.

    python -m lightning_examples.grid

The sinus data, from a Gaussian density of neurons of either sign. The particle step moves m neurons
under exact transport; the grid steps move the mass of fixed neurons under entropic transport, with
the spreading that it brings (entropic) and without (debiased). All take the same gamma.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

import torch
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from torch import Tensor

from lightning_examples import experiment
from lightning_examples.experiment import Run
from torch_wprox import EntropicJKO, GridLayer, WassersteinProx, plotting

SIDE, MASS = 4.0, 40.0


# %% The start: one density, on the grid and as particles
def gaussian(n: int) -> GridLayer:
    axis = torch.linspace(-SIDE, SIDE, n, dtype=torch.float64)
    layer = GridLayer([axis, axis], mass=MASS, dtype=axis.dtype)
    bump = torch.exp(-2 * layer.cells.square().sum(1)).repeat(2)
    layer.set_weight(bump / bump.sum())
    return layer


# %% The descents
def descents(args: argparse.Namespace) -> tuple[dict[str, Run], dict[str, EntropicJKO]]:
    data, made = experiment.sinus(), {}
    runs = {
        "particles, EMD": experiment.train(
            gaussian(args.n).to_particles(args.m),
            lambda p: WassersteinProx(p, args.gamma, max_eval=args.max_eval),
            data,
            args.steps,
            progress=not args.no_progress,
        )
    }
    for name, debiased in (("grid, entropic", False), ("grid, debiased", True)):
        layer = gaussian(args.n)
        made[name] = EntropicJKO(layer, args.gamma, debiased=debiased)
        runs[name] = experiment.train(
            layer,
            lambda _, name=name: made[name],
            data,
            args.steps,
            progress=not args.no_progress,
        )
    return runs, made


# %% The figures
def heat_map(ax: Axes, density: Tensor, layer: GridLayer, sign: float) -> None:
    """One block: w to the right, b upwards, white where there is no mass."""
    half = layer.spacing[0] / 2
    ends = (-SIDE - half, SIDE + half, -SIDE - half, SIDE + half)
    shown = density.sqrt().t()  # the root shows the tails, too
    ax.imshow(shown, origin="lower", extent=ends, cmap="Reds" if sign > 0 else "Blues")
    ax.set(xlim=(-SIDE, SIDE), ylim=(-SIDE, SIDE))


def arrows(ax: Axes, opt: EntropicJKO, block: int) -> None:
    """Where the plan of the last step took the mass of a cell, three times as long."""
    assert opt.plan is not None
    moved, q = opt.plan.displacement(opt.layer.axes())[:, block], opt.plan.q[block]
    held = (q > 0.02 * q.max()) & (torch.arange(q.numel()).view_as(q) % 3 == 0)
    cells = opt.layer.cells.view(*q.shape, 2)[held].t()
    ax.quiver(*cells, *(3 * moved[:, held]), angles="xy", scale_units="xy", scale=1, width=0.004)


def figures(runs: dict[str, Run], made: dict[str, EntropicJKO], args: argparse.Namespace) -> None:
    with plotting.style():
        steps = torch.arange(args.steps + 1)
        curves = {name: (steps, torch.tensor(run.losses)) for name, run in runs.items()}
        ax = plotting.plot_curves(curves, xlabel="step", ylabel="loss $f$")
        experiment.save(ax, args.out / "grid.png", size=(7, 4.5))
        _, axes = plt.subplots(2, 4, sharex=True, sharey=True)
        particles = runs["particles, EMD"]
        for row, sign in zip(axes, (1.0, -1.0), strict=True):
            block = int(sign < 0)
            heat_map(row[0], gaussian(args.n).density()[block], gaussian(args.n), sign)
            points = particles.positions[-1][particles.model.signs == sign]
            color = plotting.POSITIVE if sign > 0 else plotting.NEGATIVE
            row[1].plot(*points.t(), "o", markersize=3, color=color, alpha=0.5)
            for ax, (name, opt) in zip(row[2:], made.items(), strict=True):
                heat_map(ax, runs[name].model.density()[block], opt.layer, sign)
                arrows(ax, opt, block)
            row[0].set_ylabel(f"bias, neurons of sign {'+' if sign > 0 else '-'}")
        for ax, name in zip(axes[0], ("start", *runs), strict=True):
            ax.set_title(name)
        for ax in axes.flat:
            ax.set_aspect("equal")
        for ax in axes[1]:
            ax.set_xlabel("weight")
        experiment.save(axes[0, 0], args.out / "grid_density.png", size=(13, 7))


# %% The table
def table(runs: dict[str, Run]) -> list[dict[str, Any]]:
    rows = []
    for name, run in runs.items():
        for t, (f, spent) in enumerate(zip(run.losses, run.evaluations, strict=True)):
            rows.append({"descent": name, "step": t, "f": f, "evaluations": spent})
    experiment.print_table([row for row in rows if row["step"] in (0, 1, len(run.losses) - 1)])
    return rows


def main(argv: Sequence[str] | None = None) -> dict[str, Run]:
    parser = experiment.parser(__doc__, "grid")
    parser.add_argument("--n", type=int, default=64, help="cells along an axis")
    parser.add_argument("--m", type=int, default=200, help="particles")
    parser.add_argument("--gamma", type=float, default=0.2, help="step size")
    parser.add_argument("--steps", type=int, default=15, help="steps")
    parser.add_argument("--max-eval", type=int, default=500, help="evaluations per particle step")
    args = parser.parse_args(argv)
    if args.fast:
        args.n, args.m, args.steps, args.max_eval = 17, 20, 3, 30
    runs, made = descents(args)
    experiment.write_csv(args.out / "grid.csv", table(runs))
    figures(runs, made, args)
    return runs


if __name__ == "__main__":
    main()
