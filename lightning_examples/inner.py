"""One proximal step seen from inside (section 3 of the note, "first few inner iterations").

    python -m lightning_examples.inner

Two neurons, the second without a gradient; inner gradient descent with small steps from V = W for
both distances. Two forces act on a neuron: -grad F and -(V - W_sigma)/(m gamma).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from matplotlib import pyplot as plt
from torch import Tensor

from lightning_examples import experiment, output, problems
from torch_wprox import FrobeniusProx, MeanFieldLayer, WassersteinProx, plane, plotting
from torch_wprox.distances.emd.assignment import Assignment
from torch_wprox.solvers import GradientDescent

X = torch.tensor([[1.222, 0.286], [1.018, 1.304]], dtype=torch.float64)
Y = torch.tensor([[3.087], [2.984]], dtype=torch.float64)
W = torch.tensor([[-0.584, 0.5], [-0.256, 0.055]], dtype=torch.float64)
FORCES = (r"$-\nabla F$", r"$-(V - W_\sigma)/(m\gamma)$")
SHOWN, SLOW = (5, 20, 50, 100, 200, 500), GradientDescent(step=1e-3, growth=1.0)
State = dict[str, Any]


def network(V: Tensor = W) -> MeanFieldLayer:  # one sign, no bias
    return problems.signed_layer(V.numpy(), bias=False, alpha=torch.ones(2, dtype=V.dtype))


# %% One step: the loss function sees every evaluation; those that only search are left out
def inside(V: Tensor, gamma: float, exchange: bool) -> State:
    layer = network(V)
    loss = problems.mean_squared_error(layer, X, Y)
    sigma = Assignment(W, None).settle(V) if exchange else torch.arange(2)
    away = V - W[sigma]
    value = loss.item() + away.square().sum().item() / (4 * gamma)  # mass 1/2 per neuron
    forces = -torch.stack([*torch.autograd.grad(loss, layer.particles), away / (2 * gamma)])
    return {"V": V, "sigma": sigma, "P": value, "forces": forces}


def step(make: Any, gamma: float, **how: Any) -> list[State]:
    run, seen = experiment.watch(network(), lambda p: make(p, gamma, **how), (X, Y))
    kept: list[State] = []
    for state in (inside(V, gamma, make is WassersteinProx) for V in seen):
        if not kept or state["P"] <= kept[-1]["P"]:
            kept += [state | {"gap": run.reports[0].gap}]
    return kept


def row(name: str, t: int, state: State) -> dict[str, Any]:
    names = ("anchor of inactive", "its w1", "its w2", "its force of F", "its pull")
    values = [state["sigma"][1], *state["V"][1], *state["forces"][:, 1].norm(dim=1)]
    head = {"descent": name, "iteration": t, "P": state["P"], "gap": state["gap"]}
    return head | {key: value.item() for key, value in zip(names, values, strict=True)}


# %% The figure: ways and forces in the plane of neurons, lengths of the forces below
def draw(ax: Any, low: Any, name: str, states: list[State], best: Tensor) -> None:
    way, forces = torch.stack([s["V"] for s in states]), torch.stack([s["forces"] for s in states])
    plotting.plot_trajectories(way, None, ax, inputs=X, labels=("$w_1$", "$w_2$"), name=name)
    ax.set(xlim=(-0.9, 2.7), ylim=(-0.25, 2.15))
    ends = torch.stack([way[-1], W[states[-1]["sigma"]]])
    plane.plot_ways(ax, ends, plotting.PALETTE[4], "end to its anchor", "--")
    ax.plot(*best.T, "k*", ms=11, label="global minimiser")
    curves = {}
    for i, who in enumerate(("active", "inactive")):
        at = plane.evenly_along(way[:, i], 6)
        for k, label in enumerate(FORCES):
            size = forces[:, k, i].norm(dim=1)
            unit = 0.2 * forces[at, k, i] / size[at, None].clamp(min=1e-12)
            plane.plot_arrows(ax, way[at, i], unit, plotting.PALETTE[k], "" if i else label)
            seen = size > 1e-4  # what stays below the axis, but for single points, has no curve
            if (seen[1:] & seen[:-1]).any():
                at_all = size.where(size > 0, torch.nan)
                curves[f"{who}: {label}"] = (range(1, len(size) + 1), at_all)
    plane.plot_inactive(ax, X)
    plotting.legend_above(ax, columns=3)
    plotting.plot_curves(curves, low, xlabel="inner iteration", ylabel="length of the force")
    low.set(xscale="log", ylim=(1e-4, 10))


def main(argv: Sequence[str] | None = None) -> dict[str, list[State]]:
    args = experiment.parser(__doc__, "inner", gamma=20.0, evaluations=3000).parse_args(argv)
    how = {"solver": SLOW, "max_eval": 60 if args.fast else args.evaluations}
    both = (("Frobenius", FrobeniusProx), ("Wasserstein", WassersteinProx))
    steps = {name: step(make, args.gamma, **how) for name, make in both}
    best = step(WassersteinProx, args.gamma, solver="global")[-1]
    rows = [row(n, t, s[t - 1]) for n, s in steps.items() for t in (*SHOWN, len(s)) if t <= len(s)]
    output.tabulate(args.out / "inner.csv", [*rows, row("global", 0, best)])
    with plotting.style():
        top, bottom = plt.subplots(2, 2, height_ratios=(3, 2))[1]
        for ax, low, name in zip(top, bottom, steps, strict=True):
            draw(ax, low, name, steps[name], best["V"])
        output.save(top[0], args.out / "inner.png", size=(12, 9))
    return steps


if __name__ == "__main__":
    main()
