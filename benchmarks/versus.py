"""Full-batch training of two-layer networks: closure evaluations to a loss, beside what users know.

    python -m benchmarks.versus              # minutes
    python -m benchmarks.versus --defaults   # max_eval and rho of the inexact rule: all choices

Counted are evaluations (loss and gradient) until the lowest training loss seen is 1e-2, 1e-4 and
1e-6 of the first one: medians over seeds, "-" where most seeds do not get there. Adam and SGD take
the step size of a list that ends lowest; torch.optim.LBFGS has the strong Wolfe search.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from benchmarks import problems
from benchmarks.problems import Batch, Problem
from benchmarks.table import header, machine, row, short
from torch_wprox import FrobeniusProx, WassersteinProx

LEVELS = (1e-2, 1e-4, 1e-6)
GAMMA = 1e3  # unless a row says otherwise: large, so that a step is nearly the whole training


@dataclass(frozen=True)
class Task:
    """A training problem: how to make it for a seed, its held-out loss, evaluations per run."""

    name: str
    make: Callable[[int], tuple[Problem, Problem | None]]
    budget: int
    seeds: int


def joint_task(
    name: str,
    data: tuple[Batch, Batch],
    loss: Callable[[Tensor], Callable[[Tensor], Tensor]],
    m: int,
    k: int,
    budget: int,
    seeds: int,
) -> Task:
    """M neurons with trained output weights on training and held-out data."""

    def make(seed: int) -> tuple[Problem, Problem]:
        train, held = (problems.joint(loss(y), x, m, k, seed) for x, y in data)
        return train, held

    return Task(name, make, budget, seeds)


def tasks(fast: bool) -> Iterator[Task]:
    """Yield the four tasks."""
    squared, entropy = problems.squared, problems.cross_entropy
    if fast:
        yield joint_task("diabetes", problems.diabetes(), squared, 10, 1, 40, 1)
        return
    yield joint_task("diabetes, m = 50", problems.diabetes(), squared, 50, 1, 1000, 3)
    teacher = problems.teacher_student()
    yield joint_task("teacher-student, m = 50", teacher, squared, 50, 1, 1000, 3)
    yield Task(
        "five-point sine, m = 50",
        lambda s: (problems.signed(*problems.sinus(), 50, s), None),
        1000,
        3,
    )
    yield joint_task("digits, m = 200", problems.digits(300), entropy, 200, 10, 300, 1)


@dataclass(frozen=True)
class Run:
    """Lowest training loss over the first one after each evaluation; held-out loss at the end."""

    lowest: list[float]
    held: float

    def evaluations_to(self, level: float) -> float:
        """Return how many evaluations until the ratio is below ``level``; inf if never."""
        return next((i + 1 for i, v in enumerate(self.lowest) if v <= level), float("inf"))


def train(task: Task, seed: int, make: Callable[[Tensor, Tensor | None], Any]) -> Run:
    """Train with one optimizer until the task's budget is used up, or nothing moves any more."""
    problem, held = task.make(seed)
    V = torch.nn.Parameter(problem.W.clone())
    optimizer = make(V, problem.classes)
    losses: list[float] = []

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = problem.fn(V)
        loss.backward()
        losses.append(loss.item())
        return loss

    while len(losses) < task.budget:
        before = V.detach().clone()
        optimizer.step(closure)
        if torch.equal(before, V.detach()) and len(losses) > 1:
            break
    first, lowest, so_far = losses[0], [], float("inf")
    for loss in losses[: task.budget]:
        so_far = min(so_far, loss) if loss == loss else so_far
        lowest.append(so_far / first)
    with torch.no_grad():
        held_loss = float("nan") if held is None else float(held.fn(V))
    return Run(lowest, held_loss)


def tuned(kind: Any, rates: Sequence[float], **options: Any) -> list[Callable[..., Any]]:
    """Return one maker per step size."""
    return [lambda V, _, lr=lr: kind([V], lr=lr, **options) for lr in rates]


def proximal(kind: Any, **options: Any) -> list[Callable[..., Any]]:
    """Return the maker of a proximal optimizer; classes are for the Wasserstein distance alone."""
    options = {"gamma": GAMMA, **options}

    def make(V: Tensor, classes: Tensor | None) -> Any:
        if kind is WassersteinProx:
            return kind([V], classes=classes, **options)
        return kind([V], **options)

    return [make]


def torch_lbfgs(V: Tensor, _: Tensor | None) -> Any:
    """Return torch's L-BFGS: 20 iterations a step, as its default."""
    return torch.optim.LBFGS(
        [V], line_search_fn="strong_wolfe", history_size=20, tolerance_grad=0, tolerance_change=0
    )


def usual() -> dict[str, list[Callable[..., Any]]]:
    """Return the rows of the main table: name and makers, the best of which counts."""
    return {
        "WassersteinProx, gamma 1": proximal(WassersteinProx, gamma=1.0),
        "WassersteinProx, gamma 1000": proximal(WassersteinProx),
        "WassersteinProx, gamma 1e6": proximal(WassersteinProx, gamma=1e6),
        "FrobeniusProx, gamma 1000": proximal(FrobeniusProx),
        "torch LBFGS, strong Wolfe": [torch_lbfgs],
        "Adam, tuned": tuned(torch.optim.Adam, (3e-3, 1e-2, 3e-2)),
        "SGD with momentum, tuned": tuned(torch.optim.SGD, (1e-3, 1e-2, 5e-2), momentum=0.9),
    }


def defaults() -> dict[str, list[Callable[..., Any]]]:
    """Return the choices of max_eval, gamma and rho."""
    rows = {}
    for gamma in (1.0, 1e3):
        for max_eval in (10, 30, 100, 300):
            for rho in (None, 0.5, 0.9):
                if rho is None or max_eval == 100:
                    name = f"gamma {gamma:g}, max_eval {max_eval}, inexact {rho}"
                    options = {"gamma": gamma, "max_eval": max_eval, "inexact": rho}
                    rows[name] = proximal(WassersteinProx, **options)
    return rows


def line(task: Task, name: str, makers: list[Callable[..., Any]]) -> str:
    """Return one row: the maker that ends lowest on median."""
    middle = statistics.median
    runs = [[train(task, s, make) for s in range(task.seeds)] for make in makers]
    best = min(runs, key=lambda rs: middle(r.lowest[-1] for r in rs))
    cells = []
    for level in LEVELS:
        count = middle(r.evaluations_to(level) for r in best)
        cells.append(f"{count:g}" if count < float("inf") else "-")
    held = middle(r.held for r in best)
    ends = short(middle(r.lowest[-1] for r in best))
    return row([task.name, name, *cells, ends, short(held) if held == held else ""])


def main(argv: Sequence[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--defaults", action="store_true", help="the choices of the defaults")
    parser.add_argument("--fast", action="store_true", help="one small problem")
    parser.add_argument("--seeds", type=int, help="at most so many for each task")
    parser.add_argument("--only", default="", help="tasks whose name begins so")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    print(machine() + "\n")
    levels = [f"to {level:g}" for level in LEVELS]
    print(header(["task", "optimizer", *levels, "loss at the end", "held-out loss"]), flush=True)
    for task in tasks(args.fast):
        if not task.name.startswith(args.only):
            continue
        task = replace(task, seeds=min(task.seeds, args.seeds or task.seeds))
        for name, makers in (defaults() if args.defaults else usual()).items():
            print(line(task, name, makers), flush=True)


if __name__ == "__main__":
    main()
