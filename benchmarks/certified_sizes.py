"""The step solved globally as samples, inputs and neurons grow: gap, bound and seconds.

    python -m benchmarks.certified_sizes                    # all sizes: some minutes
    python -m benchmarks.certified_sizes --only line,d2     # rows whose name begins so

Anchors are normal of size 1e-2, half of the neurons have the sign +, the network is their sum, the
loss a mean squared error; for "digits" the cross-entropy of ten outputs. "line" is the sine on n
points, "d2" .. "d10" are normal data and labels with so many inputs. Bounds are proved with at most
three inputs, bias included, else estimates; in rows with "proof" branch and bound proves one, in
``proof_seconds`` at most.
"local" is what BFGS reaches in 2000 evaluations, L-BFGS above 2000 numbers. Seconds are processor
time on one thread.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from sklearn.datasets import load_diabetes
from torch.nn.functional import cross_entropy

from benchmarks.certified import Problem, layer_at
from benchmarks.problems import digits
from benchmarks.table import Table, add_arguments, machine
from torch_wprox.certified.solver import Global

F64 = torch.float64
LOCAL, DENSE_UP_TO = 2000, 2000


@dataclass(frozen=True)
class Size:
    """One row: a name, inputs d (0: the line), samples n, neurons m, gamma, seed, proof_seconds."""

    name: str
    d: int
    n: int
    m: int
    gamma: float
    seed: int = 0
    proof: float = 0.0

    def problem(self) -> Problem:
        """Draw data and anchors."""
        rng = np.random.default_rng(self.seed)
        if self.name.startswith("diabetes"):
            x, y = load_diabetes(return_X_y=True, scaled=False)
            x, y = (x - x.mean(0)) / x.std(0), (y - y.mean()) / y.std()
            X, Y = torch.from_numpy(x), torch.from_numpy(y).unsqueeze(1)
        elif self.name.startswith("line"):
            X = torch.linspace(-0.5, 0.5, self.n, dtype=F64).unsqueeze(1)
            Y = torch.sin(10 * X - torch.pi / 2) + 0.2 * X - 0.5
        else:
            X, Y = (torch.from_numpy(rng.standard_normal((self.n, k))) for k in (self.d, 1))
        if self.name.startswith("digits"):
            (X, Y), _ = digits(self.n)
            X = X[:, :-1]  # the layer has a bias of its own
            anchors = 1e-2 * rng.standard_normal((self.m, X.shape[1] + 1))
            return Problem(layer_at(64, self.m, anchors, 10), X, Y, self.gamma, cross_entropy)
        anchors = 1e-2 * rng.standard_normal((self.m, X.shape[1] + 1))
        return Problem(layer_at(X.shape[1], self.m, anchors), X, Y, self.gamma)


SIZES = (
    *(Size("line, n = 12", 1, 12, 50, 100.0, seed) for seed in range(10)),
    Size("line, n = 200", 1, 200, 50, 1.0),
    Size("line, n = 200", 1, 200, 50, 100.0),
    Size("line, n = 2000", 1, 2000, 200, 1.0),
    Size("d2, n = 150", 2, 150, 50, 1.0),
    Size("d9, n = 30", 9, 30, 20, 1.0),
    Size("d9, n = 30, proof", 9, 30, 20, 1.0, proof=50.0),
    Size("d10, n = 50", 10, 50, 40, 1.0),
    Size("d10, n = 50, proof", 10, 50, 40, 1.0, proof=110.0),
    Size("d10, n = 50", 10, 50, 400, 1.0),
    Size("diabetes, 442 x 10", 10, 442, 100, 1.0),
    Size("diabetes, 442 x 10", 10, 442, 100, 100.0),
    Size("digits, 300 x 64", 64, 300, 200, 1.0),
)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--only", default="", help="beginnings of names, separated by commas")
    parser.add_argument("--fast", action="store_true", help="one small size")
    parser.add_argument("--local", type=int, default=LOCAL, help="evaluations of BFGS; 0: without")
    add_arguments(parser)
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    starts = tuple(s for s in args.only.split(",") if s) or ("",)
    sizes = SIZES[:1] if args.fast else tuple(s for s in SIZES if s.name.startswith(starts))
    local = 20 if args.fast else args.local
    print(machine())
    names = ["problem", "m", "gamma", "seed", "P", "bound", "gap", "seconds"]
    table = Table([*names, "local P", "seconds"] if local else names, args, labels=4)
    for size in sizes:
        ours, seconds = size.problem().step(solver=Global(proof_seconds=size.proof), max_eval=LOCAL)
        bound = ours.lower_bound
        assert bound is not None
        kind = "proved" if ours.certified else "estimated"
        cells: list[object] = [size.name, size.m, f"{size.gamma:g}", size.seed]
        cells += [f"{ours.objective:.5g}", f"{bound:.5g} {kind}"]
        cells += [f"{100 * (ours.objective / bound - 1):.3g} %" if bound > 0 else ""]
        cells += [f"{seconds:.1f}"]
        if local:
            problem = size.problem()
            dense = problem.layer.particles.numel() <= DENSE_UP_TO
            solver = "bfgs" if dense else "lbfgs"
            found, took = problem.step(solver=solver, max_eval=local, tolerance_grad=0.0)
            cells += [f"{found.objective:.5g}", f"{took:.1f}"]
        table.add(cells)


if __name__ == "__main__":
    main()
