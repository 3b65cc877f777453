"""The package with every tensor on a GPU: its contract, the certified step, the grid, step times.

    python -m benchmarks.gpu          # or make gpu; needs a CUDA device, else says so and ends

Runs the contract tests with ``--device cuda``; takes steps on the CPU and on the device from one
start and compares what they reached; and prints a table of step times with the number of times
that an evaluation waits for the device (``torch.cuda.set_sync_debug_mode``).
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks import grid_jko
from benchmarks.table import Table, add_arguments, short
from torch_wprox import EntropicJKO, MeanFieldLayer, WassersteinProx

F64 = torch.float64
AGREEMENT = 1e-6  # of objectives on two devices, relative: sums run in another order


@dataclass(frozen=True)
class Step:
    """One step on one device.

    Attributes:
        seconds: Time of the step, the last of some.
        evaluations: Evaluations of the closure.
        objective: What the first step reached.
        waits: Times that the last step waited for the device, None on the CPU.
    """

    seconds: float
    evaluations: int
    objective: float
    waits: int | None


@dataclass(frozen=True)
class Case:
    """A kind of step: its name, and how to take one on a device."""

    name: str
    on: Callable[[torch.device], Step]
    agrees: bool
    """Whether both devices must reach one objective: not where rounding chooses among minima."""


# %% Steps
def descent(width: int, samples: int, distance: str) -> Callable[[torch.device], Step]:
    """A local step of a network of ``width`` neurons in the plane."""

    def on(device: torch.device) -> Step:
        layer, x, y = network(width, samples, device)
        opt = WassersteinProx(layer.parameters(), 1.0, distance=distance, max_eval=50)
        return taken(opt, lambda: (layer(x) - y).square().mean(), device, steps=3)

    return on


def certified(device: torch.device) -> Step:
    """A certified step of 50 neurons on 5 points."""
    layer, x, y = network(50, 5, device)
    opt = WassersteinProx(layer.parameters(), 1.0, solver="global", max_eval=400)
    return taken(opt, lambda: (layer(x) - y).square().mean(), device, steps=1)


def grid(device: torch.device) -> Step:
    """A step of a density on 64 x 64 cells, by Newton's method."""
    layer, x, y, gamma = grid_jko.problem(grid_jko.Case((64, 64), 5, "newton"))
    layer, x, y = layer.to(device), x.to(device), y.to(device)
    opt = EntropicJKO(layer, gamma)
    return taken(opt, lambda: (layer(x) - y).square().mean(), device, steps=2)


def network(
    width: int, samples: int, device: torch.device
) -> tuple[MeanFieldLayer, Tensor, Tensor]:
    g = torch.Generator().manual_seed(0)
    layer = MeanFieldLayer(1, width, parameterization="signed", generator=g, dtype=F64)
    x = torch.rand(samples, 1, generator=g, dtype=F64) - 0.5
    y = torch.sin(10 * x - torch.pi / 2) + 0.2 * x - 0.5
    return layer.to(device), x.to(device), y.to(device)


CASES = (
    Case("certified step, m = 50, n = 5", certified, agrees=True),
    Case("grid step, 64 x 64 cells", grid, agrees=True),
    *(
        Case(f"{distance}, m = {m}, n = {n}", descent(m, n, distance), agrees=False)
        for distance, m, n in (
            *(("emd", m, 1000) for m in (200, 1000, 5000)),
            ("emd", 1000, 100_000),
            *((d, 1000, 1000) for d in ("sliced", "sinkhorn")),
        )
    ),
)


# %% Measuring
def taken(
    opt: WassersteinProx | EntropicJKO,
    loss_of: Callable[[], Tensor],
    device: torch.device,
    steps: int,
) -> Step:
    """Take ``steps`` steps; time the last one, and count its waits for the device."""

    def closure() -> Tensor:
        opt.zero_grad()
        loss = loss_of()
        loss.backward()
        return loss

    objective, seconds, counted = float("nan"), 0.0, 0
    for k in range(steps):
        settle(device)
        began = time.perf_counter()
        with waits_of(device) as waits:
            opt.step(closure)
            counted = len(waits)
        settle(device)
        seconds = time.perf_counter() - began
        assert opt.report is not None
        if k == 0:
            objective = opt.report.objective
    assert opt.report is not None
    is_cpu = device.type == "cpu"
    return Step(seconds, opt.report.evaluations, objective, None if is_cpu else counted)


def settle(device: torch.device) -> None:
    """Wait until the device has done all its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@contextmanager
def waits_of(device: torch.device) -> Iterator[list[warnings.WarningMessage]]:
    """Collect one warning for every time that the program waits for the device."""
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("ignore")
        warnings.filterwarnings("always", message="called a synchronizing")
        if device.type != "cuda":
            yield found
            return
        torch.cuda.set_sync_debug_mode("warn")
        try:
            yield found
        finally:
            torch.cuda.set_sync_debug_mode("default")


def contract(device: torch.device) -> int:
    """Run the contract tests on the device; return pytest's exit code."""
    command = [sys.executable, "-m", "pytest", "-q", "tests/optim/test_contract.py"]
    return subprocess.run([*command, "--device", str(device)], check=False).returncode


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--device", default="cuda", help="the device to compare with the CPU")
    parser.add_argument("--fast", action="store_true", help="no tests; a smoke test on the CPU")
    add_arguments(parser)
    args = parser.parse_args(argv)
    device = torch.device("cpu" if args.fast else args.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        print("No CUDA device is available here: nothing was run. Everything else works without.")
        return 0
    failed = 0 if args.fast else contract(device)
    names = ["step", "CPU, ms", f"{device}, ms", "evaluations", "waits per evaluation"]
    table = Table(names, args)
    for case in CASES[1:3] if args.fast else CASES:
        cpu, other = case.on(torch.device("cpu")), case.on(device)
        off = abs(cpu.objective - other.objective) > AGREEMENT * abs(cpu.objective)
        failed += case.agrees and off
        waits = "" if other.waits is None else short(other.waits / other.evaluations)
        said = " (objectives differ)" if case.agrees and off else ""
        times = [f"{1e3 * step.seconds:.1f}" for step in (cpu, other)]
        table.add([case.name + said, *times, other.evaluations, waits])
    return failed


if __name__ == "__main__":
    sys.exit(main())
