"""Which energy drove a flow: learned potentials beside JKOnet*, in its own setting.

    python -m benchmarks.learned            # seven test functions, two minutes
    python -m benchmarks.learned --fast     # two of them, small

The setting is experiment 4.1 of Terpin et al. 2024: 2000 particles that start evenly in [-4, 4]^2
take five explicit Euler steps of 0.01 down a test function; half of them are learned from, nobody
knows which particle went where. On the other half: the 1-Wasserstein distance between the cloud
that is predicted one step ahead and the true one, mean over the five steps, and the relative error
of the gradient where the particles are before the steps.

The paper shows its errors as a figure, divided by the largest of all methods. The numbers beside
ours are from runs of the program that its authors published (github.com/antonioterpin/jkonet-star,
commit 1741c53, its configuration, 1000 epochs for networks, seed 0), on its own draw of particles.
"linear" has 24 monomials and 100 bumps there; the same features stand in "same features" here.

The second table adds noise sqrt(2 T) dB of temperature T = 0.2, as in their experiment 4.3, and
learns potential and temperature together: the error of the gradient, and T.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable, Sequence
from itertools import pairwise, product
from typing import Any

import numpy as np
import ot
import torch
from torch import Tensor, nn

from benchmarks.table import Table, add_arguments, machine, short
from torch_wprox import learn_energy
from torch_wprox.maps import radial

DT, STEPS, SIDE, TEMPERATURE = 0.01, 5, 4.0, 0.2
Function = Callable[[Tensor], Tensor]

# (W1 one step ahead, relative error of the gradient) of JKOnet*_V (network) and JKOnet*_l,V.
PUBLISHED: dict[str, tuple[tuple[float, float], tuple[float, float]]] = {
    "styblinski_tang": ((0.09338, 1.415), (0.0004041, 0.003056)),
    "holder_table": ((0.04669, 0.6768), (0.04569, 0.6701)),
    "flowers": ((0.003507, 0.1523), (0.005223, 0.2441)),
    "oakley_ohagan": ((0.03243, 0.1498), (0.003513, 0.01951)),
    "watershed": ((0.0004619, 0.02666), (0.000242, 0.0005248)),
    "wavy_plateau": ((0.2079, 2.13), (0.01614, 0.06614)),
    "double_exp": ((0.01943, 0.07624), (0.004479, 0.03178)),
}


# -- the test functions, in the plane, as scaled there ---------------------------------------------


def styblinski_tang(x: Tensor) -> Tensor:
    return 0.5 * (x.pow(4) - 16 * x.square() + 5 * x).sum(1)


def holder_table(x: Tensor) -> Tensor:
    far = (1 - x.norm(dim=1) / torch.pi).abs().exp()
    return 10 * (x[:, 0].sin() * x[:, 1].cos() * far).abs()


def flowers(x: Tensor) -> Tensor:
    return (x + 2 * x.abs().pow(1.2).sin()).sum(1)


def oakley_ohagan(x: Tensor) -> Tensor:
    return 5 * (x.sin() + x.cos() + x.square() + x).sum(1)


def watershed(x: Tensor) -> Tensor:
    return (x[:, 0] + x[:, 0].square() * (x[:, 1] + 4)) / 10


def wavy_plateau(x: Tensor) -> Tensor:
    return ((torch.pi * x).cos() + 0.5 * x.pow(4) - 3 * x.square() + 1).sum(1)


def double_exp(x: Tensor) -> Tensor:
    near = [torch.exp(-(x - c).square().sum(1) / 20) for c in (3.0, -3.0)]
    return 200 * (near[0] + near[1])


FUNCTIONS: tuple[Function, ...] = (
    *(styblinski_tang, holder_table, flowers, oakley_ohagan),
    *(watershed, wavy_plateau, double_exp),
)
"""Seven of the fifteen, in the order of the paper."""


def gradient(function: Function, x: Tensor) -> Tensor:
    """Return grad V at x (m, 2)."""
    at = x.detach().requires_grad_()
    return torch.autograd.grad(function(at).sum(), at)[0]


def descent(function: Function, m: int, seed: int, temperature: float = 0.0) -> list[Tensor]:
    """Return clouds at successive times, every one in an order of its own."""
    random = torch.Generator().manual_seed(seed)
    clouds = [SIDE * (2 * torch.rand(m, 2, generator=random, dtype=torch.float64) - 1)]
    for _ in range(STEPS):
        clouds.append(clouds[-1] - DT * gradient(function, clouds[-1]))
        if temperature > 0:
            noise = torch.randn(m, 2, generator=random, dtype=torch.float64)
            clouds[-1] += math.sqrt(2 * temperature * DT) * noise
    return [cloud[torch.randperm(m, generator=random)] for cloud in clouds]


# -- the families ----------------------------------------------------------------------------------


def same_features(x: Tensor) -> Tensor:
    """Monomials u^i v^j with i, j <= 4, and 100 bumps exp(-2 |x - c|^2)."""
    u, v = x[:, :1], x[:, 1:]
    powers = [u.pow(i) * v.pow(j) for i, j in product(range(5), repeat=2) if i + j > 0]
    axis = torch.linspace(-SIDE, SIDE, 10, dtype=x.dtype)
    return torch.cat([*powers, radial(torch.cartesian_prod(axis, axis), 0.5)(x)], 1)


def network() -> nn.Module:
    """Return the network of JKOnet*: 2-64-64-1, softplus."""
    torch.manual_seed(0)
    layers = nn.Linear(2, 64), nn.Softplus(), nn.Linear(64, 64), nn.Softplus(), nn.Linear(64, 1)
    return nn.Sequential(*layers).double()


def judged(
    function: Function, train: Sequence[Tensor], test: Sequence[Tensor], options: dict[str, Any]
) -> tuple[float, float, float]:
    """Return W1 one step ahead, the relative error of the gradient, and CPU seconds."""
    began = time.process_time()
    found = learn_energy(train, DT, scheme="explicit", **options)
    seconds = time.process_time() - began
    ahead = []
    for x, y in pairwise(test):
        cost = torch.cdist(found.predict(x, DT), y).numpy()
        mass = np.full(len(x), 1 / len(x))
        ahead.append(float(ot.emd2(mass, mass, cost, numItermax=10_000_000)))
    places = torch.cat(list(test[:-1]))
    true = gradient(function, places)
    off = (found.potential_gradient(places) - true).norm() / true.norm()
    return float(np.mean(ahead)), float(off), seconds


def shown(ahead: float, off: float) -> str:
    """Return both numbers in one cell."""
    return f"{short(ahead)}; {short(off)}"


def noisy(args: argparse.Namespace) -> None:
    """Print the table of flows with noise."""
    print(f"\nWith noise of T = {TEMPERATURE}: relative error of the gradient; T found\n")
    heads = [f"{f}, T {known}" for f in ("features", "network") for known in ("given", "sought")]
    table = Table(["potential", *heads], args, part="noisy")
    for function in FUNCTIONS[:1] if args.fast else (styblinski_tang, oakley_ohagan, flowers):
        m = 200 if args.fast else 1000
        train, test = (descent(function, m, seed, TEMPERATURE) for seed in (0, 1))
        places, cells = torch.cat(test[:-1]), [function.__name__.replace("_", " ")]
        true = gradient(function, places)
        for family, entropy in product((same_features, None), (TEMPERATURE, True)):
            potential = network() if family is None else family
            how: dict[str, Any] = {"max_eval": 20 if args.fast else 150, "scheme": "explicit"}
            found = learn_energy(train, DT, potential=potential, entropy=entropy, **how)
            off = float((found.potential_gradient(places) - true).norm() / true.norm())
            cells.append(shown(off, found.temperature))
        table.add(cells)


def main(argv: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """Print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--fast", action="store_true", help="two functions, 200 particles")
    add_arguments(parser)
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    print(f"{machine()}\n\nW1 one step ahead; relative error of the gradient; CPU s\n")
    ours: dict[str, Callable[[], dict[str, Any]]] = {
        "same features": lambda: {"potential": same_features},
        "network": lambda: {"potential": network(), "max_eval": 20 if args.fast else 500},
    }
    names = [f"ours, {name}" for name in ours]
    table = Table(["potential", *names, "JKOnet*, linear", "JKOnet*, network"], args)
    rows = []
    for function in FUNCTIONS[:2] if args.fast else FUNCTIONS:
        m, name = 200 if args.fast else 1000, function.__name__
        train, test = descent(function, m, 0), descent(function, m, 1)
        cells = [name.replace("_", " ")]
        for family, options in ours.items():
            ahead, off, seconds = judged(function, train, test, options())
            rows.append({"potential": name, "family": family, "W1": ahead, "error": off})
            cells.append(f"{shown(ahead, off)}; {seconds:.0f} s")
        cells += [shown(*numbers) for numbers in reversed(PUBLISHED[name])]
        table.add(cells)
    noisy(args)
    return rows


if __name__ == "__main__":
    main()
