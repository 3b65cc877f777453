"""Full-batch training: closure evaluations to a loss, beside what users would take instead.

    python -m benchmarks.versus              # 1000 evaluations, one seed: ten minutes
    python -m benchmarks.versus --full       # 4000 evaluations, three seeds, all peers: two hours
    python -m benchmarks.versus --until 1e-6 --seeds 10   # each run ends there: quartiles
    python -m benchmarks.versus --defaults   # max_eval and rho of the inexact rule: all choices

Counted are evaluations (loss and gradient) until the lowest training loss seen is 1e-2, 1e-4 and
1e-6 of the first one: medians over seeds, "never" where most seeds do not get there. "loss" is that
ratio at the end, where the held-out loss is taken. Every peer has several settings; the one that
ends lowest on the first seed is the one of the row. Networks whose numbers are one cloud (ReLU, two
layers) take WassersteinProx, those of several tanh layers FrobeniusProx with plain parameters.
"""

from __future__ import annotations

import argparse
import math
import re
import statistics
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks import problems
from benchmarks.peers import SOAP, SciPy
from benchmarks.problems import Batch, Problem
from benchmarks.table import Table, add_arguments, machine, short
from lightning_examples import equations
from lightning_examples.ssbroyden import SSBroyden
from torch_wprox import FrobeniusProx, WassersteinProx, solvers

LEVELS = (1e-2, 1e-4, 1e-6)
# Above so many numbers SciPy's BFGS, a few products of (N, N) matrices an iteration, takes seconds.
SCIPY_UP_TO = 1000


@dataclass(frozen=True)
class Training:
    """Parameters and their loss; which particles may be exchanged; the loss on held-out data."""

    parameters: list[nn.Parameter]
    loss: Callable[[], Tensor]
    classes: Tensor | None = None
    held: Callable[[], Tensor] | None = None

    @property
    def numbers(self) -> int:
        """How many numbers are trained."""
        return sum(p.numel() for p in self.parameters)

    @property
    def is_cloud(self) -> bool:
        """Whether they are the rows of one matrix of neurons."""
        return len(self.parameters) == 1


@dataclass(frozen=True)
class Task:
    """A training problem: how to make it for a seed, evaluations of a run, seeds.

    ``until``: a run ends when the loss is this fraction of the first one.
    """

    name: str
    make: Callable[[int], Training]
    budget: int = 4000
    seeds: int = 3
    until: float = 0.0


def cloud_of(problem: Problem, held: Problem | None = None) -> Training:
    """Return the training of one cloud."""
    V = nn.Parameter(problem.W.clone())
    on_held = None if held is None else lambda: held.fn(V)
    return Training([V], lambda: problem.fn(V), problem.classes, on_held)


def joint_task(
    name: str,
    data: tuple[Batch, Batch],
    loss: Callable[[Tensor], Callable[[Tensor], Tensor]],
    m: int,
    k: int,
) -> Task:
    """M neurons with trained output weights on training and held-out data."""

    def make(seed: int) -> Training:
        return cloud_of(*(problems.joint(loss(y), x, m, k, seed) for x, y in data))

    return Task(name, make)


def equation_task(name: str) -> Task:
    """A differential equation, solved by a network of 921 numbers."""

    def make(seed: int) -> Training:
        net, equation = equations.network(seed), equations.EQUATIONS[name]()
        return Training(list(net.parameters()), lambda: equation.loss(net))

    return Task(f"{name}, 2-20-20-20-1", make)


def regression(seed: int) -> Training:
    """Fit a smooth function of two numbers by two hidden tanh layers of 50."""
    x, y = problems.waves()
    net = equations.network(seed, (2, 50, 50, 1))
    return Training(list(net.parameters()), lambda: (net(x)[:, 0] - y).square().mean())


def tasks(fast: bool) -> Iterator[Task]:
    """Yield the tasks."""
    squared, entropy = problems.squared, problems.cross_entropy
    if fast:
        yield replace(
            joint_task("diabetes", problems.diabetes(), squared, 10, 1), budget=40, seeds=1
        )
        return
    yield joint_task("diabetes, m = 50", problems.diabetes(), squared, 50, 1)
    yield joint_task("teacher-student, m = 50", problems.teacher_student(), squared, 50, 1)
    yield Task(
        "five-point sine, m = 50", lambda s: cloud_of(problems.signed(*problems.sinus(), 50, s))
    )
    yield equation_task("Poisson")
    yield equation_task("Burgers")
    digits = joint_task("digits, m = 50", problems.digits(300), entropy, 50, 10)
    yield replace(digits, seeds=1)
    yield Task("tanh regression, 2-50-50-1", regression, seeds=1)


class _Spent(Exception):
    """The budget is used up, or the loss low enough, in the middle of a step."""


@dataclass(frozen=True)
class Run:
    """Lowest training loss over the first one after each evaluation; held-out loss; seconds."""

    lowest: list[float]
    held: float
    seconds: float

    def evaluations_to(self, level: float) -> float:
        """Return how many evaluations until the ratio is below ``level``; inf if never."""
        return next((i + 1 for i, v in enumerate(self.lowest) if v <= level), math.inf)


@dataclass(frozen=True)
class Maker:
    """One setting of an optimizer; ``decays``: its lr falls to 0 as a cosine over the budget."""

    make: Callable[[Training], Any]
    decays: bool = False


def train(task: Task, seed: int, maker: Maker) -> Run:
    """Train with one optimizer until the task's budget is used up, or nothing moves any more."""
    training = task.make(seed)
    optimizer = maker.make(training)
    losses: list[float] = []
    best = [p.detach().clone() for p in training.parameters]

    lowest_loss = math.inf

    def closure() -> Tensor:
        nonlocal lowest_loss
        if len(losses) >= task.budget:
            raise _Spent
        optimizer.zero_grad()
        loss = training.loss()
        loss.backward()
        if loss.item() < lowest_loss:
            lowest_loss = loss.item()
            for kept, p in zip(best, training.parameters, strict=True):
                kept.copy_(p.detach())
        losses.append(loss.item())
        if lowest_loss <= task.until * losses[0]:
            raise _Spent
        return loss

    rates = [group.get("lr") for group in optimizer.param_groups]
    began, idle = time.process_time(), 0
    try:
        while True:
            if maker.decays:
                share = 0.5 * (1 + math.cos(math.pi * len(losses) / task.budget))
                for group, rate in zip(optimizer.param_groups, rates, strict=True):
                    group["lr"] = rate * share
            spent, before = len(losses), [p.detach().clone() for p in training.parameters]
            optimizer.step(closure)
            pairs = zip(before, training.parameters, strict=True)
            # SOAP's first step only looks.
            idle = idle + 1 if all(torch.equal(old, new) for old, new in pairs) else 0
            if idle > 1 or len(losses) == spent:
                break
    except _Spent:
        pass
    seconds = time.process_time() - began
    lowest, so_far = [], math.inf
    for loss in losses:
        so_far = min(so_far, loss) if loss == loss else so_far
        lowest.append(so_far / losses[0])
    with torch.no_grad():
        for p, kept in zip(training.parameters, best, strict=True):
            p.copy_(kept)
        held = math.nan if training.held is None else float(training.held())
    return Run(lowest, held, seconds)


def tuned(kind: Any, rates: Sequence[float], **options: Any) -> list[Maker]:
    """Return two makers per step size: constant, and falling to 0."""
    return [
        Maker(lambda t, lr=lr: kind(t.parameters, lr=lr, **options), decays)  # type: ignore[misc]
        for lr in rates
        for decays in (False, True)
    ]


def proximal(gamma: float, **options: Any) -> list[Maker]:
    """Return the maker of a proximal optimizer."""

    def make(training: Training) -> Any:
        if training.is_cloud:
            kind: dict[str, Any] = {"gamma": gamma, "classes": training.classes}
            return WassersteinProx(training.parameters, **kind, **options)
        groups = [{"params": [p], "layout": "plain"} for p in training.parameters]
        return FrobeniusProx(groups, gamma=gamma, **options)

    return [Maker(make)]


def torch_lbfgs() -> list[Maker]:
    """Return torch's L-BFGS with few and with many pairs."""

    def make(training: Training, pairs: int) -> Any:
        return torch.optim.LBFGS(
            training.parameters,
            line_search_fn="strong_wolfe",
            history_size=pairs,
            max_iter=100,
            tolerance_grad=0,
            tolerance_change=0,
        )

    return [Maker(lambda t, k=k: make(t, k)) for k in (20, 100)]  # type: ignore[misc]


def scipy(method: str, *settings: dict[str, Any]) -> list[Maker]:
    """Return one maker per setting of a method of SciPy."""
    return [
        Maker(lambda t, how=how: SciPy(t.parameters, method, **how))  # type: ignore[misc]
        for how in settings
    ]


def rows(full: bool) -> dict[str, list[Maker]]:
    """Return the rows of the main table: name and settings, the best of which counts."""
    long = {"maxiter": 100_000, "maxfun": 100_000, "ftol": 0.0, "gtol": 0.0}
    found = {
        "ours, gamma 1": proximal(1.0),
        "ours, gamma 1000": proximal(1e3),
        "ours, gamma 1e20": proximal(1e20),
        'ours, gamma 1e20, solver="bfgs"': proximal(1e20, solver="bfgs"),
        'ours, gamma 1e20, solver="lbfgs"': proximal(1e20, solver="lbfgs"),
        "ours, gamma 1e20, LBFGS(history=200)": proximal(1e20, solver=solvers.LBFGS(200)),
        "SSBroyden, published form": [Maker(lambda t: SSBroyden(t.parameters))],
        "torch LBFGS, strong Wolfe": torch_lbfgs(),
        "SciPy L-BFGS-B": scipy("L-BFGS-B", {**long, "maxcor": 10}, {**long, "maxcor": 100}),
        "SciPy BFGS": scipy("BFGS", {"gtol": 0.0, "maxiter": 100_000}),
        "Adam": tuned(torch.optim.Adam, (1e-3, 3e-3, 1e-2, 3e-2)),
        "SOAP": [
            maker
            for every in (1, 10)
            for maker in tuned(SOAP, (1e-3, 3e-3, 1e-2, 3e-2), every=every)
        ],
    }
    if not full:
        for name in ("SOAP", "SciPy BFGS", "ours, gamma 1e20, LBFGS(history=200)"):
            del found[name]
    return found


def defaults() -> dict[tuple[str, ...], list[Maker]]:
    """Return the choices of max_eval, gamma and rho."""
    found: dict[tuple[str, ...], list[Maker]] = {}
    for gamma in (1.0, 1e3, 1e10):
        for max_eval in (10, 30, 100, 300):
            for rho in (None, 0.5, 0.9):
                if rho is None or max_eval == 100:
                    labels = (f"{gamma:g}", f"{max_eval}", f"{rho}")
                    found[labels] = proximal(gamma, max_eval=max_eval, inexact=rho)
    return found


def runs_of_best(task: Task, makers: list[Maker]) -> list[Run]:
    """Return a run per seed of the setting that ends lowest, or soonest, on the first seed."""
    first = [train(task, 0, maker) for maker in makers]
    ends = [(max(run.lowest[-1], task.until), len(run.lowest)) for run in first]
    at = min(range(len(makers)), key=lambda i: ends[i])
    return [first[at], *(train(task, seed, makers[at]) for seed in range(1, task.seeds))]


def line(task: Task, name: str, makers: list[Maker]) -> list[str]:
    """Return one row: of the setting that ends lowest on the first seed."""
    middle = statistics.median
    runs = runs_of_best(task, makers)
    cells = []
    for level in LEVELS:
        count = middle(run.evaluations_to(level) for run in runs)
        cells.append(f"{count:g}" if count < math.inf else "never")
    held = middle(run.held for run in runs)
    ms = middle(1e3 * run.seconds / len(run.lowest) for run in runs)
    ends = short(middle(run.lowest[-1] for run in runs))
    return [task.name, name, *cells, ends, short(held) if held == held else "", f"{ms:.2f}"]


def spread(task: Task, name: str, makers: list[Maker]) -> list[str]:
    """Return one row for runs that end at a level: median evaluations, lowest and highest."""
    runs = runs_of_best(task, makers)
    cells = []
    for level in LEVELS:
        counts = [run.evaluations_to(level) for run in runs]
        shown = ["never" if c == math.inf else f"{c:g}" for c in sorted(counts)]
        middle = statistics.median(counts)
        text = "never" if middle == math.inf else f"{middle:g}"
        cells.append(f"{text} ({shown[0]} to {shown[-1]})" if len(runs) > 1 else text)
    ms = statistics.median(1e3 * run.seconds / len(run.lowest) for run in runs)
    seconds = statistics.median(run.seconds for run in runs)
    return [task.name, name, str(len(runs)), *cells, f"{ms:.2f}", f"{seconds:.2f}"]


def is_skipped(name: str, numbers: int) -> bool:
    """Return whether a row is another one under another name, or would take hours."""
    if name == "SciPy BFGS":
        return numbers > SCIPY_UP_TO
    automatic = "bfgs" if numbers <= solvers.Auto().dense_up_to else "lbfgs"
    return name.endswith(f'solver="{automatic}"')


def chosen_tasks(args: argparse.Namespace) -> list[Task]:
    """Return the tasks that were asked for, with their budgets and seeds."""
    found = []
    for task in tasks(args.fast):
        if task.name.startswith(args.only):
            if not (args.full or args.fast):
                task = replace(task, budget=1000, seeds=1)
            seeds, budget = args.seeds or task.seeds, args.budget or task.budget
            task = replace(task, budget=budget, seeds=seeds, until=args.until)
            found.append(task)
    return found


def choices_of_defaults(args: argparse.Namespace) -> None:
    """Print what gamma, max_eval and rho do: evaluations to the first two levels, and the loss."""
    found = chosen_tasks(args)
    names = [task.name.split(",")[0] for task in found]
    table = Table(["gamma", "max_eval", "inexact", *names], args, part="defaults", labels=3)
    for labels, makers in defaults().items():
        cells = []
        for task in found:
            _, _, *levels, loss, _, _ = line(task, "", makers)
            cells.append(f"{levels[0]}, {levels[1]}, {float(loss):.0e}")
        table.add([*labels, *cells])


def main(argv: Sequence[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--defaults", action="store_true", help="the choices of the defaults")
    parser.add_argument("--fast", action="store_true", help="one small problem")
    parser.add_argument("--full", action="store_true", help="4000 evaluations, 3 seeds, all peers")
    parser.add_argument("--seeds", type=int, help="runs of each, with other initialisations")
    parser.add_argument("--budget", type=int, help="evaluations of each run")
    parser.add_argument("--until", type=float, default=0.0, help="end at this fraction of the loss")
    parser.add_argument("--only", default="", help="tasks whose name begins so")
    parser.add_argument("--peers", default="", help="rows whose name matches this pattern")
    add_arguments(parser)
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    print(machine() + "\n")
    if args.defaults:
        choices_of_defaults(args)
        return
    levels = [f"to {level:g}" for level in LEVELS]
    heads = ["task", "optimizer", *levels, "loss at the end", "held-out loss", "ms per evaluation"]
    if args.until:
        heads = ["task", "optimizer", "seeds", *levels, "ms per evaluation", "seconds"]
    make = spread if args.until else line
    table = Table(heads, args, labels=2)
    for task in chosen_tasks(args):
        for name, makers in rows(args.full).items():
            if re.search(args.peers, name) and not is_skipped(name, task.make(0).numbers):
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")  # of SciPy's line searches that end at rounding
                    table.add(make(task, name, makers))


if __name__ == "__main__":
    main()
