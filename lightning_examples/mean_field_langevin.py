"""Mean-field Langevin dynamics by convex maps: a network's loss with the entropy of its neurons.

    python -m lightning_examples.mean_field_langevin

The neurons (w, b) of f(x) = 5 mean tanh(w x + b) follow the flow of E(mu) = loss(mu) +
(lambda/2) E|(w, b)|^2 + T int mu log mu, which is convex in mu. Every step is a JKO step, found as
the gradient of an input-convex network, and the density of the neurons is known at all times.
Beside it: noisy gradient descent (Euler-Maruyama) of 20 000 neurons, counted in cells, and the
minimum, which is known to rounding: mu = exp(-F'(mu)/T)/Z, found in the dual on 20 numbers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from matplotlib import pyplot as plt
from scipy.optimize import minimize
from torch import Tensor

from lightning_examples import experiment, output
from lightning_examples.flowing import Window, kl, log_normal, normal, trained
from torch_wprox import MapFlow, plotting
from torch_wprox.maps import CloudFunction, Entropy, Potential

TEMPERATURE, DECAY, OUTPUT, DT = 0.05, 0.1, 5.0, 0.01
WINDOW, COARSE = Window(side=6.0, cells=96), Window(side=6.0, cells=48)
X = torch.linspace(-2.0, 2.0, 20, dtype=torch.float64)
Y = (2 * X).sin() + 0.5 * X.cos()
INPUTS = torch.stack([X, torch.ones_like(X)], 1)


# %% The network: neurons are points (w, b) of mass 1/m
def neurons_at(inputs: Tensor, points: Tensor) -> Tensor:
    return OUTPUT * torch.tanh(inputs @ points.t())


def loss(points: Tensor) -> Tensor:
    return (neurons_at(INPUTS, points).mean(1) - Y).square().mean()


def decay(points: Tensor) -> Tensor:
    return DECAY / 2 * points.square().sum(1)


def energy(points: Tensor) -> float:
    return float(loss(points) + decay(points).mean())


def noisy_descent(points: Tensor, time: float, seed: int) -> Tensor:
    """Euler-Maruyama: the force on a neuron is -m grad of the loss, the noise sqrt(2 T) dB."""
    random = torch.Generator().manual_seed(seed)
    for _ in range(round(time / DT)):
        at = points.detach().requires_grad_()
        (slope,) = torch.autograd.grad(len(at) * loss(at) + decay(at).sum(), at)
        noise = torch.randn(points.shape, generator=random, dtype=points.dtype)
        points = points - DT * slope + math.sqrt(2 * TEMPERATURE * DT) * noise
    return points.detach()


# %% The minimum: loss = max over g of <g, f - y> - (n/4)|g|^2; for every g the best mu is Gibbs'
def minimum() -> tuple[Tensor, float]:
    """Masses of the cells at the minimum, and E there."""
    cells = WINDOW.middles()
    values, own, n = neurons_at(INPUTS, cells), decay(cells), len(X)

    def negative_dual(g: Any) -> tuple[float, Any]:
        force = torch.from_numpy(g)
        parts = -(force @ values + own) / TEMPERATURE + math.log(WINDOW.area)
        masses = parts.softmax(0)
        dual = -TEMPERATURE * parts.logsumexp(0) - force @ Y - n / 4 * force.square().sum()
        slope = values @ masses - Y - n / 2 * force
        return -float(dual), -slope.numpy()

    found = minimize(negative_dual, [0.0] * n, jac=True, method="L-BFGS-B", options={"ftol": 1e-15})
    masses = (-(torch.from_numpy(found.x) @ values + own) / TEMPERATURE).softmax(0)
    return masses, -float(found.fun)


def counted_energy(points: Tensor) -> float:
    """E with the entropy of counts in coarse cells."""
    masses = COARSE.counted(points)
    entropy = torch.special.xlogy(masses, masses / COARSE.area).sum()
    return energy(points) + TEMPERATURE * float(entropy)


# %% The run
def main(argv: Sequence[str] | None = None) -> list[dict[str, Any]]:
    how = {"m": 4096, "steps": 40, "gamma": 0.1, "max_eval": 60}
    parser = experiment.parser(__doc__, "mean_field_langevin", **how)
    parser.add_argument(
        "--particles", type=int, default=20_000, help="neurons of noisy gradient descent"
    )
    args = parser.parse_args(argv)
    if args.fast:
        args.m, args.steps, args.max_eval, args.particles = 300, 10, 8, 2000
    energies: list[Any] = [CloudFunction(loss), Potential(decay), Entropy(TEMPERATURE)]
    options: dict[str, Any] = {"max_eval": args.max_eval, "log_density": log_normal}
    flow = MapFlow(normal(args.m), energies, args.gamma, **options)
    module = trained(flow, args, "free energy")

    limit, lowest = minimum()
    grid = WINDOW.middles()
    shown = [round(args.steps * share) for share in (0, 0.1, 0.3, 1)]
    # The entropy of the first measure, which reports leave out: that of a normal distribution.
    first = -TEMPERATURE * math.log(2 * math.pi * math.e)
    energies_by_maps = [module.reports[0].loss_before + first]
    energies_by_maps += [report.loss_after + first for report in module.reports]
    clouds = [normal(args.particles, seed=1)]
    for step in range(args.steps):
        clouds.append(noisy_descent(clouds[-1], args.gamma, seed=step))
    fresh, rows, pictures = normal(args.particles, seed=2), [], {}
    for step in range(args.steps + 1):
        noisy, mapped = clouds[step], flow.transport(fresh, step)
        rows.append(
            {
                "step": step,
                "time": step * args.gamma,
                "loss, maps": float(loss(mapped)),
                "loss, noisy descent": float(loss(noisy)),
                "E above its minimum, maps": energies_by_maps[step] - lowest,
                "E above its minimum, noisy descent": counted_energy(noisy) - lowest,
            }
        )
        rows[-1] |= {"KL to the minimum, maps": None, "KL to the minimum, noisy descent": None}
        if step in shown:
            density = flow.log_density(grid, step).exp() * WINDOW.area
            pictures[step] = (density, WINDOW.counted(noisy))
            rows[-1]["KL to the minimum, maps"] = kl(density, limit)
            rows[-1]["KL to the minimum, noisy descent"] = kl(pictures[step][1], limit)
    output.write_csv(args.out / "mean_field_langevin.csv", rows)
    output.print_table([rows[step] for step in shown])
    plot_densities(pictures, limit, args)
    plot_energies(rows, flow.transport(fresh), clouds[-1], args)
    return rows


# %% The figures
def plot_densities(pictures: dict[int, tuple[Tensor, Tensor]], limit: Tensor, args: Any) -> None:
    with plotting.style():
        _, axes = plt.subplots(2, 5, sharex=True, sharey=True)
        top = float(limit.max())
        for column, (step, pair) in enumerate(pictures.items()):
            for ax, masses in zip(axes[:, column], pair, strict=True):
                WINDOW.draw(ax, masses, top)
            axes[0, column].set_title(f"t = {step * args.gamma:g}")
        for ax in axes[:, 4]:
            WINDOW.draw(ax, limit, top)
            ax.set_title(r"minimum, $e^{-F'(\mu)/T}/Z$")
        axes[1, 4].set_visible(False)
        axes[0, 0].set_ylabel("convex maps")
        axes[1, 0].set_ylabel("noisy gradient descent")
        output.save(axes[0, 0], args.out / "mean_field_langevin.png", size=(12, 5.2))


def plot_energies(rows: list[dict[str, Any]], mapped: Tensor, noisy: Tensor, args: Any) -> None:
    times = [row["time"] for row in rows]
    with plotting.style():
        _, (left, right) = plt.subplots(1, 2)
        for name in ("maps", "noisy descent"):
            excess = [row[f"E above its minimum, {name}"] for row in rows]
            left.plot(times, excess, label=name)
        left.set(xlabel="time", ylabel="E above its minimum", yscale="log")
        left.legend()
        line = torch.linspace(-2.5, 2.5, 200, dtype=torch.float64)
        inputs = torch.stack([line, torch.ones_like(line)], 1)
        for name, points in (("maps", mapped), ("noisy descent", noisy)):
            right.plot(line.numpy(), neurons_at(inputs, points).mean(1).numpy(), label=name)
        right.plot(X.numpy(), Y.numpy(), "k.", label="data")
        right.set(xlabel="x", ylabel="network at the end")
        right.legend()
        output.save(left, args.out / "mean_field_langevin_energy.png", size=(10, 4))


if __name__ == "__main__":
    main()
