"""One Wasserstein gradient flow, by particles and on a grid (section 9 of the note).

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

from lightning_examples import experiment, output, problems
from lightning_examples.experiment import Run
from torch_wprox import EntropicJKO, GridLayer, WassersteinProx, plotting

SIDE, MASS = 4.0, 40.0
PARTICLES, ENTROPIC, DEBIASED = "particles, EMD", "grid, entropic", "grid, debiased"


# %% The start: one density, on the grid and as particles
def gaussian(n: int) -> GridLayer:
    axis = torch.linspace(-SIDE, SIDE, n, dtype=torch.float64)
    layer = GridLayer([axis, axis], mass=MASS, dtype=axis.dtype)
    bump = torch.exp(-2 * layer.cells.square().sum(1)).repeat(2)
    layer.set_weight(bump / bump.sum())
    return layer


# %% The descents
def descents(args: argparse.Namespace) -> tuple[dict[str, Run], dict[str, EntropicJKO]]:
    def train(model: Any, make: Any) -> Run:
        return experiment.train(model, make, data, args.steps, progress=not args.no_progress)

    data, prox = problems.sinus(), {"gamma": args.gamma, "max_eval": args.max_eval}
    start = gaussian(args.n).to_particles(args.m)
    runs, made = {PARTICLES: train(start, lambda p: WassersteinProx(p, **prox))}, {}
    for name in (ENTROPIC, DEBIASED):
        made[name] = EntropicJKO(gaussian(args.n), args.gamma, debiased=name == DEBIASED)
        runs[name] = train(made[name].layer, lambda _, name=name: made[name])
    return runs, made


# %% The figures: densities, with the last plan's displacement (three times as long), and f
def density(ax: Axes, layer: GridLayer, sign: float, opt: EntropicJKO | None = None) -> None:
    ends = 2 * (-SIDE - layer.spacing[0] / 2, SIDE + layer.spacing[0] / 2)
    shown = layer.density()[int(sign < 0)].sqrt().t()  # the root shows the tails, too
    kind = "Reds" if sign > 0 else "Blues"
    image = ax.imshow(shown.numpy(), origin="lower", extent=ends, cmap=kind, vmin=0)
    ax.figure.colorbar(image, ax=ax, shrink=0.7, label="square root of the density")
    ax.grid(False)
    if opt is not None and opt.plan is not None:
        moved = opt.plan.displacement(layer.axes())[:, int(sign < 0)]
        q = opt.plan.q[int(sign < 0)]
        held = (q > 0.02 * q.max()) & (torch.arange(q.numel()).view_as(q) % 3 == 0)
        cells, ways = layer.cells.view(*q.shape, 2)[held].t(), 3 * moved[:, held]
        ax.quiver(*cells.numpy(), *ways.numpy(), angles="xy", scale_units="xy", scale=1)


def figures(runs: dict[str, Run], made: dict[str, EntropicJKO], args: argparse.Namespace) -> None:
    with plotting.style():
        losses = {k: (range(len(run.losses)), run.losses) for k, run in runs.items()}
        ax = plotting.plot_curves(losses, xlabel="step $t$", ylabel="loss $F$")
        output.save(ax, args.out / "grid.png", size=(7, 4.5))
        _, axes = plt.subplots(2, 4, sharex=True, sharey=True, subplot_kw={"aspect": "equal"})
        for row, sign in zip(axes, (1.0, -1.0), strict=True):
            density(row[0], gaussian(args.n), sign)
            points = runs[PARTICLES].positions[-1][runs[PARTICLES].model.signs == sign]
            color = plotting.POSITIVE if sign > 0 else plotting.NEGATIVE
            row[1].plot(*points.t().numpy(), "o", markersize=3, color=color, alpha=0.5)
            for ax, opt in zip(row[2:], made.values(), strict=True):
                density(ax, opt.layer, sign, opt)
            row[0].set(ylabel=f"bias, sign {sign:+.0f}", xlim=(-SIDE, SIDE), ylim=(-SIDE, SIDE))
        for ax, below, name in zip(*axes, ("start", *runs), strict=True):
            ax.set_title(name)
            below.set(xlabel="weight")
        output.save(axes[0, 0], args.out / "grid_density.png", size=(15, 7))


def main(argv: Sequence[str] | None = None) -> dict[str, Run]:
    parser = experiment.parser(__doc__, "grid", m=200, gamma=0.2, steps=15, max_eval=500)
    parser.add_argument("--n", type=int, default=64, help="cells on a side of the grid")
    args = parser.parse_args(argv)
    if args.fast:
        args.n, args.m, args.steps, args.max_eval = 17, 20, 3, 30
    runs, made = descents(args)
    rows = [
        {"descent": k, "step": t, "f": f} for k, r in runs.items() for t, f in enumerate(r.losses)
    ]
    output.write_csv(args.out / "grid.csv", rows)
    output.print_table([row for row in rows if row["step"] in (0, 1, args.steps)])
    figures(runs, made, args)
    return runs


if __name__ == "__main__":
    main()
