"""Processor time until P is as low as a naive loop (EMD + Adam) left it.

    python -m benchmarks.time_to_objective

The run of the note (Mercklé 2024): m = 50, gamma = 1, 5 points. Its inner loop differentiates
``ot.emd2`` by autograd and takes 1e6 Adam iterations (lr 3e-3) for one step. That is far too slow
to repeat: the time of an iteration is measured, and the objective is that of the same Adam with
exact gradients after ``--iterations`` of them, which can only flatter that loop if more iterations
do not help.
Both run alternately in one process; the time of ours is the median over seeds.
"""

from __future__ import annotations

import argparse
import statistics
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from benchmarks import problems
from benchmarks.naive import emd2_by_autograd
from benchmarks.problems import Problem
from benchmarks.table import Table, add_arguments, machine, short
from torch_wprox import prox
from torch_wprox.objective import Evaluation, Objective
from torch_wprox.report import Status
from torch_wprox.solvers import BFGS, FirstOrder
from torch_wprox.solvers.stopping import Stopping

GAMMA, M, ITERATIONS_OF_THE_NOTE = 1.0, 50, 1_000_000


class Reached(Exception):
    """P is as low as asked for."""


@dataclass(frozen=True)
class Until:
    """BFGS that ends as soon as P is at most ``target``."""

    target: float
    name = "until"

    def minimize(
        self, objective: Objective, stopping: Stopping, memory: dict[str, Any] | None = None
    ) -> tuple[Status, dict[str, Any] | None]:
        """Minimise until the target is reached."""
        evaluate = objective.evaluate

        def watched(v: Tensor) -> Evaluation:
            found = evaluate(v)
            if found.value <= self.target:
                raise Reached
            return found

        objective.evaluate = watched  # type: ignore[method-assign, assignment]
        try:
            return BFGS().minimize(objective, stopping, memory)
        except Reached:
            return Status.CONVERGED, None


def naive_seconds(problem: Problem, iterations: int) -> float:
    """Return the seconds of one iteration of the loop that the note ran."""
    W, classes = problem.W, problem.classes
    assert classes is not None
    V = W.clone().requires_grad_()
    adam = torch.optim.Adam([V], lr=3e-3)
    rows = [classes == c for c in (0, 1)]
    began = 0.0
    for iteration in range(iterations + 1):
        if iteration == 1:
            began = time.process_time()
        adam.zero_grad()
        (problem.fn(V) + emd2_by_autograd(V, W, rows) / (2 * GAMMA)).backward()
        adam.step()
    return (time.process_time() - began) / iterations


def adam_objective(problem: Problem, iterations: int) -> float:
    """Return the lowest P of Adam with a constant step size."""
    solver = FirstOrder(torch.optim.Adam, decay=False, lr=3e-3)
    _, report = prox(
        problem.fn, problem.W, GAMMA, classes=problem.classes, solver=solver, max_eval=iterations
    )
    return report.objective


def main(argv: Sequence[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seeds", type=int, default=5, help="initialisations")
    parser.add_argument("--iterations", type=int, default=10_000, help="iterations of Adam")
    parser.add_argument("--max-eval", type=int, default=4000, help="evaluations of a proximal step")
    parser.add_argument("--fast", action="store_true", help="one seed, few iterations")
    add_arguments(parser)
    args = parser.parse_args(argv)
    if args.fast:
        args.seeds, args.iterations, args.max_eval = 1, 100, 300
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", module="ot")
    print(machine() + "\n")
    names = ["seed", "P of Adam", "our evaluations", "ours, s", "our P", "reached"]
    names += ["naive iteration, ms", "as many iterations", "$10^6$ iterations"]
    table = Table(names, args)
    ratios = []
    for seed in range(args.seeds):
        problem = problems.signed(*problems.sinus(), M, seed)
        target = adam_objective(problem, args.iterations)
        each = naive_seconds(problem, 20 if args.fast else 100)
        began = time.process_time()
        _, report = prox(
            problem.fn,
            problem.W,
            GAMMA,
            classes=problem.classes,
            solver=Until(target),
            max_eval=args.max_eval,
        )
        seconds = time.process_time() - began
        reached = report.objective <= target
        same, note = (n * each / seconds for n in (args.iterations, ITERATIONS_OF_THE_NOTE))
        ratios.append(note if reached else 0.0)
        cells = [seed, short(target), report.evaluations, f"{seconds:.2f}", short(report.objective)]
        tail = ["yes" if reached else "no", f"{1e3 * each:.2f}", f"{same:.0f} times"]
        tail.append(f"{note:.0f} times")
        table.add([*cells, *tail])
    print(f"\nMedian ratio to 1e6 iterations, as in the note: {statistics.median(ratios):.0f}")


if __name__ == "__main__":
    main()
