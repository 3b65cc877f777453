"""When to take solver="global": gap and time of one step, against a local solver at equal time.

    python -m benchmarks.when_global                      # a choice of sizes: some minutes
    python -m benchmarks.when_global --all --seconds 60   # every n, D, m and gamma: hours

n samples, D inputs (a bias counts as one; D = 2 is a sine on n points, else data and labels are
normal), m neurons, half of them with the sign +, their sum, anchors normal of size 1e-2, mean
squared error. The global step has `--seconds` by the clock for its rounds and its search, and
whatever it needs beyond to confirm its bound. "local" is L-BFGS with as many evaluations as fit
into the processor time that the global step took. Seconds are processor time on one thread.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Sequence

import torch

from benchmarks.certified_sizes import Size
from benchmarks.table import Table, add_arguments, machine

N, D, M, GAMMAS = (20, 100, 500), (2, 3, 6, 11), (20, 100, 400), (1.0, 100.0)
# (n, m, gamma) of the short table, for every D.
CHOICE = ((20, 20, 1.0), (100, 100, 1.0), (100, 100, 100.0), (500, 100, 1.0))


def sizes(everything: bool) -> list[Size]:
    """Return the rows."""
    chosen = itertools.product(N, M, GAMMAS) if everything else CHOICE
    pairs = itertools.product(D, chosen)
    return [
        Size("line" if d == 2 else f"d{d - 1}", d - 1, n, m, gamma) for d, (n, m, gamma) in pairs
    ]


def measured(size: Size, seconds: float) -> list[object]:
    """Return the cells of one row."""
    ours, took = size.problem().step(solver="global", max_eval=2000, seconds=seconds)
    bound = ours.lower_bound
    lowest, spent, budget = float("inf"), 0.0, 100
    while True:
        found, once = size.problem().step(solver="lbfgs", max_eval=budget, tolerance_grad=0.0)
        lowest, spent = min(lowest, found.objective), once
        if spent >= 0.7 * took or budget >= 100_000 or found.evaluations < budget:
            break
        budget = max(2 * budget, min(100_000, int(budget * 0.9 * took / max(spent, 1e-3))))
    cells: list[object] = [size.n, size.d + 1, size.m, f"{size.gamma:g}", f"{took:.1f}"]
    cells += [f"{ours.objective:.4g}"]
    if bound is None or bound <= 0:
        cells += ["no bound above 0", ""]
    else:
        kind = "proved" if ours.certified else "estimated"
        cells += [f"{100 * (ours.objective / bound - 1):.2g} %", kind]
    return [*cells, f"{lowest:.4g}", f"{spent:.1f}"]


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seconds", type=float, default=20.0, help="of a global step (wall clock)")
    parser.add_argument("--all", action="store_true", help="the whole grid of sizes")
    parser.add_argument("--fast", action="store_true", help="one small size")
    add_arguments(parser)
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    print(machine())
    names = ["n", "D", "m", "gamma", "seconds", "P", "gap", "bound", "P of L-BFGS", "its seconds"]
    table = Table(names, args, labels=4)
    chosen = [Size("line", 1, 12, 10, 1.0)] if args.fast else sizes(args.all)
    for size in chosen:
        table.add(measured(size, args.seconds))


if __name__ == "__main__":
    main()
