"""How low one proximal step gets with a given number of closure evaluations.

    python -m benchmarks.quality                  # ten minutes
    python -m benchmarks.quality --full           # every solver on 20 seeds x 3 perturbations
    python -m benchmarks.quality --only target    # the two targets alone

The prox objective P after one step on the five-point sine (m = 50), with random data in
10 dimensions, and on scikit-learn's digits. Which local minimum a solver finds is a coin flip that
a relative change of 1e-12 of W decides: median and quartiles over seeds and such perturbations.
Solvers without a schedule run once, the smaller budgets are read off; Adam runs once for each.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch

from benchmarks import problems
from benchmarks.problems import Problem
from benchmarks.table import Table, add_arguments, machine, quartiles
from torch_wprox import prox
from torch_wprox.solvers.base import Solver

BUDGETS = (500, 1000, 4000)


def lowest(
    problem: Problem, gamma: float, distance: str, solver: str | Solver, budget: int
) -> list[float]:
    """Return the lowest P so far after every evaluation but the first, which is at the anchor."""
    values: list[float] = []
    prox(
        problem.fn,
        problem.W,
        gamma,
        distance=distance,
        classes=problem.classes,
        solver=solver,
        max_eval=budget,
        callback=lambda progress: values.append(progress.best),
    )
    return values


def values(
    problem: Problem, gamma: float, distance: str, solver: str | Solver, budgets: tuple[int, ...]
) -> dict[int, float]:
    """Return the lowest P after each budget; a step may end before."""
    found: dict[int, float] = {}
    for run in [(b,) for b in budgets] if solver == "adam" else [budgets]:
        history = lowest(problem, gamma, distance, solver, max(run))
        found |= {budget: history[min(budget - 1, len(history)) - 1] for budget in run}
    return found


@dataclass(frozen=True)
class Cell:
    """One row of a table: a setting of a solver on some seeds."""

    setting: str
    gamma: float
    distance: str
    solver: str
    seeds: int
    perturbations: int = 1
    budgets: tuple[int, ...] = BUDGETS

    def problems(self) -> Iterator[Problem]:
        """Yield the problem of every seed and perturbation."""
        for seed in range(self.seeds):
            for perturbation in range(self.perturbations):
                if self.setting == "sine":
                    yield problems.signed(*problems.sinus(), 50, seed, perturbation)
                elif self.setting == "digits":
                    (x, y), _ = problems.digits(300)
                    yield problems.joint(problems.cross_entropy(y), x, 200, 10, seed)
                else:
                    m = int(self.setting.removeprefix("d = 10, m = "))
                    yield problems.signed(*problems.random_data(), m, seed, perturbation)

    def line(self) -> list[str]:
        """Measure and return the row."""
        found = [
            values(p, self.gamma, self.distance, self.solver, self.budgets) for p in self.problems()
        ]
        cells = [quartiles([f[b] for f in found]) if b in self.budgets else "" for b in BUDGETS]
        runs = f"{self.seeds} x {self.perturbations}"
        name = "Wasserstein" if self.distance == "emd" else "Frobenius"
        return [self.setting, f"{self.gamma:g}", name, self.solver, runs, *cells]


def cells(full: bool) -> Iterator[Cell]:
    """The rows; the targets (Wasserstein) first and on all seeds."""
    for gamma in (1.0, 100.0):
        yield Cell("sine", gamma, "emd", "bfgs", 20, 3 if full else 1)
        yield Cell("sine", gamma, "emd", "lbfgs", 20, 3 if full else 1)
    many = (20, 3) if full else (3, 1)
    for gamma in (1e-2, 1.0, 100.0):
        for distance in ("emd", "frobenius"):
            for solver in ("bfgs", "lbfgs", "gd", "adam"):
                is_target = gamma >= 1 and distance == "emd" and solver.endswith("bfgs")
                if not is_target:
                    yield Cell("sine", gamma, distance, solver, *many)
    for setting in ("d = 10, m = 40", "d = 10, m = 400"):
        for gamma in (1.0, 100.0):
            for solver in ("bfgs", "lbfgs", "gd", "adam"):
                if not (solver == "bfgs" and setting.endswith("400")):  # 4400 numbers
                    yield Cell(setting, gamma, "emd", solver, 6 if full else 3, 1, BUDGETS[:2])
    for gamma in (1.0, 100.0):
        for solver in ("lbfgs", "gd", "adam"):
            yield Cell("digits", gamma, "emd", solver, 1, 1, BUDGETS[:1])


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--full", action="store_true", help="20 seeds x 3 perturbations")
    parser.add_argument("--fast", action="store_true", help="one small case")
    parser.add_argument("--only", help="target, or a setting's first word: sine, d, digits")
    parser.add_argument("--seeds", type=int, help="at most so many, without perturbations")
    add_arguments(parser)
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    print(machine() + "\n")
    budgets = [f"{b} evaluations" for b in BUDGETS]
    table = Table(["setting", "gamma", "distance", "solver", "runs", *budgets], args, labels=4)
    chosen = list(cells(args.full))
    if args.fast:
        chosen = [Cell("sine", 1.0, "emd", s, 1, 2, (500,)) for s in ("bfgs", "adam")]
    elif args.only == "target":
        chosen = chosen[:4]
    elif args.only:
        chosen = [c for c in chosen if c.setting.split()[0] == args.only]
    if args.seeds:
        chosen = [replace(c, seeds=min(c.seeds, args.seeds), perturbations=1) for c in chosen]
    for cell in chosen:
        table.add(cell.line())


if __name__ == "__main__":
    main()
