"""What drives this flow? Potentials of test functions, and the first variation of a network's loss.

    python -m lightning_examples.learn_energy

1000 particles that start evenly in [-4, 4]^2 take five steps of dt 0.01 down a test function (the
setting of JKOnet*, Terpin et al. 2024; nobody knows which particle went where). A potential is
learned from them in three families, and predicts the next cloud of 1000 others. The steps are
implicit, those of the JKO scheme, or explicit, as in the paper. Then the neurons of a network in
training: what drives them is F'(mu), the first variation of the loss, known in closed form:
s (2/n) sum_j r_j relu(<x_j, w>). It is learned from two clouds.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import torch
from matplotlib import pyplot as plt
from pytorch_lightning.callbacks import ModelCheckpoint
from torch import Tensor, nn

from lightning_examples import experiment, output, problems
from torch_wprox import FrobeniusProx, LearnedEnergy, learn_energy, plotting, prox, wasserstein_sq
from torch_wprox.maps import polynomials, radial, ridges

DT, STEPS, SIDE = 0.01, 5, 4.0


# %% Test functions: those of JKOnet* that have a closed form in the plane, as scaled there
def styblinski_tang(x: Tensor) -> Tensor:
    return 0.5 * (x.pow(4) - 16 * x.square() + 5 * x).sum(1)


def rosenbrock(x: Tensor) -> Tensor:
    return ((1 - x[:, 0]).square() + 100 * (x[:, 1] - x[:, 0].square()).square()) / 1000


def oakley_ohagan(x: Tensor) -> Tensor:
    return 5 * (x.sin() + x.cos() + x.square() + x).sum(1)


def wavy_plateau(x: Tensor) -> Tensor:
    return ((torch.pi * x).cos() + 0.5 * x.pow(4) - 3 * x.square() + 1).sum(1)


def flowers(x: Tensor) -> Tensor:
    return (x + 2 * x.abs().pow(1.2).sin()).sum(1)


def double_exp(x: Tensor) -> Tensor:
    return 200 * sum(torch.exp(-(x - c).square().sum(1) / 20) for c in (3.0, -3.0))


FUNCTIONS = (styblinski_tang, rosenbrock, oakley_ohagan, wavy_plateau, flowers, double_exp)


def gradient(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    at = x.detach().requires_grad_()
    return torch.autograd.grad(function(at).sum(), at)[0]


def next_cloud(function: Callable[[Tensor], Tensor], x: Tensor, *, implicit: bool) -> Tensor:
    if not implicit:
        return x - DT * gradient(function, x)
    how: dict[str, Any] = {"distance": "frobenius", "max_eval": 300}
    return prox(lambda y: function(y).mean(), x, DT, **how)[0]


def descent(
    function: Callable[[Tensor], Tensor], m: int, seed: int, *, implicit: bool
) -> list[Tensor]:
    """Clouds at successive times, their rows shuffled: nobody knows who is who."""
    random = torch.Generator().manual_seed(seed)
    clouds = [SIDE * (2 * torch.rand(m, 2, generator=random, dtype=torch.float64) - 1)]
    for _ in range(STEPS):
        clouds.append(next_cloud(function, clouds[-1], implicit=implicit))
    return [cloud[torch.randperm(m, generator=random)] for cloud in clouds]


# %% The families in which a potential is sought
def families() -> dict[str, Any]:
    axis = torch.linspace(-SIDE, SIDE, 14, dtype=torch.float64)
    torch.manual_seed(0)
    layers = nn.Linear(2, 64), nn.Softplus(), nn.Linear(64, 64), nn.Softplus(), nn.Linear(64, 1)
    return {
        "polynomials": polynomials(2, 4),
        "bumps": radial(torch.cartesian_prod(axis, axis), 0.9),
        "network": nn.Sequential(*layers).double(),
    }


def judged(
    found: LearnedEnergy, function: Callable[[Tensor], Tensor], start: Tensor, end: Tensor
) -> dict[str, float]:
    """Relative error of grad V, and W2 of the predicted next cloud beside the way there."""
    true = gradient(function, start)
    error = (found.potential_gradient(start) - true).norm() / true.norm()
    return {
        "relative error": float(error),
        "W2 of the prediction": float(wasserstein_sq(found.predict(start, DT), end).sqrt()),
        "W2 to the next cloud": float(wasserstein_sq(start, end).sqrt()),
    }


# %% The first variation of a network's loss, from its neurons
def first_variation(run: experiment.Run, step: int, w: Tensor) -> Tensor:
    """(2/n) sum_j r_j relu(<x_j, w>) at directions w (k, 2), for neurons of positive sign."""
    x, y = problems.sinus()
    inputs = torch.cat([x, torch.ones_like(x)], 1)
    signs = run.model.signs
    outputs = torch.relu(inputs @ run.positions[step].t()) @ signs
    residuals = outputs - y[:, 0]
    return 2 / len(x) * torch.relu(w @ inputs.t()) @ residuals


def directions(k: int) -> tuple[Tensor, Tensor]:
    angles = torch.linspace(-torch.pi, torch.pi, k + 1, dtype=torch.float64)[:-1]
    return angles, torch.stack([angles.cos(), angles.sin()], 1)


def trained(m: int, steps: int, gamma: float, args: Any) -> experiment.Run:
    made = lambda p: FrobeniusProx(p, gamma / m, max_eval=30)  # noqa: E731
    keep = ModelCheckpoint(args.out / "checkpoints", every_n_train_steps=max(steps // 2, 1))
    return experiment.train(
        problems.note_layer(m, 0, 0.05),
        made,
        problems.sinus(),
        steps,
        callbacks=[keep],
        progress=not args.no_progress,
    )


@dataclass(frozen=True)
class Variation:
    """F'(mu) on the unit circle, true and learned, and the relative error at the neurons."""

    true: Tensor
    learned: Tensor
    neurons: Tensor
    error: float


def learned_variations(
    run: experiment.Run, dt: float, shown: Sequence[int]
) -> dict[int, Variation]:
    """Learn the first variation at each step from the positive neurons before and after it."""
    (_, fan), (_, w) = directions(240), directions(720)
    positive, found = run.model.signs > 0, {}
    for step in shown:
        clouds = [run.positions[t][positive] for t in (step, step + 1)]
        energy = learn_energy(clouds, dt, potential=ridges(fan), ridge=1e-6)
        assert energy.potential is not None
        true = first_variation(run, step + 1, clouds[1])
        off = energy.potential(clouds[1]).detach() - true
        found[step] = Variation(
            first_variation(run, step + 1, w),
            energy.potential(w).detach(),
            torch.atan2(clouds[1][:, 1], clouds[1][:, 0]),
            float(off.norm() / true.norm()),
        )
    return found


# %% The figures
def plot_potentials(pictures: dict[str, tuple[Tensor, Tensor]], args: Any) -> None:
    with plotting.style():
        _, axes = plt.subplots(2, len(pictures), sharex=True, sharey=True, squeeze=False)
        for column, (name, pair) in enumerate(pictures.items()):
            true = pair[0] - pair[0].min()
            levels = torch.quantile(true.flatten(), torch.linspace(0.02, 0.98, 14).double())
            for ax, values in zip(axes[:, column], (true, pair[1]), strict=True):
                values = values - values.mean() + true.mean()  # it is known up to a constant
                how: dict[str, Any] = {"levels": levels.numpy(), "extend": "both"}
                axis = torch.linspace(-SIDE, SIDE, len(values)).numpy()
                ax.contourf(axis, axis, values.t().numpy(), cmap="viridis", **how)
                ax.set(xticks=[], yticks=[], aspect="equal")
            axes[0, column].set_title(name.replace("_", " "))
        axes[0, 0].set_ylabel("true")
        axes[1, 0].set_ylabel("learned")
        output.save(axes[0, 0], args.out / "learn_energy.png", size=(13, 4.8))


def plot_variations(found: dict[int, Variation], args: Any) -> None:
    angles = directions(720)[0].numpy()
    with plotting.style():
        _, axes = plt.subplots(1, len(found), sharex=True, squeeze=False)
        for ax, (step, seen) in zip(axes[0], found.items(), strict=True):
            ax.plot(angles, seen.true.numpy(), color="black", label="closed form")
            ax.plot(angles, seen.learned.numpy(), ".", markersize=3, label="learned")
            floor = torch.full_like(seen.neurons, float(seen.true.min()) * 1.15)
            ax.plot(seen.neurons, floor, "|", color="tab:red", alpha=0.4, label="neurons")
            ax.set(title=f"step {step + 1}", xlabel="angle of the neuron (weight, bias)")
        axes[0, 0].set_ylabel(r"$F'(\mu)$ on the unit circle")
        axes[0, 0].legend()
        output.save(axes[0, 0], args.out / "learn_energy_network.png", size=(12, 3.8))


# %% The run
def main(argv: Sequence[str] | None = None) -> list[dict[str, Any]]:
    parser = experiment.parser(__doc__, "learn_energy", m=400, steps=20)
    parser.add_argument("--particles", type=int, default=1000, help="particles in a cloud")
    parser.add_argument("--train", type=int, default=200, help="evaluations of a network's loss")
    args = parser.parse_args(argv)
    if args.fast:
        args.m, args.steps, args.particles, args.train = 60, 4, 60, 5
    rows, pictures = [], {}
    axis = torch.linspace(-SIDE, SIDE, 81, dtype=torch.float64)
    grid = torch.cartesian_prod(axis, axis)
    for function, implicit in product(FUNCTIONS, (True, False)):
        name, steps = function.__name__, "implicit" if implicit else "explicit"
        clouds, other = (
            descent(function, args.particles, seed, implicit=implicit) for seed in (0, 1)
        )
        for family, features in families().items():
            if family == "network" and not implicit:
                continue
            how: dict[str, Any] = {"max_eval": args.train, "ridge": 1e-6, "scheme": steps}
            found = learn_energy(clouds, DT, potential=features, **how)
            judgement = judged(found, function, other[0], other[1])
            rows.append({"potential": name, "steps": steps, "family": family, **judgement})
            if family == "bumps" and implicit:
                assert found.potential is not None
                learned = found.potential(grid).detach().view(81, 81)
                pictures[name] = function(grid).view(81, 81), learned
    dt = 0.01
    run = trained(args.m, args.steps, dt, args)
    variations = learned_variations(run, dt, [0, args.steps // 4, args.steps - 1])
    for step, seen in variations.items():
        name = f"F'(mu), step {step + 1}"
        row = {"potential": name, "steps": "implicit", "family": "ridges"}
        row |= {"relative error": seen.error, "W2 of the prediction": None}
        rows.append(row | {"W2 to the next cloud": None})
    output.tabulate(args.out / "learn_energy.csv", rows)
    plot_potentials(pictures, args)
    plot_variations(variations, args)
    return rows


if __name__ == "__main__":
    main()
