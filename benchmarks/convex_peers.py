"""Training two-layer ReLU networks with weight decay: against convex training by pyscnn.

    pip install --no-deps pyscnn linalg_backends opt_einsum   # not the unrelated package "lab"
    python -m benchmarks.convex_peers                          # some minutes; one thread

All minimise F = mean squared error + beta sum_i |w_i||a_i|, biases among the w_i, on diabetes (442
patients, ten inputs) and on a sine over n points. pyscnn (Mishkin, Sahiner & Pilanci, 2022) solves
the convex reformulation with sampled activation patterns; its network has as many neurons as that
needs. On the line it may have all patterns, elsewhere it samples them. The others train 100 neurons
with weight decay beta, whose minimum is the same: torch's Adam and L-BFGS, and proximal steps of
this package (gamma 100), each for `--seconds` of processor time, or as many as pyscnn took if that
is less. F is evaluated by this package for every network. The bound is `certify_training`'s, of the
best network; no network of any width is below it.
"""

from __future__ import annotations

import argparse
import importlib.util
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from sklearn.datasets import load_diabetes
from torch import Tensor

from benchmarks.table import Table, add_arguments, machine
from torch_wprox import MeanFieldLayer, WassersteinProx, certify_training

F64 = torch.float64
WIDTH, GAMMA = 100, 100.0
INSTALL = "not installed: pip install --no-deps pyscnn linalg_backends opt_einsum"
Data = tuple[Tensor, Tensor]
Neurons = tuple[Tensor, Tensor]
"""Input weights (m, d + 1), the bias last, and output weights (m,)."""


@dataclass(frozen=True)
class Setting:
    """How pyscnn is run: sampled patterns (None: all, on a line), tolerance, type."""

    patterns: int | None
    tolerance: float = 1e-6
    dtype: str = "float64"

    def __str__(self) -> str:
        count = "all" if self.patterns is None else self.patterns
        return f"pyscnn, {count} patterns, tolerance {self.tolerance:g}"


def diabetes() -> Data:
    """442 patients, standardised."""
    x, y = load_diabetes(return_X_y=True, scaled=False)
    x, y = (x - x.mean(0)) / x.std(0), (y - y.mean()) / y.std()
    return torch.from_numpy(x), torch.from_numpy(y).unsqueeze(1)


def sine(n: int) -> Data:
    """A sine on n points."""
    x = torch.linspace(-1.0, 1.0, n, dtype=F64).unsqueeze(1)
    return x, torch.sin(6 * x)


def objective(neurons: Neurons, data: Data, beta: float) -> float:
    """F of a network, whoever trained it."""
    (w, a), (x, y) = neurons, data
    features = torch.cat([x, torch.ones_like(x[:, :1])], 1)
    z = (features @ w.T).clamp_min(0.0) @ a
    path = float((w.norm(dim=1) * a.abs()).sum())
    return float((z - y[:, 0]).square().mean()) + beta * path


def all_patterns(data: Data) -> np.ndarray:
    """One direction (2 n, 2) in every cell that the points of a line cut the plane of (w, b) in."""
    x = data[0].numpy()[:, 0]
    angles = np.arctan2(x, -np.ones_like(x))
    angles = np.sort(np.concatenate([angles, angles + np.pi]) % (2 * np.pi))
    middle = (angles + np.append(angles[1:], angles[0] + 2 * np.pi)) / 2
    return np.stack([np.cos(middle), np.sin(middle)])


def convex(data: Data, beta: float, setting: Setting) -> tuple[Neurons, float]:
    """Train by pyscnn; its objective is F/2."""
    from scnn.metrics import Metrics
    from scnn.models import ConvexReLU
    from scnn.optimize import optimize_model, sample_gate_vectors
    from scnn.regularizers import NeuronGL1
    from scnn.solvers import AL

    x, y = (t.numpy() for t in data)
    features = np.column_stack([x, np.ones(len(x))])
    d = features.shape[1]
    began = time.process_time()
    count = setting.patterns
    gates = all_patterns(data) if count is None else sample_gate_vectors(778, d, count)
    model = ConvexReLU(gates, c=1, bias=False)
    solver = AL(model, tol=setting.tolerance, constraint_tol=setting.tolerance)
    found, _ = optimize_model(
        model, solver, Metrics(), features, y, regularizer=NeuronGL1(beta / 2),
        unitize_data=False, dtype=setting.dtype,
    )  # fmt: skip
    took = time.process_time() - began
    w, a = (torch.as_tensor(np.asarray(p), dtype=F64) for p in found.parameters)
    return (w, a.reshape(-1)), took


def layer_of(data: Data, seed: int = 0) -> MeanFieldLayer:
    """Neurons that train all their weights."""
    g = torch.Generator().manual_seed(seed)
    return MeanFieldLayer(
        data[0].shape[1], WIDTH, reduction="sum", init_scale=0.3, generator=g, dtype=F64
    )


def neurons_of(layer: MeanFieldLayer) -> Neurons:
    w, a = (t.detach().clone() for t in layer.neurons())
    return w, a[:, 0]


def trained(kind: str, data: Data, beta: float, seconds: float) -> tuple[MeanFieldLayer, float]:
    """Train until the time is over; return the best network met and the seconds."""
    layer, (x, y) = layer_of(data), data
    parameters: Any = list(layer.parameters())
    optimizers: dict[str, Callable[[], Any]] = {
        "torch Adam": lambda: torch.optim.Adam(parameters, 1e-2, weight_decay=beta),
        "torch L-BFGS": lambda: torch.optim.LBFGS(
            parameters, max_iter=20, history_size=20, line_search_fn="strong_wolfe"
        ),
        "proximal steps, BFGS": lambda: WassersteinProx(
            parameters, GAMMA, solver="bfgs", weight_decay=beta, max_eval=300
        ),
    }
    opt = optimizers[kind]()

    def closure() -> Tensor:
        opt.zero_grad()
        loss = (layer(x) - y).square().mean()
        if kind == "torch L-BFGS":
            loss = loss + 0.5 * beta * layer.particles.square().sum()
        loss.backward()
        return loss

    began, best, kept = time.process_time(), np.inf, layer.particles.detach().clone()
    rounds = 0
    while time.process_time() - began < seconds:
        opt.step(closure)
        rounds += 1
        if kind != "torch Adam" or rounds % 50 == 0:
            value = objective(neurons_of(layer), data, beta)
            if value < best:
                best, kept = value, layer.particles.detach().clone()
    took = time.process_time() - began
    with torch.no_grad():
        layer.particles.copy_(kept)
    return layer, took


def compared(
    name: str, data: Data, beta: float, settings: Sequence[Setting], seconds: float, table: Table
) -> None:
    """Add the rows of one problem."""
    found: list[tuple[str, int, float, float]] = []

    def note(kind: str, neurons: Neurons, took: float) -> None:
        used = int((neurons[0].norm(dim=1) * neurons[1].abs() > 1e-6).sum())
        found.append((kind, used, objective(neurons, data, beta), took))

    if importlib.util.find_spec("scnn") is None:
        print(f"pyscnn: {INSTALL}")
    else:
        for setting in settings:
            neurons, took = convex(data, beta, setting)
            note(str(setting), neurons, took)
            seconds = min(seconds, took)
    layers = []
    for kind in ("torch Adam", "torch L-BFGS", "proximal steps, BFGS"):
        layer, took = trained(kind, data, beta, seconds)
        note(kind, neurons_of(layer), took)
        layers.append(layer)
    best = min(layers, key=lambda layer: objective(neurons_of(layer), data, beta))
    x, y = data

    def closure() -> Tensor:
        best.zero_grad()
        loss = (best(x) - y).square().mean()
        loss.backward()
        return loss

    began = time.process_time()
    certificate = certify_training(best, closure, weight_decay=beta, proof_seconds=10.0)
    bound_took = time.process_time() - began
    bound = certificate.lower_bound if certificate.estimate is None else certificate.estimate
    kind = "proved" if certificate.estimate is None else "estimated"
    for who, used, value, took in found:
        gap = f"{100 * (value / bound - 1):.2g} %"
        table.add([name, who, used, f"{value:.5g}", gap, f"{took:.1f}"])
    table.add([name, f"bound, {kind}", "", f"{bound:.5g}", "0 %", f"{bound_took:.1f}"])
    if certificate.estimate is not None:
        proved = certificate.lower_bound
        gap = f"{100 * (proved / bound - 1):.2g} %"
        table.add([name, "bound, proved", "", f"{proved:.5g}", gap, f"{bound_took:.1f}"])


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "--seconds",
        type=float,
        default=10.0,
        help="of training, at most",
    )
    parser.add_argument("--only", default="", help="beginning of the problem's name")
    parser.add_argument("--fast", action="store_true", help="a small problem, a second each")
    add_arguments(parser)
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    print(machine())
    table = Table(["problem", "who", "neurons", "F", "above the bound", "seconds"], args, labels=2)
    if args.fast:
        compared("sine, n = 10", sine(10), 1e-2, [Setting(None)], 0.5, table)
        return
    line = [Setting(100), Setting(None), Setting(None, 1e-9)]
    sampled = [Setting(100, dtype="float32")]
    problems = {
        "sine, n = 50, beta 0.001": (sine(50), 1e-3, line),
        "diabetes, beta 0.02": (diabetes(), 2e-2, sampled),
    }
    for name, problem in problems.items():
        if name.startswith(args.only):
            compared(name, *problem, args.seconds, table)


if __name__ == "__main__":
    main()
