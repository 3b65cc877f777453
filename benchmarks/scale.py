"""Clouds of 1e5 and 1e6 particles: seconds and peak memory of every distance.

    python -m benchmarks.scale            # minutes
    python -m benchmarks.scale --fast     # seconds
    python -m benchmarks.scale --keops    # Sinkhorn with dense costs and through pykeops

Timed are the anchor (once per step) and then one evaluation, value and gradient, at a point to
which particles were turned, stretched and scattered, so that they change their anchors; float32,
D = 10, no classes. Every case runs in a process of its own, on one thread. Memory is the peak of
resident pages less what the process had before, beside the size of one cloud (m D numbers): were
it not O(m D), the ratio would grow with m. "emd" gives an upper bound above 20 000 particles
(BSP-OT). "sinkhorn" needs pykeops above 5000.
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
from torch_wprox.distances import Sinkhorn
from torch_wprox.optim.catalog import distance_named

D = 10


@dataclass(frozen=True)
class Case:
    """Particles, the distance's name, and whether "sinkhorn" computes through KeOps."""

    m: int
    distance: str
    keops: bool = False


def cases(fast: bool, keops: bool) -> list[Case]:
    if keops:
        dense = [Case(m, "sinkhorn") for m in (1_000, 2_000, 5_000)]
        return dense + [Case(m, "sinkhorn", keops=True) for m in (1_000, 2_000, 5_000, 10_000)]
    sizes = (1_000, 4_000) if fast else (10_000, 100_000, 1_000_000)
    chosen = [Case(m, name) for name in ("frobenius", "sliced", "emd") for m in sizes]
    if fast:
        chosen.append(Case(1_000, "sinkhorn"))
    return chosen


def problem(m: int) -> tuple[Tensor, Tensor]:
    """A Gaussian cloud, and the same one turned, stretched and scattered."""
    random = torch.Generator().manual_seed(0)
    W = torch.randn(m, D, generator=random)
    turn = torch.linalg.qr(torch.randn(D, D, generator=random)).Q
    return W, 1.5 * W @ turn + 0.3 * torch.randn(m, D, generator=random)


def run(case: Case) -> dict[str, Any]:
    """Time one evaluation; a small one before it loads the libraries."""
    torch.set_num_threads(1)
    options = Sinkhorn(dense_up_to=0) if case.keops else distance_named(case.distance)
    for m in (200, case.m):
        W, V = problem(m)
        base = peak_kib()
        began = time.process_time()  # not the wall's: other processes do not count
        distance = options.anchored(W, None)
        middle = time.process_time()
        found = distance.settle(V)  # no assignment is held
        ended = time.process_time()
    peak = peak_kib()
    return {
        "anchor": middle - began,
        "evaluation": ended - middle,
        "gib": (peak - base) / 2**20,
        "clouds": (peak - base) * 1024 / (4 * case.m * D),
        "value": found.value.item(),
        "identity": (V - W).square().sum(1).mean().item(),
        "finite": bool(found.gradient.isfinite().all()),
    }


def main(argv: Sequence[str] | None = None) -> list[dict[str, Any]]:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--fast", action="store_true", help="small clouds only")
    parser.add_argument("--keops", action="store_true", help="Sinkhorn, dense and through KeOps")
    add_arguments(parser)
    args = parser.parse_args(argv)
    rows = []
    names = ["distance", "m", "anchor, s", "evaluation, s", "GiB added", "in clouds", "d"]
    names.append("identity's d")
    # With --keops the lines tell how far it is; the table for the docs comes at the end.
    table = Table(names, None if args.keops else args, labels=2)
    for case in cases(args.fast, args.keops):
        found = in_a_child(run, case) or {}
        row = {"m": case.m, "distance": case.distance, "keops": case.keops, **found}
        rows.append(row)
        name = f"{case.distance}, KeOps" if case.keops else case.distance
        if "value" not in row:
            table.add([name, case.m, "killed", *[""] * 5])
            continue
        cells = [f"{row['anchor']:.2f}", f"{row['evaluation']:.2f}", f"{row['gib']:.3f}"]
        cells += [f"{row['clouds']:.0f}", f"{row['value']:.10g}", f"{row['identity']:.4f}"]
        table.add([name, case.m, *cells])
    if args.keops:
        print()
        columns = ["m", "dense, s", "GiB added", "KeOps, s", "GiB added", "d, dense", "d, KeOps"]
        table = Table(columns, args, part="keops")
        for cells in side_by_side(rows):
            table.add(cells)
    return rows


def side_by_side(rows: Sequence[dict[str, Any]]) -> Iterator[list[str]]:
    """Yield one row per size with the dense costs and KeOps."""
    for m in dict.fromkeys(row["m"] for row in rows):
        cells, values = [str(m)], []
        for keops in (False, True):
            at = [r for r in rows if (r["m"], r["keops"]) == (m, keops) and "value" in r]
            cells += [f"{at[0]['evaluation']:.3g}", f"{at[0]['gib']:.3f}"] if at else ["", ""]
            values.append(f"{at[0]['value']:.10g}" if at else "")
        yield [*cells, *values]


if __name__ == "__main__":
    main()
