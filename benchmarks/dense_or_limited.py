"""Processor time to an objective: a dense inverse Hessian, N/4 and 50 pairs, and the default.

    python -m benchmarks.dense_or_limited            # some minutes

For N between 1000 and 5000, where "auto" changes from BFGS to LBFGS. All solvers take the same step
from the same anchor (``--max-eval`` evaluations), or train by steps of 100 where gamma > 100, in
turn in one process. The target is where the one that ends highest ends; in a step, all but 1e-4 of
its decrease. "Excess" is (P - best)/(P(W) - best) with the best end of all, in training F/F(W), at
the time when the quickest of them has made all its evaluations. Medians over seeds.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor, nn

from benchmarks import cost, problems
from benchmarks.table import Table, add_arguments, machine
from lightning_examples import equations
from torch_wprox import FrobeniusProx, WassersteinProx
from torch_wprox.objective import Evaluation, Objective
from torch_wprox.report import Status
from torch_wprox.solvers import BFGS, LBFGS, Auto
from torch_wprox.solvers.base import Solver
from torch_wprox.solvers.stopping import Stopping

# Above, runs are trainings.
LONGEST_STEP = 100.0
SOLVERS: dict[str, Solver] = {
    "BFGS": BFGS(),
    "N/4 pairs": LBFGS(),
    "50 pairs": LBFGS(history=50),
    "default": Auto(),
}
Problem = tuple[list[nn.Parameter], Callable[[], Tensor]]


@dataclass
class Track:
    """Processor seconds and lowest P after every evaluation."""

    began: float
    seconds: list[float] = field(default_factory=list)
    lowest: list[float] = field(default_factory=list)

    def note(self, value: float) -> None:
        """Note one evaluation."""
        self.seconds.append(time.process_time() - self.began)
        self.lowest.append(min(value, self.lowest[-1]) if self.lowest else value)

    def first(self, target: float) -> int:
        """Return the first evaluation at which P is at most ``target``."""
        return next(i for i, P in enumerate(self.lowest) if target >= P)

    def after(self, seconds: float) -> float:
        """Return the lowest P seen until then."""
        seen = [P for P, t in zip(self.lowest, self.seconds, strict=True) if t <= seconds]
        return seen[-1] if seen else self.lowest[0]


class Watched:
    """An objective whose evaluations are noted; all else is the objective's own."""

    def __init__(self, objective: Objective, track: Track, of_loss: bool) -> None:
        self._objective, self._track, self._of_loss = objective, track, of_loss

    def __getattr__(self, name: str) -> Any:
        return getattr(self._objective, name)

    def evaluate(self, v: Tensor, **how: bool) -> Evaluation:
        """Evaluate P at ``v``."""
        found = self._objective.evaluate(v, **how)
        self._track.note(found.loss if self._of_loss else found.value)
        return found


@dataclass(frozen=True)
class Noted:
    """A solver whose evaluations are noted."""

    solver: Solver
    track: Track
    of_loss: bool
    name = "noted"

    def minimize(
        self, objective: Objective, stopping: Stopping, memory: dict[str, Any] | None = None
    ) -> tuple[Status, dict[str, Any] | None]:
        """Let the solver minimise."""
        seen = cast(Objective, Watched(objective, self.track, self.of_loss))
        return self.solver.minimize(seen, stopping, memory)


# %% The problems
@dataclass(frozen=True)
class Case:
    """A problem for every seed, the optimizer that its parameters take, and the step sizes."""

    name: str
    make: Callable[[int], Problem]
    face: type
    gammas: tuple[float, ...] = (0.01, 1.0, 100.0, 1e4, 1e20)


def relu(m: int, D: int, n: int) -> Case:
    """A ReLU layer on random data: kinks, and a cheap closure for small n."""

    def make(seed: int) -> Problem:
        layer, closure = cost.problem(cost.Case(m, D, n, 1.0), seed)
        return list(layer.parameters()), closure

    return Case(f"ReLU, m = {m}, D = {D}, n = {n}", make, WassersteinProx)


def smooth(name: str, loss_of: Callable[[int], tuple[nn.Module, Callable[[], Tensor]]]) -> Case:
    """A network with tanh."""

    def make(seed: int) -> Problem:
        net, loss = loss_of(seed)

        def closure() -> Tensor:
            net.zero_grad()
            value = loss()
            value.backward()
            return value

        return list(net.parameters()), closure

    return Case(name, make, FrobeniusProx, (1.0, 100.0, 1e4, 1e20))


def _regression(seed: int) -> tuple[nn.Module, Callable[[], Tensor]]:
    x, y = problems.waves()
    net = equations.network(seed, (2, 50, 50, 1))
    return net, lambda: (net(x)[:, 0] - y).square().mean()


def _equation(seed: int) -> tuple[nn.Module, Callable[[], Tensor]]:
    net, equation = equations.network(seed, (2, 34, 34, 34, 1)), equations.EQUATIONS["Burgers"]()
    return net, lambda: equation.loss(net)


def cases(fast: bool) -> Iterator[Case]:
    """Yield the problems."""
    if fast:
        yield Case("ReLU, m = 20", relu(20, 2, 5).make, WassersteinProx, (1.0, 1e20))
        return
    yield relu(500, 2, 100)
    yield relu(500, 3, 100)
    yield relu(1000, 2, 100)
    yield relu(250, 10, 100)
    yield relu(500, 10, 100)
    yield smooth("tanh regression, 2-50-50-1", _regression)
    yield smooth("Burgers, 2-34-34-34-1", _equation)


# %% The runs
def run(case: Case, gamma: float, seed: int, solver: Solver, evaluations: int) -> Track:
    """Take one step, or steps of 100 evaluations at the gamma of training."""
    parameters, closure = case.make(seed)
    most = min(100, evaluations) if gamma > LONGEST_STEP else evaluations
    track = Track(0.0)
    noted = Noted(solver, track, of_loss=gamma > LONGEST_STEP)
    optimizer = case.face(parameters, gamma, max_eval=most, solver=noted)
    track.began = time.process_time()
    while True:
        before = len(track.lowest)
        optimizer.step(closure)
        over = gamma <= LONGEST_STEP or len(track.lowest) >= evaluations
        if over or len(track.lowest) < before + most // 2:  # at a minimum
            return track


def row(case: Case, gamma: float, seeds: int, evaluations: int) -> list[str]:
    """Measure one line of the table."""
    counts, seconds, excess = (defaultdict[str, list[float]](list) for _ in range(3))
    for seed in range(seeds):
        tracks = {
            name: run(case, gamma, seed, solver, evaluations) for name, solver in SOLVERS.items()
        }
        ends = [t.lowest[-1] for t in tracks.values()]
        first, floor = tracks["BFGS"].lowest[0], 0.0 if gamma > LONGEST_STEP else min(ends)
        slack = 0.0 if gamma > LONGEST_STEP else 1e-4 * (first - max(ends))
        for name, track in tracks.items():
            at = track.first(max(ends) + slack)
            counts[name].append(at + 1)
            seconds[name].append(track.seconds[at])
            until = min(t.seconds[-1] for t in tracks.values())
            excess[name].append((track.after(until) - floor) / (first - floor))
    cells = [case.name, f"{sum(p.numel() for p in case.make(0)[0])}"]
    cells.append(f"{gamma:g}")
    for values, digits in ((counts, ".0f"), (seconds, ".2f"), (excess, ".1e")):
        cells += [f"{statistics.median(values[name]):{digits}}" for name in SOLVERS]
    return cells


def main(argv: Sequence[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seeds", type=int, default=3, help="initialisations")
    parser.add_argument("--max-eval", type=int, default=500, help="evaluations of a run")
    parser.add_argument("--only", default="", help="part of the names of the problems")
    parser.add_argument("--fast", action="store_true", help="one small case")
    add_arguments(parser)
    args = parser.parse_args(argv)
    if args.fast:
        args.seeds, args.max_eval = 1, 40
    torch.set_num_threads(1)
    print(machine() + "\n")
    parts = ["evaluations to the target", "seconds to the target", "excess"]
    columns = ["problem", "N", "gamma", *(f"{part}, {s}" for part in parts for s in SOLVERS)]
    table = Table(columns, args, labels=3)
    for case in cases(args.fast):
        if args.only not in case.name:
            continue
        for gamma in case.gammas:
            table.add(row(case, gamma, args.seeds, args.max_eval))


if __name__ == "__main__":
    main()
