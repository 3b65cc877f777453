"""What ``torch.compile`` of the model in the closure saves per evaluation of a step.

    python -m benchmarks.compiled          # a minute; needs a C++ compiler

The proximal step runs its closure unchanged, so a compiled model is used as it is: one graph for
all evaluations of all steps. Steps of the two alternate; the median time of an evaluation counts.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from benchmarks.table import Table, add_arguments, machine
from torch_wprox import FrobeniusProx, MeanFieldLayer, WassersteinProx
from torch_wprox.optim.proximal_point import ProximalPoint


@dataclass(frozen=True)
class Case:
    """A model on n points in R^d."""

    name: str
    make: Callable[[], nn.Module]
    d: int
    n: int


def two_layers(d: int, m: int) -> nn.Module:
    return MeanFieldLayer(d, m, generator=torch.Generator().manual_seed(0))


def perceptron(d: int, width: int) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(d, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 1)
    )


CASES = [
    Case("MeanFieldLayer, m = 50", lambda: two_layers(1, 50), 1, 100),
    Case("MeanFieldLayer, m = 1000", lambda: two_layers(9, 1000), 9, 1000),
    Case("MeanFieldLayer, m = 2000", lambda: two_layers(99, 2000), 99, 1000),
    Case("three layers of 256", lambda: perceptron(9, 256), 9, 1000),
]


class Run:
    """A model, its closure and its optimizer."""

    def __init__(self, case: Case, *, compiled: bool) -> None:
        net = case.make()
        call = torch.compile(net) if compiled else net
        generator = torch.Generator().manual_seed(1)
        x = torch.rand(case.n, case.d, generator=generator) - 0.5
        y = torch.sin(10 * x[:, :1])
        face = WassersteinProx if isinstance(net, MeanFieldLayer) else FrobeniusProx
        self.optimizer: ProximalPoint = face(net.parameters(), 1.0)

        def closure() -> Tensor:
            self.optimizer.zero_grad()
            loss = (call(x) - y).square().mean()
            loss.backward()
            return loss

        self._closure = closure

    def step(self) -> float:
        """Take a step; return its seconds per evaluation."""
        began = time.perf_counter()
        self.optimizer.step(self._closure)
        report = self.optimizer.report
        assert report is not None
        return (time.perf_counter() - began) / report.evaluations


def line(case: Case, steps: int) -> list[str]:
    """Measure one case."""
    eager, compiled = Run(case, compiled=False), Run(case, compiled=True)
    eager.step()
    began = time.perf_counter()
    compiled.step()
    first = time.perf_counter() - began
    times = [(eager.step(), compiled.step()) for _ in range(steps)]
    plain, fast = (1e3 * statistics.median(t) for t in zip(*times, strict=True))
    cells = [case.name, f"{case.n}", f"{plain:.2f}", f"{fast:.2f}", f"{plain / fast:.2f}"]
    return [*cells, f"{first:.1f}"]


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--fast", action="store_true", help="one small case")
    parser.add_argument("--steps", type=int, default=5, help="timed steps of each")
    add_arguments(parser)
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    print(machine("float32") + "\n")
    columns = ["model", "n", "eager, ms", "compiled, ms", "times faster", "first step, s"]
    table = Table(columns, args, labels=2)
    if not any(map(shutil.which, ("g++", "clang++"))):
        table.add(["no C++ compiler here", *[""] * (len(columns) - 1)])
        return
    for case in CASES[:1] if args.fast else CASES:
        table.add(line(case, 1 if args.fast else args.steps))


if __name__ == "__main__":
    main()
