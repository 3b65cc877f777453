"""The note's sections 6, 8 and 11: five parameterisations of one network, as flows.

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
def descend(args: argparse.Namespace, name: str, form: str) -> dict[str, Any]:
    prox = {"gamma": args.gamma, "max_eval": args.max_eval, "tolerance_grad": 1e-5}
    make: dict[str, Any] = {
        "gradient descent": partial(torch.optim.SGD, lr=args.m * args.gamma),
        "Frobenius prox": partial(FrobeniusProx, **prox),
        "Wasserstein prox": partial(WassersteinProx, **prox),
    }
    layer = network(form, args.m, args.seed)
    steps = round(args.time / args.gamma)
    run = experiment.train(layer, make[name], problems.sinus(), steps)
    grid = torch.linspace(-0.5, 0.5, 101, dtype=torch.float64)[:, None]
    drift = None
    if form == "joint":
        balance = [W[:, :2].square().sum(1) - W[:, 2].square() for W in run.positions]
        drift = (balance[-1] - balance[0]).abs().max().item()
    return {"losses": run.losses, "function": layer(grid).detach(), "drift": drift}


def main(argv: Sequence[str] | None = None) -> list[dict[str, Any]]:
    parser = experiment.parser(__doc__, "parameterisations")
    parser.add_argument("--m", type=int, default=20, help="neurons")
    parser.add_argument("--gamma", type=float, default=0.02, help="step size")
    parser.add_argument("--time", type=float, default=1.0, help="of the flow")
    parser.add_argument("--seed", type=int, default=0, help="of the initialisation")
    parser.add_argument("--max-eval", type=int, default=40, help="evaluations per step")
    args = parser.parse_args(argv)
    if args.fast:
        args.time, args.max_eval = 0.04, 20
    rows = []
    with plotting.style():
        _, axes = plt.subplots(1, 3, sharey=True)
        for name, ax in zip(DESCENTS, axes, strict=True):
            runs = {form: descend(args, name, form) for form in FORMS}
            for form, run in runs.items():
                apart = (run["function"] - runs["joint"]["function"]).abs().max().item()
                row = {"descent": name, "parameterisation": form, "loss": run["losses"][-1]}
                row |= {"function apart from joint": apart, "balance drift": run["drift"]}
                rows.append(row)
            time = args.gamma * torch.arange(len(runs["joint"]["losses"]))
            curves = {form: (time, run["losses"]) for form, run in runs.items()}
            plotting.plot_curves(curves, ax, xlabel=f"time\n{name}", log=False)
        for ax in axes[1:]:
            ax.get_legend().remove()
            ax.set_ylabel("")
        output.save(axes[0], args.out / "parameterisations.png", size=(12, 4.5))
    output.print_table(rows)
    output.write_csv(args.out / "parameterisations.csv", rows)
    return rows


if __name__ == "__main__":
    main()
