"""Convex maps: flows of Gaussians beside closed forms, and steps of networks beside other solvers.

    python -m benchmarks.maps                 # all three tables, about seven minutes
    python -m benchmarks.maps --full          # every D, and a million particles: about 20 minutes
    python -m benchmarks.maps --fast          # seconds
    python -m benchmarks.maps --only large    # one of gaussian, small, large

"gaussian": the Ornstein-Uhlenbeck process of Mokrov et al. 2021 (gamma 0.05; a random Gaussian
target of scikit-learn's make_spd_matrix), symmetric KL divergence to the exact law. "small" and
"large": one step (gamma 1) of the two-layer network on the five-point sine, output 50 times the
mean over the neurons, which start at 1e-2 times normal numbers: one problem whatever m is. P is F
plus d/(2 gamma) with d = W2^2 for "small", and BSP-OT's upper bound (or the identity's, if lower)
for "large", where every case runs in a process of its own. Times are CPU seconds of one thread.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
from torch import Tensor

from benchmarks.memory import in_a_child, peak_kib
from benchmarks.table import Table, add_arguments, machine, quartiles, short
from torch_wprox import EMD, ConvexMap, MapFlow, Sliced, prox
from torch_wprox.maps import Entropy, Potential
from torch_wprox.solvers import Solver

# Mean symmetric KL divergence at t = .5 and .9 of 15 runs, from the result files that the paper's
# authors published (github.com/PetrMokrov/Large-Scale-Wasserstein-Gradient-Flows).
PAPER = {
    2: (0.00346, 0.00384, 0.00696, 0.00658),
    4: (0.00855, 0.00752, 0.105, 0.105),
    6: (0.0185, 0.0133, 0.498, 0.504),
    8: (0.0189, 0.0136, 1.32, 1.32),
    10: (0.0180, 0.0144, 2.48, 2.48),
    12: (0.0265, 0.0182, 3.83, 3.83),
}
GAMMA = 0.05


# -- the Ornstein-Uhlenbeck process ----------------------------------------------------------------


@dataclass(frozen=True)
class Process:
    """dX = -A (X - b) dt + sqrt(2) dB from N(start, I)."""

    A: Tensor
    b: Tensor
    start: Tensor

    @staticmethod
    def random(D: int, seed: int) -> Process:
        """A target as in the paper."""
        from sklearn.datasets import make_spd_matrix

        random = torch.Generator().manual_seed(seed)
        b, start = torch.randn(2, D, generator=random, dtype=torch.float64)
        return Process(
            torch.linalg.inv(torch.tensor(make_spd_matrix(D, random_state=seed))), b, start
        )

    def law(self, t: float) -> tuple[Tensor, Tensor]:
        """Return mean and covariance at time t."""
        a, U = torch.linalg.eigh(self.A)
        decay = torch.exp(-a * t)
        mean = self.b + U @ (decay * (U.t() @ (self.start - self.b)))
        return mean, U @ torch.diag(decay.square() + (1 - decay.square()) / a) @ U.t()

    def jko_law(self, steps: int) -> tuple[Tensor, Tensor]:
        """Return mean and covariance after exact JKO steps."""
        a, U = torch.linalg.eigh(self.A)
        variance, mean = torch.ones_like(a), self.start
        for _ in range(steps):
            grown = variance.sqrt() + (variance + 4 * GAMMA * (1 + GAMMA * a)).sqrt()
            variance = (grown / (2 * (1 + GAMMA * a))).square()
            eye = torch.eye(len(a), dtype=a.dtype)
            mean = torch.linalg.solve(eye + GAMMA * self.A, mean + GAMMA * self.A @ self.b)
        return mean, U @ torch.diag(variance) @ U.t()


def sobol_normal(m: int, D: int, seed: int) -> Tensor:
    """Normal points of low discrepancy, (m, D)."""
    engine = torch.quasirandom.SobolEngine(D, scramble=True, seed=seed)
    u = engine.draw(m, dtype=torch.float64).clamp(1e-9, 1 - 1e-9)
    return math.sqrt(2) * torch.erfinv(2 * u - 1)


def gaussian_kl(mean: Tensor, covariance: Tensor, mean2: Tensor, covariance2: Tensor) -> float:
    """Return the symmetric KL divergence of two Gaussians."""
    P, Q = torch.linalg.inv(covariance), torch.linalg.inv(covariance2)
    off = mean - mean2
    traces = torch.trace(Q @ covariance) + torch.trace(P @ covariance2) - 2 * len(mean)
    return float(0.5 * (traces + off @ (P + Q) @ off))


def flow_kl(process: Process, t: float, flow: MapFlow, steps: int, fresh: Tensor) -> float:
    """Return the symmetric KL divergence to the exact law, from ``fresh`` samples each way."""
    mean, covariance = process.law(t)
    exact = torch.distributions.MultivariateNormal(mean, covariance)
    y = flow.transport(process.start + fresh, steps)
    z = mean + fresh @ torch.linalg.cholesky(covariance).t()
    to_exact = (flow.log_density(y, steps) - exact.log_prob(y)).mean()
    return float(to_exact + (exact.log_prob(z) - flow.log_density(z, steps)).mean())


def euler_kl(process: Process, times: Sequence[float], m: int, seed: int) -> list[float]:
    """Euler-Maruyama (dt 1e-3) with a Gaussian kernel estimate, as in the paper."""
    from scipy.stats import gaussian_kde

    random = torch.Generator().manual_seed(seed)
    D = len(process.b)
    x = process.start + torch.randn(m, D, generator=random, dtype=torch.float64)
    found = []
    for step in range(1, round(max(times) * 1000) + 1):
        noise = torch.randn(m, D, generator=random, dtype=torch.float64)
        x = x - 1e-3 * (x - process.b) @ process.A + math.sqrt(2e-3) * noise
        if any(step == round(1000 * t) for t in times):
            exact = torch.distributions.MultivariateNormal(*process.law(step / 1000))
            kernel = gaussian_kde(x.t().numpy())
            y = torch.from_numpy(kernel.resample(2000, seed=seed).T)
            z = exact.mean + torch.randn(2000, D, generator=random, dtype=torch.float64) @ (
                torch.linalg.cholesky(exact.covariance_matrix).t()
            )
            logs = [torch.from_numpy(kernel.logpdf(points.t().numpy())) for points in (y, z)]
            there = (logs[0] - exact.log_prob(y)).mean()
            found.append(float(there + (exact.log_prob(z) - logs[1]).mean()))
    return found


def gaussian(fast: bool, args: argparse.Namespace) -> list[dict[str, Any]]:
    """Print the table of the Ornstein-Uhlenbeck process."""
    times, m = (0.5, 0.9), 1024 if fast else 8192
    print("Symmetric KL at t = 0.5 / 0.9\n")
    names = ["D", "exact JKO", "affine maps", "CPU s", "networks", "CPU s", "Euler-Maruyama 10 000"]
    names += ["paper: networks", "paper: Euler-Maruyama 50 000"]
    table = Table(names, args, part="gaussian")
    rows = []
    some = (2, 4, 6, 8, 10, 12) if args.full else (2, 6, 12)
    for D in (2,) if fast else some:
        process = Process.random(D, seed=D)
        cells: list[Any] = [D]
        row: dict[str, Any] = {"D": D}
        exact = [gaussian_kl(*process.law(t), *process.jko_law(round(t / GAMMA))) for t in times]
        cells.append(" / ".join(map(short, exact)))
        row["exact"] = exact
        base = torch.distributions.MultivariateNormal(process.start, torch.eye(D).double())
        potential = Potential(
            lambda y, p=process: 0.5 * ((y - p.b) @ p.A * (y - p.b)).sum(1)  # type: ignore[misc]
        )
        for name, options in (
            ("affine", {"depth": 0}),
            ("network", {"depth": 1, "width": 16, "max_eval": 5 if fast else 60}),
        ):
            flow = MapFlow(
                process.start + sobol_normal(m, D, 0),
                [potential, Entropy()],
                GAMMA,
                log_density=base.log_prob,
                **options,  # type: ignore[arg-type]
            )
            began = time.process_time()
            for _ in range(round(max(times) / GAMMA)):
                flow.step()
            seconds = time.process_time() - began
            fresh = sobol_normal(m // 4, D, 1)
            found = [flow_kl(process, t, flow, round(t / GAMMA), fresh) for t in times]
            row[name] = found
            cells += [" / ".join(map(short, found)), f"{seconds:.0f}"]
        euler = euler_kl(process, times, 200 if fast else 10_000, seed=D)
        row["euler"] = euler
        cells.append(" / ".join(map(short, euler)))
        cells += ["{} / {}".format(*map(short, PAPER[D][i : i + 2])) for i in (0, 2)]
        table.add(cells)
        rows.append(row)
    return rows


# -- a step of a network ---------------------------------------------------------------------------


def network(m: int, seed: int) -> tuple[Tensor, Tensor, Any]:
    """Return neurons (m, 2), their classes and the loss of the five-point sine."""
    W = 1e-2 * torch.randn(m, 2, generator=torch.Generator().manual_seed(seed)).double()
    classes = (torch.arange(m) < m // 2).long()
    x = torch.linspace(-0.5, 0.5, 5, dtype=torch.float64)
    y = torch.sin(10 * x - torch.pi / 2) + 0.2 * x - 0.5
    inputs = torch.stack([x, torch.ones_like(x)], 1)
    signs = (2.0 * classes - 1.0).double() * 50 / m

    def loss(V: Tensor) -> Tensor:
        return (torch.relu(inputs @ V.t()) @ signs - y).square().mean()

    return W, classes, loss


SOLVERS: dict[str, tuple[str, str | Solver]] = {
    "L-BFGS, exact distance": ("emd", "lbfgs"),
    "L-BFGS, Frobenius": ("frobenius", "lbfgs"),
    "map, depth 1": ("emd", ConvexMap(depth=1)),
    "map": ("emd", ConvexMap()),
}


def small(fast: bool, args: argparse.Namespace) -> list[dict[str, Any]]:
    """Print P after one step at sizes where the exact distance can be had."""
    sizes, seeds = ((50,), range(1)) if fast else ((50, 200, 500, 2000), range(3))
    evaluations = 20 if fast else 1000
    print(f"\nP after one step of {evaluations} evaluations, median (quartiles) of seeds; CPU s\n")
    table = Table(["m", *SOLVERS], args, part="small")
    rows = []
    for m in sizes:
        cells: list[Any] = [m]
        for name, (distance, solver) in SOLVERS.items():
            found, spent = [], []
            for seed in seeds:
                W, classes, loss = network(m, seed)
                began = time.process_time()
                _, report = prox(
                    *(loss, W, 1.0),
                    **{"distance": distance, "solver": solver, "classes": classes},  # type: ignore[arg-type]
                    max_eval=evaluations,
                )
                spent.append(time.process_time() - began)
                exact = report.wasserstein_sq
                assert exact is not None
                found.append(report.loss_after + exact / 2)
            rows.append({"m": m, "solver": name, "P": median(found), "seconds": median(spent)})
            cells.append(f"{quartiles(found)}; {median(spent):.1f} s")
        table.add(cells)
    return rows


@dataclass(frozen=True)
class Large:
    """A step of a cloud that is too large for exact transport."""

    m: int
    name: str
    evaluations: int


def large_case(case: Large) -> dict[str, Any]:
    """Take the step in this process."""
    torch.set_num_threads(1)
    given: dict[str, tuple[Any, float, str | Solver]] = {
        "L-BFGS, Frobenius": ("frobenius", 1.0, "lbfgs"),
        # A sliced distance is about W2^2/D.
        "L-BFGS, sliced": (Sliced(projections=50), 0.5, "lbfgs"),
        "map, depth 1": ("frobenius", 1.0, ConvexMap(depth=1)),
        "map": ("frobenius", 1.0, ConvexMap()),
    }
    distance, gamma, solver = given[case.name]
    W, classes, loss = network(case.m, 0)
    base, began = peak_kib(), time.process_time()
    V, report = prox(
        *(loss, W, gamma),
        **{"distance": distance, "solver": solver, "classes": classes},
        max_eval=case.evaluations,
    )
    seconds, peak = time.process_time() - began, peak_kib()
    identity = (V - W).square().sum(1).mean().item()
    bound = identity
    if case.name == "L-BFGS, sliced":
        bound = min(EMD().anchored(W, classes).settle(V).value.item(), identity)
    return {
        "evaluations": report.evaluations,
        "F": report.loss_after,
        "P": report.loss_after + bound / 2,
        "identity": report.loss_after + identity / 2,
        "seconds": seconds,
        "gib": (peak - base) / 2**20,
    }


def large(fast: bool, args: argparse.Namespace) -> list[dict[str, Any]]:
    """Print P, time and memory at 1e5 and 1e6 particles."""
    print("\nOne step of large clouds\n")
    names = ["m", "solver", "evaluations", "F", "P", "CPU s", "GiB added"]
    table = Table(names, args, part="large", labels=2)
    rows = []
    some = (100_000, 1_000_000) if args.full else (100_000,)
    for m in (2000,) if fast else some:
        for name in ("L-BFGS, Frobenius", "L-BFGS, sliced", "map, depth 1", "map"):
            # An evaluation of sliced distances takes 13 s at a million particles.
            slow = m == 1_000_000 and name == "L-BFGS, sliced"
            evaluations = 5 if fast or slow else 100
            found = in_a_child(large_case, Large(m, name, evaluations))
            if found is None:
                table.add([m, name, "killed", "", "", "", ""])
                continue
            numbers = [short(found[key]) for key in ("F", "P")]
            times = [f"{found['seconds']:.0f}", f"{found['gib']:.2f}"]
            table.add([m, name, found["evaluations"], *numbers, *times])
            rows.append({"m": m, "solver": name, **found})
    return rows


TABLES = {"gaussian": gaussian, "small": small, "large": large}


def main(argv: Sequence[str] | None = None) -> dict[str, list[dict[str, Any]]]:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--fast", action="store_true", help="small cases only")
    parser.add_argument("--full", action="store_true", help="every D, and a million particles")
    parser.add_argument("--only", choices=TABLES, help="one of the tables")
    add_arguments(parser)
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    print(f"{machine()}\n")
    chosen = [args.only] if args.only else list(TABLES)
    return {name: TABLES[name](args.fast, args) for name in chosen}


if __name__ == "__main__":
    main()
