"""What is left between the certified step and its bound: whole particles, or an incomplete search?

    python -m benchmarks.integrality

The note's section 3 with all anchors at 0, where the step of m particles can be solved exactly. In
a sector of the plane the output depends on the sum s of the particles' positions alone, and N of
them are the cheapest at s/N each, for |s|^2/N. So min P is a convex problem, jointly in the sums
and the numbers N, and only the N are integers:

    min R(sum_qc q A_c s_qc) + sum_qc |s_qc|^2/(2 gamma m N_qc),  s_qc in sector c, sum_c N_qc = m/2

over signs q and sectors c. Branch and bound on the N solves it; with real N it is the relaxed step.
"""

from __future__ import annotations

import argparse
import heapq
import itertools
import math
import warnings
from collections.abc import Sequence

import cvxpy as cp
import numpy as np
import torch

from benchmarks.certified import note
from torch_wprox.certified.responses.planar import Sectors

M = 50


class Relaxation:
    """The step with N between two bounds, compiled once."""

    def __init__(self, gamma: float) -> None:
        problem = note(0, gamma)
        X = torch.cat([problem.x, torch.ones_like(problem.x)], 1)
        sectors = Sectors.of(X)
        rays, active = sectors.rays.numpy(), sectors.active.numpy()
        count = len(rays)
        self.shape = (2, count)
        self.low, self.high = cp.Parameter(self.shape), cp.Parameter(self.shape)
        self.N = cp.Variable(self.shape, nonneg=True)
        # Sums in units of sqrt(2 gamma m), so that transport is the plain quotient.
        unit = math.sqrt(2 * gamma * M)
        output, price = 0, 0
        for q, sign in enumerate((1.0, -1.0)):
            for c in range(count):
                r = cp.Variable(2, nonneg=True)
                s = np.stack([rays[c], rays[(c + 1) % count]], 1) @ r
                output = output + sign * unit * ((active[c][:, None] * X.numpy()) @ s)
                price = price + cp.quad_over_lin(s, self.N[q, c])
        error = cp.sum_squares(output - problem.y.numpy()[:, 0]) / len(X)
        limits = [self.N - self.low >= 0, self.high - self.N >= 0, cp.sum(self.N, axis=1) == M / 2]
        self.program = cp.Problem(cp.Minimize(error + price), limits)

    def __call__(self, low: np.ndarray, high: np.ndarray) -> tuple[float, np.ndarray]:
        """The value and the N that attain it; inf if there are none."""
        self.low.value, self.high.value = low, high
        value = self.program.solve(solver=cp.CLARABEL)
        if self.program.status not in ("optimal", "optimal_inaccurate"):
            return math.inf, low
        return float(value), np.asarray(self.N.value)


def branch_and_bound(
    relaxation: Relaxation, incumbent: float, tolerance: float, nodes: int
) -> tuple[float, float, float, int]:
    """The relaxed value, bounds of the integral one from below and above, and the nodes visited."""
    low, high = np.zeros(relaxation.shape), np.full(relaxation.shape, M / 2)
    root, N = relaxation(low, high)
    counter, best = itertools.count(), incumbent
    heap = [(root, next(counter), low, high, N)]
    visited = 1
    while heap and visited < nodes:
        bound, _, low, high, N = heap[0]
        if bound >= best * (1 - tolerance):
            break
        heapq.heappop(heap)
        fraction = np.abs(N - np.round(N))
        if fraction.max() < 1e-5:
            best = min(best, bound)
            continue
        best = min(best, _rounded(relaxation, N))
        q, c = np.unravel_index(int(fraction.argmax()), fraction.shape)
        for side in (0, 1):
            new_low, new_high = low.copy(), high.copy()
            if side:
                new_low[q, c] = math.ceil(N[q, c])
            else:
                new_high[q, c] = math.floor(N[q, c])
            value, found = relaxation(new_low, new_high)
            visited += 1
            if value < best:
                heapq.heappush(heap, (value, next(counter), new_low, new_high, found))
    return root, min(best, heap[0][0] if heap else best), best, visited


def _rounded(relaxation: Relaxation, N: np.ndarray) -> float:
    """The value at whole N near the fractional ones: the largest remainders are rounded up."""
    whole = np.floor(N + 1e-9)
    for q in range(2):
        for c in np.argsort(whole[q] - N[q])[: int(M / 2 - whole[q].sum())]:
            whole[q, c] += 1
    return relaxation(whole, whole)[0]


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--gammas", type=float, nargs="*", default=[10.0, 100.0])
    parser.add_argument("--nodes", type=int, default=300)
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", module="cvxpy")
    print(
        "| gamma | relaxed | whole particles, at least | whole particles, found | nodes | solver |"
    )
    print("|---|---|---|---|---|---|")
    for gamma in args.gammas:
        problem = note(0, gamma)
        with torch.no_grad():
            problem.layer.particles.zero_()
        report, _ = problem.step(solver="global", max_eval=1500)
        relaxation = Relaxation(gamma)
        root, low, best, visited = branch_and_bound(relaxation, report.objective, 1e-6, args.nodes)
        shares = [100 * (v / root - 1) for v in (low, best, report.objective)]
        assert report.lower_bound is not None
        print(
            f"| {gamma:g} | {root:.7f} | {shares[0]:+.4f} % | {shares[1]:+.4f} % | {visited} "
            f"| {shares[2]:+.4f} % (own bound {100 * (report.lower_bound / root - 1):+.4f} %) |",
            flush=True,
        )


if __name__ == "__main__":
    main()
