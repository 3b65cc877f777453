"""More and more neurons, one limit, and whether it is optimal (sections 6.1 and 11 of the note).

    python -m lightning_examples.mean_field

Students of m neurons learn a teacher of five, from three laws of the first neurons: all directions
and both signs (wide), one sign, one cone of directions.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from matplotlib import pyplot as plt
from torch import Tensor

from lightning_examples import experiment, output
from torch_wprox import MeanFieldLayer, WassersteinProx, plane, plotting, wasserstein_sq

WIDE, PROX, ONE_SIGN, CONE = "wide", "wide, Wasserstein prox", "one sign", "one cone"
MOST = {WIDE: 10_000, PROX: 1000, ONE_SIGN: 1000, CONE: 1000}  # neurons
TURNS = torch.tensor([0.3, 1.4, 2.6, 3.9, 5.3], dtype=torch.float64)
PLANE = (r"$|\alpha| w_1$", r"$|\alpha| w_2$")


def on_circle(angle: Tensor) -> Tensor:
    return torch.stack([angle.cos(), angle.sin()], dim=1)


def teacher(n: int) -> tuple[Tensor, Tensor]:
    """Return x (n, 2) on the circle and y (n, 1), the sum of five neurons of alternating sign."""
    x = on_circle(2 * torch.pi * (torch.arange(n, dtype=torch.float64) + 0.5) / n)
    signs = torch.tensor([[1.0], [-1.0], [1.0], [-1.0], [1.0]], dtype=torch.float64)
    return x, (x @ on_circle(TURNS).T).relu() @ signs


# %% Students: one law of neurons, one flow (a neuron moves by m gamma grad F), any m
def student(args: argparse.Namespace, law: str, m: int, seed: int) -> experiment.Run:
    rng = torch.Generator().manual_seed(1000 * seed + m)
    angle = torch.pi * (2 * torch.rand(m, generator=rng, dtype=torch.float64) - 1)
    angle = TURNS[0] + args.cone * angle if law == CONE else angle
    signs = torch.tensor([1.0, 1.0 if law == ONE_SIGN else -1.0], dtype=torch.float64)
    layer = MeanFieldLayer.from_neurons(on_circle(angle), signs.repeat(m)[:m])
    if law == PROX:
        prox = partial(WassersteinProx, gamma=10 * args.gamma, max_eval=args.max_eval)
        return experiment.train(layer, prox, teacher(args.n), args.steps // 10)
    descent = partial(torch.optim.SGD, lr=m * args.gamma)
    return experiment.train(layer, descent, teacher(args.n), args.steps)


# %% The figure: clouds converge, losses, and where the neurons of two laws end
def figure(rows: list[dict[str, Any]], args: argparse.Namespace) -> None:
    def samples(law: str, key: str) -> tuple[list[int], Tensor]:
        kept = [row for row in rows if row["law"] == law]
        found = torch.tensor([row[key] for row in kept], dtype=torch.float64)
        return list(dict.fromkeys(row["m"] for row in kept)), found.view(-1, args.seeds).T

    _, ((clouds, losses), (left, right)) = plt.subplots(2, 2)
    how: dict[str, Any] = {"xlabel": "neurons $m$", "log": "xy", "marker": "o"}
    ends = {f"wide, {end}": samples(WIDE, f"W2 {end}") for end in ("before", "after")}
    ends["wide, Wasserstein prox, after"] = samples(PROX, "W2 after")
    plotting.plot_bands(ends, clouds, ylabel=f"$W_2$ to a wide cloud of {args.reference}", **how)
    plotting.plot_bands({law: samples(law, "loss") for law in MOST}, losses, ylabel="loss", **how)
    left.sharex(right), left.sharey(right)
    for ax, law in ((left, WIDE), (right, CONE)):
        ways = torch.stack(student(args, law, 100, 0).positions)
        w, signs = ways[..., 2:].abs() * ways[..., :2], ways[0, :, 2]
        plotting.plot_trajectories(w, signs, ax, labels=PLANE, name=f"from {law}")
        ax.set_aspect("equal")
    for ax in (left, right):  # now that the limits are known
        plane.plot_rays(ax, on_circle(TURNS), label="directions of the teacher")
        plotting.legend_above(ax, columns=2)
    output.save(clouds, args.out / "mean_field.png", size=(11, 9.5))


def main(argv: Sequence[str] | None = None) -> list[dict[str, Any]]:
    flow = {"gamma": 0.1, "steps": 400, "cone": 0.1, "seeds": 3, "max_eval": 30, "reference": 2000}
    args = experiment.parser(__doc__, "mean_field", n=40, **flow).parse_args(argv)
    widths = [10, 30, 100, 300, 1000, 3000, 10_000]
    if args.fast:
        args.steps, args.seeds, args.reference, widths = 20, 1, 100, [10, 30]
    wide, rows = student(args, WIDE, args.reference, seed=99), []
    for law, m in [(law, m) for law in MOST for m in widths if m <= MOST[law]]:
        for seed in range(args.seeds):
            run = student(args, law, m, seed)
            ends = [wasserstein_sq(run.positions[t], wide.positions[t]).sqrt() for t in (0, -1)]
            row = {"law": law, "m": m, "seed": seed, "loss": run.losses[-1]}
            rows.append({**row, "W2 before": ends[0].item(), "W2 after": ends[1].item()})
    output.tabulate(args.out / "mean_field.csv", rows)
    with plotting.style():
        figure(rows, args)
    return rows


if __name__ == "__main__":
    main()
