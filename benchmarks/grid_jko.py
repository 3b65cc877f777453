"""One JKO step of two blocks: time and memory of every method, by grid and number of outputs.

    python -m benchmarks.grid_jko            # minutes
    python -m benchmarks.grid_jko --full     # every method on every grid

The step moves mass by up to four cells, epsilon = 2 dx^2. Every case runs in a process of its own,
on one thread, so that its peak memory can be told. "literal" is Algorithm 1 of the note as printed,
with a dense kernel (and f put in where the print forgets it).
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from benchmarks.memory import in_a_child, peak_kib
from benchmarks.table import Table, add_arguments
from torch_wprox import EntropicJKO, GridLayer

F64 = torch.float64
CELLS = 4.0  # the longest way in a step
TARGET_RATIO, TARGET_SECONDS, TARGET_GIB = 30.0, 5.0, 2.0


@dataclass(frozen=True)
class Case:
    """A grid of two blocks, the number of data points, and a method."""

    shape: tuple[int, ...]
    samples: int
    method: str


METHODS = {
    "newton": "Newton",
    "lbfgs": "L-BFGS",
    "krylov": "Krylov",
    "dykstra": "Dykstra",
}


def cases(full: bool) -> list[Case]:
    grids = [(64, 64), (200, 200), (400, 400), (64, 64, 64)]
    chosen = [Case((64, 64), 5, m) for m in ("newton", "lbfgs", "krylov", "dykstra", "literal")]
    for shape in grids:
        for n in (5, 50, 200):
            for method in ("newton", "lbfgs", "krylov"):
                dear = method == "newton" and n > 5 and len(shape) + shape[0] > 66
                if full or not (dear or (method == "krylov" and n > 5)):
                    chosen.append(Case(shape, n, method))
    if full:
        chosen.append(Case((64, 64), 50, "dykstra"))
    return list(dict.fromkeys(chosen))


def problem(case: Case) -> tuple[GridLayer, Tensor, Tensor, float]:
    """A Gaussian on [-4, 4]^D in both blocks, data of a smooth function, and gamma."""
    axes = [torch.linspace(-4, 4, n, dtype=F64) for n in case.shape]
    layer = GridLayer(axes, mass=20.0, dtype=F64)
    bump = torch.exp(-layer.cells.square().sum(1) / 2).repeat(2)
    layer.set_weight(bump / bump.sum())
    d = layer.in_features
    if d == 1:
        x = torch.linspace(-0.5, 0.5, case.samples, dtype=F64).unsqueeze(1)
    else:
        x = torch.rand(case.samples, d, generator=torch.Generator().manual_seed(0), dtype=F64) - 0.5
    y = torch.sin(10 * x[:, :1] - torch.pi / 2) + 0.2 * x[:, :1] - 0.5
    # The potential f'(p) moves mass by gamma |grad f'(p)|.
    (layer(x) - y).square().mean().backward()
    assert layer.weight.grad is not None
    field = layer.weight.grad.view(2, *case.shape)
    steepest = max(
        float(field.diff(dim=1 + k).abs().max()) / dx for k, dx in enumerate(layer.spacing)
    )
    layer.weight.grad = None
    return layer, x, y, CELLS * layer.spacing[0] / steepest


def run(case: Case) -> dict[str, Any]:
    """Time two steps (the second one is reported: the first builds windows and warms caches)."""
    torch.set_num_threads(1)
    layer, x, y, gamma = problem(case)
    if case.method == "literal":
        return literal(layer, x, y, 2 * gamma)
    opt = EntropicJKO(layer, gamma, method=case.method)  # type: ignore[arg-type]

    def closure() -> Tensor:
        loss = (layer(x) - y).square().mean()
        loss.backward()
        return loss

    q = layer.weight.detach().clone()
    repeats = 1 if case.method == "dykstra" else 2
    for _ in range(repeats):
        layer.set_weight(q)
        began = time.perf_counter()
        opt.step(closure)
        seconds = time.perf_counter() - began
    report = opt.report
    assert report is not None
    return {
        "seconds": seconds,
        "iterations": report.iterations,
        "kernels": report.kernel_applications,
        "evaluations": report.evaluations,
        "objective": report.objective,
        "status": str(report.status),
    }


def literal(
    layer: GridLayer, x: Tensor, y: Tensor, tau: float, limit: float = 60.0
) -> dict[str, Any]:
    """Algorithm 1 with a dense kernel per block, until ConstrOdd and ConstrEven are below 1e-9."""
    epsilon = 2 * layer.spacing[0] ** 2
    with torch.no_grad():
        began = time.perf_counter()
        xi = torch.exp(-torch.cdist(layer.cells, layer.cells).square() / epsilon)
        phi = layer.features(x)
        q = layer.density().flatten(1)
        b, lam, sigma, n = torch.ones_like(q), x.new_zeros(len(x)), tau / epsilon, len(x)
        signs = x.new_tensor(layer.block_signs).unsqueeze(1)
        iterations, status = 0, "limit"
        while time.perf_counter() - began < limit:
            z = b @ xi
            for _ in range(50):  # KL prox of sigma h(Phi .), h = mean squared error
                p = z * torch.exp(-signs * (lam @ phi))
                signed = (signs * p).sum(0)
                residual = lam - sigma * 2 / n * (phi @ signed - y.flatten())
                if float(residual.norm()) <= 1e-11 * float(lam.norm() + 1):
                    break
                gram = sigma * 2 / n * ((phi * p.sum(0)) @ phi.t())
                lam = lam - torch.linalg.solve(torch.eye(n, dtype=F64) + gram, residual)
            a = p / z
            xia = a @ xi
            even = float((b * xia - q).norm() / q.norm())
            b = q / xia
            odd = float((a * (b @ xi) - p).norm() / q.norm())
            iterations += 1
            if even < 1e-9 and odd < 1e-9:
                status = "converged"
                break
        seconds = time.perf_counter() - began
    return {
        "seconds": seconds,
        "iterations": iterations,
        "kernels": 3 * iterations,
        "evaluations": 0,
        "objective": float("nan"),
        "status": status,
    }


def with_memory(case: Case) -> dict[str, Any]:
    base = peak_kib()
    found = run(case)
    peak = peak_kib()
    return {**found, "gib": peak / 2**20, "added_gib": (peak - base) / 2**20}


def main(argv: Sequence[str] | None = None) -> list[dict[str, Any]]:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--full", action="store_true", help="every method on every grid")
    parser.add_argument("--fast", action="store_true", help="the smallest grid only")
    add_arguments(parser)
    args = parser.parse_args(argv)
    rows = []
    print(
        "grid         n    method     seconds  peak GiB  iterations  kernels  evaluations  status"
    )
    for case in cases(args.full):
        if args.fast and (case.shape != (64, 64) or case.method in ("dykstra", "literal")):
            continue
        row = {
            "shape": case.shape,
            "samples": case.samples,
            "method": case.method,
            **(in_a_child(with_memory, case) or {"status": "killed"}),
        }
        rows.append(row)
        name = "x".join(map(str, case.shape))
        if "seconds" in row:
            print(
                f"{name:12} {case.samples:<4} {case.method:8} {row['seconds']:9.3f} "
                f"{row['gib']:9.2f} {row['iterations']:11} {row['kernels']:8} "
                f"{row['evaluations']:12}  {row['status']}",
                flush=True,
            )
        else:
            print(f"{name:12} {case.samples:<4} {case.method:8} {row['status']}", flush=True)
    print()
    printed = Table(["grid (two blocks)", "n", *METHODS.values()], args, labels=2)
    for cells in lines(rows):
        printed.add(cells)
    targets(rows)
    return rows


def lines(rows: list[dict[str, Any]]) -> Iterator[list[str]]:
    """Yield a row per grid and number of samples: seconds and peak memory of every method."""
    by = {(r["shape"], r["samples"], r["method"]): r for r in rows}
    for shape, samples in dict.fromkeys((r["shape"], r["samples"]) for r in rows):
        cells = []
        for method in METHODS:
            found = by.get((shape, samples, method))
            if found is None:
                cells.append("")
            elif "seconds" in found:
                cells.append(f"{found['seconds']:.2f} s, {found['gib']:.2f} GiB")
            else:
                cells.append(found["status"])
        yield [" × ".join(map(str, shape)), str(samples), *cells]


def targets(rows: list[dict[str, Any]]) -> None:
    """Say whether the targets hold."""
    by = {(r["shape"], r["samples"], r["method"]): r for r in rows if "seconds" in r}
    newton, dykstra = by.get(((64, 64), 5, "newton")), by.get(((64, 64), 5, "dykstra"))
    if newton and dykstra:
        ratio = dykstra["seconds"] / newton["seconds"]
        print(f"64x64: newton is {ratio:.0f} times faster than dykstra (target {TARGET_RATIO:.0f})")
    large = by.get(((400, 400), 5, "newton"))
    if large:
        print(
            f"400x400: {large['seconds']:.1f} s and {large['gib']:.2f} GiB a step (targets "
            f"{TARGET_SECONDS:.0f} s, {TARGET_GIB:.0f} GiB)"
        )


if __name__ == "__main__":
    main()
