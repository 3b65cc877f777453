"""What one evaluation of an inner solver costs beside one plain SGD step on the same closure.

    python -m benchmarks.cost            # some minutes
    python -m benchmarks.cost --full     # every combination, more evaluations

The time of one evaluation inside ``step`` over that of one SGD step with the same closure is
1 + (a) + (b):

    (b) the solver's own vector work, in SGD steps,
    (a) what is left over one SGD step: assignment, distance gradient and bookkeeping, with what
        happens once per step dealt out over its evaluations.
    "report" is what reading the step's report costs on top, which settles its assignment exactly,
        dealt out in the same way.

Times are CPU times, so that other programs on the machine do not count.

Beside it the loop that a user would write: ``ot.emd2`` differentiated by autograd, and a fresh
scipy assignment with the envelope gradient. Steps of SGD and of ours alternate, so that both see
the same machine; the medians of their ratios are printed.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor

from benchmarks.naive import emd2_by_autograd
from benchmarks.table import Table, add_arguments
from torch_wprox import FrobeniusProx, MeanFieldLayer, WassersteinProx
from torch_wprox.closure.ranks import Agree, alone
from torch_wprox.distances import AnchoredDistance, Distance, DistanceValue, mean_squared
from torch_wprox.distances.emd.exact import solve
from torch_wprox.objective import Evaluation, Objective
from torch_wprox.report import Status
from torch_wprox.solvers import Auto
from torch_wprox.solvers.base import Solver
from torch_wprox.solvers.stopping import Stopping

F64 = torch.float64


@dataclass(frozen=True)
class Case:
    """m particles in R^D (inputs and bias), n data points, step size."""

    m: int
    D: int
    n: int
    gamma: float


@dataclass
class Clock:
    """Seconds spent in the parts of ``step``, and how often the closure ran."""

    objective: float = 0.0
    solver: float = 0.0
    evaluations: int = 0

    def clear(self) -> None:
        """Begin anew."""
        self.objective, self.solver, self.evaluations = 0.0, 0.0, 0


@dataclass
class Measured:
    """Ratios to one SGD step (itself in seconds) and evaluations, one entry per repetition."""

    sgd: list[float] = field(default_factory=list)
    but_solver: list[float] = field(default_factory=list)
    solver: list[float] = field(default_factory=list)
    report: list[float] = field(default_factory=list)
    evaluations: list[int] = field(default_factory=list)


# %% The problem
def problem(case: Case, seed: int = 0) -> tuple[MeanFieldLayer, Callable[[], Tensor]]:
    """The network of the five-point sine on smooth random data, and its closure."""
    g = torch.Generator().manual_seed(seed)
    d = case.D - 1
    layer = MeanFieldLayer(
        d,
        case.m,
        parameterization="signed",
        reduction="mean",
        init_scale=1.0,
        generator=g,
        dtype=F64,
    )
    x = torch.rand(case.n, d, generator=g, dtype=F64) - 0.5
    y = torch.sin(10 * x[:, :1] - torch.pi / 2) + 0.2 * x[:, :1] - 0.5

    def closure() -> Tensor:
        layer.zero_grad()
        loss = (layer(x) - y).square().mean()
        loss.backward()
        return loss

    return layer, closure


# %% Our optimizers, taken apart
class TimedObjective:
    """An objective whose evaluations are timed; all else is the objective's own."""

    def __init__(self, objective: Objective, clock: Clock) -> None:
        self._objective, self._clock = objective, clock

    def __getattr__(self, name: str) -> Any:
        return getattr(self._objective, name)

    def evaluate(self, v: Tensor, **how: bool) -> Evaluation:
        """Evaluate P at ``v``."""
        began = time.process_time()
        try:
            return self._objective.evaluate(v, **how)
        finally:
            self._clock.objective += time.process_time() - began


@dataclass(frozen=True)
class Timed:
    """A solver that adds its own time, and that of the evaluations, to a clock."""

    solver: Solver
    clock: Clock
    name = "timed"

    def minimize(
        self, objective: Objective, stopping: Stopping, memory: dict[str, Any] | None = None
    ) -> tuple[Status, dict[str, Any] | None]:
        """Let the solver minimise."""
        seen = cast(Objective, TimedObjective(objective, self.clock))
        began, before = time.process_time(), self.clock.objective
        try:
            return self.solver.minimize(seen, stopping, memory)
        finally:
            evaluated = self.clock.objective - before
            self.clock.solver += time.process_time() - began - evaluated


def ours(case: Case, face: type, evaluations: int, repeats: int) -> Measured:
    """Alternate SGD steps with proximal steps of ``evaluations`` closures."""
    layer, plain = problem(case)
    clock = Clock()

    def closure() -> Tensor:
        clock.evaluations += 1
        return plain()

    opt = face(layer.parameters(), case.gamma, max_eval=evaluations, solver=Timed(Auto(), clock))
    other, other_closure = problem(case)
    sgd = torch.optim.SGD(other.parameters(), lr=1e-12)  # stays where it is: the same work
    measured = Measured()
    for repeat in range(repeats + 1):
        clock.clear()
        began = time.process_time()
        opt.step(closure)
        total = time.process_time() - began
        assert opt.report is not None
        began = time.process_time()
        _ = opt.report.objective
        read = time.process_time() - began
        count = max(20, clock.evaluations // 2)
        began = time.process_time()
        for _ in range(count):
            sgd.step(other_closure)
        plain_step = (time.process_time() - began) / count
        if repeat:  # the first one warms up
            measured.sgd.append(plain_step)
            rest = total - clock.solver
            measured.but_solver.append(rest / clock.evaluations / plain_step)
            measured.solver.append(clock.solver / clock.evaluations / plain_step)
            measured.report.append(read / clock.evaluations / plain_step)
            measured.evaluations.append(clock.evaluations)
    return measured


# %% What a user would write
def written_by_hand(case: Case, *, by_autograd: bool, iterations: int) -> float:
    """Seconds per iteration of Adam on F + W2^2/(2 gamma), the assignment solved afresh."""
    layer, closure = problem(case)
    V = layer.particles
    W = V.detach().clone()
    adam = torch.optim.Adam([V], lr=1e-3)
    rows = [layer.signs > 0, layer.signs < 0]
    began = 0.0
    for iteration in range(iterations + 1):
        if iteration == 1:
            began = time.process_time()
        closure()
        if by_autograd:
            (emd2_by_autograd(V, W, rows) / (2 * case.gamma)).backward()
        else:
            sigma = solve(V, W, layer.signs)
            assert V.grad is not None
            V.grad += (V.detach() - W[sigma]) / (case.m * case.gamma)
        adam.step()
    return (time.process_time() - began) / iterations


# %% Does holding the assignment cost quality?
class Fresh(Distance):
    """W2^2 with an optimal assignment at every evaluation."""

    def anchored(self, W: Tensor, classes: Tensor | None, agree: Agree = alone) -> AnchoredDistance:
        """Return W2^2(., W)."""
        return AnchoredFresh(W, classes)


class AnchoredFresh(AnchoredDistance):
    """W2^2 to one anchor."""

    is_quadratic = True

    def __init__(self, W: Tensor, classes: Tensor | None) -> None:
        self._W, self._classes = W, classes

    def target(self, V: Tensor, *, settled: bool) -> Tensor:
        """Return W_sigma."""
        return self._W[solve(V, self._W, self._classes)]

    def evaluate(self, V: Tensor) -> DistanceValue:
        """Return W2^2 and its gradient."""
        return mean_squared(V, self.target(V, settled=False))


def quality_of_holding(gamma: float, evaluations: int = 1000) -> tuple[float, float]:
    """The objective with the assignment held, and with a fresh one at every evaluation."""
    case = Case(1000, 2, 100, gamma)
    found = []
    for distance in ("emd", Fresh()):
        layer, closure = problem(case)
        opt = WassersteinProx(layer.parameters(), gamma, distance=distance, max_eval=evaluations)
        opt.step(closure)
        assert opt.report is not None
        found.append(opt.report.objective)
    return found[0], found[1]


# %% The tables
def cases(full: bool, fast: bool) -> list[Case]:
    if fast:
        return [Case(50, 2, 5, 1.0)]
    sizes, gammas = (50, 200, 1000, 2000, 5000), (1e-2, 1.0, 100.0)
    if full:
        return [Case(*c) for c in itertools.product(sizes, (2, 10, 100), (5, 100, 1000), gammas)]
    plane = [Case(*c) for c in itertools.product(sizes, (2,), (100,), gammas)]
    other = [(50, 2, 5), (50, 2, 1000), (200, 10, 100), (1000, 2, 5), (1000, 2, 1000)]
    other += [(1000, 10, 100), (1000, 100, 100), (2000, 10, 1000)]
    return plane + [Case(*c, g) for c, g in itertools.product(other, gammas)]


def line(case: Case, repeats: int) -> list[str]:
    evaluations = 100  # the default of the optimizers
    repeats = repeats if case.m <= 2000 else min(repeats, 2)  # each takes seconds
    wasserstein = ours(case, WassersteinProx, evaluations, repeats)
    frobenius = ours(case, FrobeniusProx, evaluations, repeats)
    sgd = statistics.median(wasserstein.sgd + frobenius.sgd)
    hand = ["", ""]
    if case.m <= 2000:
        iterations = max(3, min(50, 20000 // case.m))
        hand = [
            f"{written_by_hand(case, by_autograd=by_autograd, iterations=iterations) / sgd:.1f}"
            for by_autograd in (True, False)
        ]
    middle = statistics.median
    return [
        *(f"{case.m}", f"{case.D}", f"{case.n}", f"{case.gamma:g}", f"{1e3 * sgd:.2f}"),
        f"{middle(wasserstein.evaluations):g}",
        *(f"{middle(wasserstein.but_solver):.2f}", f"{middle(frobenius.but_solver):.2f}"),
        *(f"{middle(wasserstein.solver):.2f}", f"{middle(frobenius.solver):.2f}"),
        f"{middle(wasserstein.report):.2f}",
        *hand,
    ]


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--full", action="store_true", help="every combination")
    parser.add_argument("--fast", action="store_true", help="one small case")
    parser.add_argument("--repeats", type=int, default=5, help="proximal steps per case")
    add_arguments(parser)
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", module="ot")
    columns = ["m", "D", "n", "gamma", "SGD step, ms", "evaluations a step"]
    columns += ["1 + (a) Wasserstein", "1 + (a) Frobenius", "(b) Wasserstein", "(b) Frobenius"]
    columns += ["report", "emd2 + autograd", "fresh scipy"]
    table = Table(columns, args, labels=4)
    for case in cases(args.full, args.fast):
        table.add(line(case, args.repeats))
    if not args.fast:
        print()
        names = ["gamma", "objective, assignment held", "fresh at every evaluation"]
        table = Table(names, args, part="held")
        for gamma in (1.0, 100.0):
            held, fresh = quality_of_holding(gamma)
            table.add([f"{gamma:g}", f"{held:.6g}", f"{fresh:.6g}"])


if __name__ == "__main__":
    main()
