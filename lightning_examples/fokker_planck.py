"""The Fokker-Planck equation by convex maps: a density that flows into five wells.

    python -m lightning_examples.fokker_planck

Samples of a Gaussian follow the flow of E(rho) = int V d rho + T int rho log rho: every step is a
JKO step, found as the gradient of an input-convex network. Their densities are known at all times,
by the change of variables. Beside them: 200 000 particles of the Langevin equation that has the
same density, dX = -grad V dt + sqrt(2 T) dB, by Euler-Maruyama, counted in cells.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from matplotlib import pyplot as plt
from torch import Tensor

from lightning_examples import experiment, output
from lightning_examples.flowing import Window, kl, log_normal, normal, trained
from torch_wprox import MapFlow, plotting
from torch_wprox.maps import Entropy, Potential

TEMPERATURE, WINDOW = 0.25, Window(side=3.6, cells=90)
ANGLES = torch.arange(5, dtype=torch.float64) * (2 * math.pi / 5) + math.pi / 2
WELLS = 2.2 * torch.stack([ANGLES.cos(), ANGLES.sin()], 1)
DEPTHS = torch.tensor([1.0, 0.6, 0.3, 0.3, 0.6], dtype=torch.float64)


# %% The potential, the start, and the density that the flow ends in: exp(-V/T)/Z
def potential(x: Tensor) -> Tensor:
    near = -(x[:, None] - WELLS).square().sum(2) / (2 * 0.55**2) + DEPTHS
    return -near.logsumexp(1) / 4 + 0.05 * x.square().sum(1)


def langevin(x: Tensor, t: float, seed: int, dt: float = 2e-3) -> Tensor:
    random = torch.Generator().manual_seed(seed)
    for _ in range(round(t / dt)):
        at = x.requires_grad_()
        (slope,) = torch.autograd.grad(potential(at).sum(), at)
        noise = torch.randn(x.shape, generator=random, dtype=x.dtype)
        x = x.detach() - dt * slope + math.sqrt(2 * TEMPERATURE * dt) * noise
    return x


# %% The run
def main(argv: Sequence[str] | None = None) -> list[dict[str, Any]]:
    how = {"m": 4096, "steps": 30, "gamma": 0.1, "max_eval": 60}
    parser = experiment.parser(__doc__, "fokker_planck", **how)
    parser.add_argument(
        "--particles",
        type=int,
        default=200_000,
        help="particles of the Langevin equation, by Euler-Maruyama",
    )
    args = parser.parse_args(argv)
    if args.fast:
        args.m, args.steps, args.max_eval, args.particles = 300, 10, 8, 5000
    energies: list[Any] = [Potential(potential), Entropy(TEMPERATURE)]
    options = {"max_eval": args.max_eval, "log_density": log_normal}
    flow = MapFlow(normal(args.m), energies, args.gamma, **options)
    trained(flow, args, "free energy")

    grid, area = WINDOW.middles(), WINDOW.area
    end = torch.exp(-potential(grid) / TEMPERATURE)
    end /= end.sum()
    shown = [round(args.steps * share) for share in (0, 0.1, 0.3, 1)]
    x, before, pictures = torch.randn(args.particles, 2, dtype=torch.float64), 0, {}
    for step in shown:
        x, before = langevin(x, (step - before) * args.gamma, seed=step), step
        pictures[step] = (flow.log_density(grid, step).exp() * area, WINDOW.counted(x.detach()))
    rows = [
        {"step": s, "time": s * args.gamma, "KL to the end, maps": kl(maps, end)}
        | {
            "KL to the end, Langevin": kl(counted, end),
            "total variation": float((maps - counted).abs().sum() / 2),
        }
        for s, (maps, counted) in pictures.items()
    ]
    output.tabulate(args.out / "fokker_planck.csv", rows)
    with plotting.style():
        _, axes = plt.subplots(2, 5, width_ratios=[1] * 5, sharex=True, sharey=True)
        top = float(end.max())
        for column, (step, pair) in enumerate(pictures.items()):
            for ax, masses in zip(axes[:, column], pair, strict=True):
                WINDOW.draw(ax, masses, top)
            axes[0, column].set_title(f"t = {step * args.gamma:g}")
        for ax in axes[:, 4]:
            WINDOW.draw(ax, end, top)
        axes[0, 4].set_title(r"$t \to \infty$")
        axes[0, 0].set_ylabel("convex maps")
        axes[1, 0].set_ylabel("Langevin particles")
        output.save(axes[0, 0], args.out / "fokker_planck.png", size=(12, 5.2))
    return rows


if __name__ == "__main__":
    main()
