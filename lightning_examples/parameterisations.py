"""Five parameterisations of one network, as flows (sections 6, 8 and 11 of the note).

    python -m lightning_examples.parameterisations

All five start as the same function; where the ground metric of the particles differs, so does the
flow. Gradient descent sees the Euclidean metric of the stored numbers, a proximal step the ground
metric of the cloud: under it "radial" is the flow of "joint", which conserves |w|^2 - alpha^2.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from matplotlib import pyplot as plt

from lightning_examples import experiment, output, problems
from torch_wprox import FrobeniusProx, MeanFieldLayer, WassersteinProx, plotting

FORMS = ("joint", "radial", "signed", "clouds", "sphere")
DESCENTS = ("gradient descent", "Frobenius prox", "Wasserstein prox")


def network(form: str, m: int, seed: int) -> MeanFieldLayer:
    """The same function in every form."""
    g = torch.Generator().manual_seed(seed)
    w = 2 * torch.randn(m, 2, generator=g, dtype=torch.float64)
    alpha = 2 * torch.randn(m, 1, generator=g, dtype=torch.float64)
    return MeanFieldLayer.from_neurons(w[:, :1], alpha, bias=w[:, 1], parameterization=form)


# %% One descent
def descend(args: argparse.Namespace, name: str, form: str, seed: int) -> dict[str, Any]:
    prox = {"gamma": args.gamma, "max_eval": args.max_eval, "tolerance_grad": 1e-5}
    make: dict[str, Any] = {
        "gradient descent": partial(torch.optim.SGD, lr=args.m * args.gamma),
        "Frobenius prox": partial(FrobeniusProx, **prox),
        "Wasserstein prox": partial(WassersteinProx, **prox),
    }
    layer = network(form, args.m, seed)
    steps = round(args.time / args.gamma)
    progress = not args.no_progress
    run = experiment.train(layer, make[name], problems.sinus(), steps, progress=progress)
    grid = torch.linspace(-0.5, 0.5, 101, dtype=torch.float64)[:, None]
    drift = None
    if form == "joint":
        balance = [W[:, :2].square().sum(1) - W[:, 2].square() for W in run.positions]
        drift = (balance[-1] - balance[0]).abs().max().item()
    return {"losses": run.losses, "function": layer(grid).detach(), "drift": drift}


def main(argv: Sequence[str] | None = None) -> list[dict[str, Any]]:
    numbers = {"m": 20, "gamma": 0.02, "time": 1.0, "seeds": 5, "max_eval": 100}
    args = experiment.parser(__doc__, "parameterisations", **numbers).parse_args(argv)
    if args.fast:
        args.time, args.seeds, args.max_eval = 0.04, 1, 20
    rows = []
    with plotting.style():
        _, axes = plt.subplots(1, 3, sharey=True)
        for name, ax in zip(DESCENTS, axes, strict=True):
            losses: dict[str, list[list[float]]] = {form: [] for form in FORMS}
            for seed in range(args.seeds):
                runs = {form: descend(args, name, form, seed) for form in FORMS}
                for form, run in runs.items():
                    losses[form].append([loss / run["losses"][0] for loss in run["losses"]])
                    apart = (run["function"] - runs["joint"]["function"]).abs().max().item()
                    row = {"descent": name, "parameterisation": form, "seed": seed}
                    row |= {"loss": run["losses"][-1], "function apart from joint": apart}
                    rows.append({**row, "balance drift": run["drift"]})
            time = args.gamma * torch.arange(len(losses["joint"][0]))
            curves = {form: (time, values) for form, values in losses.items()}
            plotting.plot_bands(curves, ax, xlabel=f"time\n{name}", ylabel="loss $F(t)/F(0)$")
        for ax in axes[1:]:
            ax.get_legend().remove()
            ax.set_ylabel("")
        output.save(axes[0], args.out / "parameterisations.png", size=(12, 4.5))
    output.print_table(rows)
    output.write_csv(args.out / "parameterisations.csv", rows)
    return rows


if __name__ == "__main__":
    main()
