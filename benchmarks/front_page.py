"""What the first page of the documentation claims: training and one step on the five-point sine.

    python -m benchmarks.front_page                                       # the table, a minute
    python -m benchmarks.front_page --figure docs/_static/front_page.png  # and the figure

Fifty ReLU neurons with frozen output signs are fitted to five points of a sine. The table trains
the network with 1000 evaluations of the closure. The figure takes one proximal step, gamma = 1, and
shows its objective P = F + W2^2/(2 gamma) against evaluations, over the proved lower bound.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.problems import sinus
from benchmarks.table import Table, add_arguments, machine
from torch_wprox import MeanFieldLayer, WassersteinProx, wasserstein_sq

WIDTH, GAMMA, BUDGET = 50, 1.0, 1000
RATES = (3e-3, 1e-2, 3e-2, 1e-1)  # of Adam; the best one counts
Make = Callable[[MeanFieldLayer], Any]  # an optimizer: torch types the closure of step too narrowly


def problem(seed: int) -> tuple[MeanFieldLayer, Callable[[], Tensor]]:
    """Return the network at its start, weights of size 1e-2, and its loss."""
    X, y = sinus()
    x, target = X[:, :1], y[:, None]
    net = MeanFieldLayer(
        1,
        WIDTH,
        parameterization="signed",
        reduction="sum",
        init_scale=1e-2,
        generator=torch.Generator().manual_seed(seed),
        dtype=torch.float64,
    )
    return net, lambda: (net(x) - target).square().mean()


def adam(lr: float) -> Make:
    """Return the maker of Adam with this learning rate."""
    return lambda net: torch.optim.Adam(net.parameters(), lr=lr)


def torch_lbfgs(parameters: Any) -> torch.optim.Optimizer:
    """Return torch's L-BFGS at its best here: strong Wolfe search, no tolerance ends it."""
    return torch.optim.LBFGS(
        parameters,
        line_search_fn="strong_wolfe",
        history_size=20,
        tolerance_grad=0,
        tolerance_change=0,
    )


@dataclass(frozen=True)
class Trained:
    """The lowest loss, the evaluations and the processor time until a run ended."""

    loss: float
    evaluations: int
    seconds: float


def train(seed: int, make: Make, steps: int = BUDGET) -> Trained:
    """Step until the budget is used up, for ``steps`` steps, or until nothing moves."""
    net, loss_of = problem(seed)
    optimizer = make(net)
    losses: list[float] = []

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = loss_of()
        loss.backward()
        losses.append(loss.item())
        return loss

    began = time.process_time()
    for _ in range(steps):
        before = net.particles.detach().clone()
        optimizer.step(closure)
        if len(losses) >= BUDGET or torch.equal(before, net.particles):
            break
    seconds = time.process_time() - began
    with torch.no_grad():
        last = loss_of().item()  # some optimizers do not evaluate where they end
    if hasattr(optimizer, "report"):  # never ends above its start, and may probe given outputs
        return Trained(last, len(losses), seconds)
    return Trained(min(*losses, last), len(losses), seconds)


def trainings(seeds: Sequence[int]) -> dict[str, list[Trained]]:
    """Return name to one run per seed."""
    adams = [[train(s, adam(lr)) for s in seeds] for lr in RATES]
    local: Make = lambda net: WassersteinProx(net.parameters(), gamma=GAMMA)  # noqa: E731
    solved: Make = lambda net: WassersteinProx(  # noqa: E731
        net.parameters(), gamma=GAMMA, solver="global"
    )
    return {
        "`torch.optim.Adam`, best of four learning rates": min(adams, key=median_loss),
        "`torch.optim.LBFGS`, strong Wolfe": [
            train(s, lambda net: torch_lbfgs(net.parameters())) for s in seeds
        ],
        "`WassersteinProx(gamma=1)`": [train(s, local) for s in seeds],
        '`WassersteinProx(gamma=1, solver="global")`, ten steps': [
            train(s, solved, steps=10) for s in seeds
        ],
    }


def median_loss(runs: Sequence[Trained]) -> float:
    """Return the median of the lowest losses."""
    return statistics.median(run.loss for run in runs)


def objectives(seed: int, make: Make | None, budget: int) -> list[float]:
    """Return the lowest P so far after each evaluation of one step.

    Args:
        seed: Of the anchor.
        make: Makes a solver of torch that minimises P itself; None: our step, default solver.
        budget: Evaluations.
    """
    net, loss_of = problem(seed)
    W = net.particles.detach().clone()
    positive = net.signs > 0
    seen: list[float] = []

    def penalty() -> Tensor:
        parts = [
            wasserstein_sq(net.particles[c], W[c]) * c.sum() / WIDTH for c in (positive, ~positive)
        ]
        return (parts[0] + parts[1]) / (2 * GAMMA)

    ours = WassersteinProx(net.parameters(), gamma=GAMMA, max_eval=budget, tolerance_grad=0)
    optimizer = ours if make is None else make(net)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss, distance = loss_of(), penalty()
        seen.append((loss + distance).item())
        result = loss if make is None else loss + distance
        result.backward()
        return result

    while len(seen) < budget:
        before = net.particles.detach().clone()
        optimizer.step(closure)
        if make is None or torch.equal(before, net.particles):
            break
    seen = [*seen, *[seen[-1]] * budget][:budget]
    return torch.tensor(seen).cummin(0).values.tolist()


def figure(path: Path, seeds: Sequence[int], budget: int) -> None:
    """Draw medians of P over seeds in bands between the quartiles, over the lower bound."""
    from matplotlib import pyplot as plt

    from torch_wprox import plotting
    from torch_wprox.plotting.look import DESCENTS, colors_of

    adams = {lr: [objectives(s, adam(lr), budget) for s in seeds] for lr in RATES}
    curves = {
        "Adam, best learning rate": min(
            adams.values(), key=lambda rows: statistics.median(r[-1] for r in rows)
        ),
        "L-BFGS of torch": [
            objectives(s, lambda n: torch_lbfgs(n.parameters()), budget) for s in seeds
        ],
        "WassersteinProx, default solver": [objectives(s, None, budget) for s in seeds],
    }
    reports: list[Any] = []
    for seed in seeds:
        net, loss_of = problem(seed)
        optimizer = WassersteinProx(net.parameters(), gamma=GAMMA, solver="global")

        def closure(loss_of: Any = loss_of, optimizer: Any = optimizer) -> Tensor:
            optimizer.zero_grad()
            loss: Tensor = loss_of()
            loss.backward()
            return loss

        optimizer.step(closure)
        reports.append(optimizer.report)
    bound = statistics.median(r.lower_bound for r in reports)
    evaluations = statistics.median(r.evaluations for r in reports)
    objective = statistics.median(r.objective for r in reports)
    print(f"one step: bound {bound:.4f}, global {objective:.4f} after {evaluations:g} evaluations")
    colors = colors_of(curves)
    with plotting.style():
        canvas, ax = plt.subplots(figsize=(8, 3.8))
        steps, ends = range(1, budget + 1), {}
        for (name, rows), color in zip(curves.items(), colors, strict=True):
            low, middle, high = torch.tensor(rows).quantile(torch.tensor([0.25, 0.5, 0.75]), 0)
            ax.plot(steps, middle, color=color, lw=2)
            ax.fill_between(steps, low, high, color=color, alpha=0.15, lw=0)
            ends[name] = float(middle[-1])
            print(f"one step: {name} {middle[-1]:.4f} after {budget} evaluations")
        # Names stand beside the ends of their curves, from below at least 0.09 apart.
        height = 0.0
        for (name, value), color in sorted(
            zip(ends.items(), colors, strict=True), key=lambda e: e[0][1]
        ):
            height = max(value, height + 0.09)
            ax.text(1.08 * budget, height, f"{name}\n{value:.3f}", color=color, va="center")
        green = DESCENTS["global"]
        ax.axhspan(0, bound, color="0.85", lw=0)
        ax.axhline(bound, color="0.3", lw=1)
        ax.text(
            1.2,
            bound / 2,
            "proved: no solver can end this step below the line",
            color="0.3",
            va="center",
        )
        ax.plot(evaluations, objective, "o", color=green, ms=9, clip_on=False)
        ax.annotate(
            f'solver="global"\n{objective:.3f} after {evaluations:g} evaluations',
            (evaluations, objective),
            (2.0, 0.27),
            color=green,
            arrowprops={"arrowstyle": "-", "color": green},
        )
        ax.set_xscale("log")
        ax.set_xlim(1, budget)
        ax.set_ylim(0, None)
        ax.set_xlabel("evaluations of the closure, one step")
        ax.set_ylabel("objective $P$ of the step")
        path.parent.mkdir(parents=True, exist_ok=True)
        canvas.savefig(path)
        plt.close(canvas)
    print(f"wrote {path}")


def main(argv: Sequence[str] | None = None) -> None:
    """Print the table; draw the figure where asked."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--figure", type=Path, help="also draw one step here")
    parser.add_argument("--seeds", type=int, default=5, help="initialisations")
    parser.add_argument("--budget", type=int, default=2000, help="evaluations in the figure")
    parser.add_argument("--fast", action="store_true", help="one seed")
    add_arguments(parser)
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    seeds = range(1 if args.fast else args.seeds)
    print(machine() + "\n")
    names = ["optimizer", "training loss, median", "lowest, highest", "evaluations", "seconds"]
    table = Table(names, args)
    for name, runs in trainings(seeds).items():
        losses = [run.loss for run in runs]
        evaluations = statistics.median(run.evaluations for run in runs)
        seconds = statistics.median(run.seconds for run in runs)
        found = [f"{median_loss(runs):.2g}", f"{min(losses):.2g}, {max(losses):.2g}"]
        table.add([name, *found, f"{evaluations:g}", f"{seconds:.1f}"])
    if args.figure is not None:
        figure(args.figure, seeds, args.budget)


if __name__ == "__main__":
    main()
