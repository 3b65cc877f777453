"""Predicted transport (Meta OT) beside warm starts: does a network know the next prices better?

    python -m lightning_examples.meta_ot

Transport problems come in families. Meta OT (Amos et al. 2023) trains a network to predict the dual
variables of the next one; a descent has the dual variables of the last one. Both start the same
exact solver here. Assignments: the neurons of a step with large gamma, solved at every tenth
evaluation from prices of four kinds, counted by the rows whose cheapest column is another row's
(each needs an augmenting path) and by time. Sinkhorn: densities that drift over a grid, iterations
to a marginal error of 1e-4. The networks are tested on descents and drifts that they never saw.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import ot
import pytorch_lightning as pl
import torch
from matplotlib import pyplot as plt
from pytorch_lightning.callbacks import ModelCheckpoint
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn

from lightning_examples import experiment, output, problems
from torch_wprox import plotting, prox

GAMMA, EVERY, SIDE, EPSILON, TOLERANCE = 100.0, 10, 20, 5e-3, 1e-4


# %% Assignments: the neurons of positive sign at every tenth evaluation of a step
@dataclass(frozen=True)
class Assignment:
    """V and W (m, D), centred, and optimal prices (m,), of mean 0."""

    V: Tensor
    W: Tensor
    prices: Tensor

    @property
    def scale(self) -> float:
        return float(self.V.square().mean().sqrt() * self.W.square().mean().sqrt()) + 1e-300


def descent(m: int, evaluations: int, seed: int) -> list[Assignment]:
    random = torch.Generator().manual_seed(seed)
    W = 1e-2 * torch.randn(2 * m, 2, generator=random, dtype=torch.float64)
    x, y = problems.sinus()
    inputs = torch.cat([x, torch.ones_like(x)], 1)
    signs = torch.ones(2 * m, dtype=torch.float64)
    signs[m:] = -1
    seen: list[Tensor] = []

    def loss(V: Tensor) -> Tensor:
        seen.append(V.detach()[:m].clone())
        return (torch.relu(inputs @ V.t()) @ signs * (25 / m) - y[:, 0]).square().mean()

    prox(loss, W, GAMMA, classes=(signs > 0).long(), max_eval=evaluations)
    return [solved(V, W[:m]) for V in seen[EVERY::EVERY]]


def solved(V: Tensor, W: Tensor) -> Assignment:
    V, W, uniform = V - V.mean(0), W - W.mean(0), np.full(len(V), 1 / len(V))
    cost = -(V @ W.t()).numpy()
    _, log = ot.emd(uniform, uniform, cost, numItermax=10_000_000, log=True)
    prices = -torch.from_numpy(log["v"])
    return Assignment(V, W, prices - prices.mean())


def work(task: Assignment, prices: Tensor) -> tuple[float, float]:
    """Share of rows that need an augmenting path, and milliseconds of the exact solver."""
    R = (prices - task.V @ task.W.t()).numpy()
    R -= R.min(1, keepdims=True)
    taken = len(np.unique(R.argmin(1)))
    began = time.process_time()
    linear_sum_assignment(R)
    return 1 - taken / len(R), 1e3 * (time.process_time() - began)


# %% Sinkhorn: a mixture that drifts over a grid
def drift(steps: int, seed: int) -> list[Tensor]:
    random = np.random.default_rng(seed)
    axis = (np.arange(SIDE) + 0.5) / SIDE
    cells = np.stack(np.meshgrid(axis, axis, indexing="ij"), -1)
    centres, ways = random.uniform(0.2, 0.8, (3, 2)), random.normal(0, 0.03, (3, 2))
    widths = random.uniform(0.06, 0.15, 3)
    found = []
    for _ in range(steps + 1):
        apart = ((cells[None] - centres[:, None, None]) ** 2).sum(-1)
        density = np.exp(-apart / (2 * widths[:, None, None] ** 2)).sum(0) + 1e-3
        found.append(torch.from_numpy(density / density.sum()).flatten())
        centres = centres + ways
    return found


def gibbs() -> Tensor:
    axis = (torch.arange(SIDE, dtype=torch.float64) + 0.5) / SIDE
    cells = torch.cartesian_prod(axis, axis)
    return -torch.cdist(cells, cells).square() / EPSILON


def sinkhorn(p: Tensor, q: Tensor, K: Tensor, f: Tensor) -> tuple[Tensor, int]:
    """Return the potential f/eps of p (mean 0 under p) and the iterations from ``f``."""
    error, iterations = torch.inf, 0
    while error > TOLERANCE:
        g = q.log() - (K + f[:, None]).logsumexp(0)
        row = (K + g).logsumexp(1)
        error = float(((f + row).exp() - p).abs().sum())
        f, iterations = p.log() - row, iterations + 1
    return f - (p * f).sum(), iterations


# %% The networks, and one Lightning module that trains either by regression on exact duals
class Prices(nn.Module):
    """(W, V) to prices at W, whatever the order of V: means of features of both clouds."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.of_v, self.of_w = mlp(2, width, width), mlp(2, width, width)
        self.price = mlp(2 + 2 * width, width, 1)

    def forward(self, clouds: Tensor) -> Tensor:
        V, W = clouds.unbind(1)
        pooled = torch.cat([self.of_v(V).mean(1), self.of_w(W).mean(1)], 1)
        spread = pooled[:, None].expand(-1, W.shape[1], -1)
        return self.price(torch.cat([W, spread], 2))[..., 0]


def mlp(inputs: int, width: int, outputs: int) -> nn.Module:
    layers = nn.Linear(inputs, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU()
    return nn.Sequential(*layers, nn.Linear(width, outputs))


class Duals(pl.LightningModule):
    def __init__(self, network: nn.Module, steps: int) -> None:
        super().__init__()
        self.network, self.steps = network, steps

    def training_step(self, batch: experiment.Batch, index: int) -> Tensor:
        x, y = batch
        loss = (self.network(x) - y).square().mean() / y.square().mean()
        self.log("relative error", loss.detach().sqrt(), prog_bar=True)
        return loss

    def configure_optimizers(self) -> Any:
        adam = torch.optim.Adam(self.parameters(), lr=2e-3)
        decay = torch.optim.lr_scheduler.CosineAnnealingLR(adam, self.steps)
        return [adam], [{"scheduler": decay, "interval": "step"}]


def trained(name: str, network: nn.Module, data: experiment.Batch, args: Any) -> nn.Module:
    keep = ModelCheckpoint(args.out / "checkpoints", name, every_n_train_steps=args.train // 2)
    loader = experiment.Minibatches(data, min(16, len(data[0])), args.train)
    run = experiment.trainer(max_epochs=1, callbacks=[keep], progress=not args.no_progress)
    experiment.fit(run, Duals(network, args.train), loader)
    return network.eval()


# %% The comparison
def clouds_of(task: Assignment) -> Tensor:
    scaled = [P / P.square().mean().sqrt().clamp_min(1e-300) for P in (task.V, task.W)]
    return torch.stack(scaled).float()


@torch.no_grad()
def assignments(args: Any) -> list[dict[str, Any]]:
    made = [descent(args.m, args.evaluations, seed) for seed in range(args.families + 3)]
    tasks = [task for run in made[3:] for task in run]
    data = (
        torch.stack([clouds_of(t) for t in tasks]),
        torch.stack([t.prices / t.scale for t in tasks]).float(),
    )
    with torch.enable_grad():
        network = trained("prices", Prices(), data, args)
    rows = []
    for run in made[:3]:
        for k, (before, task) in enumerate(pairwise(run)):
            predicted = network(clouds_of(task)[None])[0].double() * task.scale
            starts = {
                "zero": torch.zeros_like(task.prices),
                "of the anchor": task.W.square().sum(1) / 2,
                "warm": before.prices,
                "predicted": predicted,
            }
            for name, prices in starts.items():
                share, milliseconds = work(task, prices)
                rows.append({"problem": "assignment", "start": name, "number": k})
                rows[-1] |= {"work": 100 * share, "milliseconds": milliseconds}
    return rows


@torch.no_grad()
def grids(args: Any) -> list[dict[str, Any]]:
    K, zero = gibbs(), torch.zeros(SIDE**2, dtype=torch.float64)
    drifts = [drift(args.steps, seed) for seed in range(args.families + 3)]
    pairs = [(p, q) for run in drifts[3:] for p, q in zip(run[1:], run[:-1], strict=True)]
    x = torch.stack([torch.cat([p, q]).sqrt() for p, q in pairs]).float() * SIDE
    f = torch.stack([sinkhorn(p, q, K, zero)[0] for p, q in pairs]).float()
    with torch.enable_grad():
        network = trained("sinkhorn", mlp(2 * SIDE**2, 256, SIDE**2), (x, f), args)
    rows = []
    for run in drifts[:3]:
        last = zero
        for k, (q, p) in enumerate(pairwise(run)):
            guess = network(torch.cat([p, q]).sqrt().float()[None] * SIDE)[0].double()
            for name, start in {"zero": zero, "warm": last, "predicted": guess}.items():
                began = time.process_time()
                exact, iterations = sinkhorn(p, q, K, start)
                milliseconds = 1e3 * (time.process_time() - began)
                rows.append({"problem": "Sinkhorn", "start": name, "number": k})
                rows[-1] |= {"work": float(iterations), "milliseconds": milliseconds}
            last = exact
    return [row for row in rows if row["number"]]  # the first has no last one


def main(argv: Sequence[str] | None = None) -> list[dict[str, Any]]:
    parser = experiment.parser(__doc__, "meta_ot", m=200, steps=10)
    parser.add_argument("--evaluations", type=int, default=300, help="evaluations of a descent")
    parser.add_argument("--families", type=int, default=40, help="descents to learn from")
    parser.add_argument("--train", type=int, default=3000, help="training steps of a network")
    args = parser.parse_args(argv)
    if args.fast:
        args.m, args.evaluations, args.families, args.train, args.steps = 20, 50, 2, 20, 3
    torch.manual_seed(0)
    rows = assignments(args) + grids(args)
    output.write_csv(args.out / "meta_ot.csv", rows)
    kinds = dict.fromkeys((row["problem"], row["start"]) for row in rows)
    table = []
    for problem, start in kinds:
        own = [r for r in rows if (r["problem"], r["start"]) == (problem, start)]
        mean = {key: float(np.mean([r[key] for r in own])) for key in ("work", "milliseconds")}
        table.append({"problem": problem, "start": start, **mean})
    output.print_table(table)
    with plotting.style():
        _, axes = plt.subplots(1, 2)
        for ax, problem in zip(axes, ("assignment", "Sinkhorn"), strict=True):
            names = [start for kind, start in kinds if kind == problem]
            data = [
                [r["work"] for r in rows if (r["problem"], r["start"]) == (problem, n)]
                for n in names
            ]
            ax.boxplot(data, tick_labels=names, showfliers=False)
            ax.set_title(problem)
        axes[0].set_ylabel("rows without a column of their own, %")
        axes[1].set(ylabel="iterations", yscale="log")
        output.save(axes[0], args.out / "meta_ot.png", size=(10, 4))
    return rows


if __name__ == "__main__":
    main()
