"""``solver="global"``: the step solved in the space of measures, with a proven lower bound."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from torch_wprox.certified.bound.relaxation import relax
from torch_wprox.certified.search.search import search
from torch_wprox.certified.step_problem import output_problem
from torch_wprox.layers.mean_field import live_layers
from torch_wprox.objective import BudgetExhausted, Objective
from torch_wprox.particles.flat import FlatLoss
from torch_wprox.report import Bound, Status
from torch_wprox.solvers.lbfgs import LBFGS
from torch_wprox.solvers.stopping import Stopping

# Evaluations that the relaxed problem leaves for rounding and for the final point.
_KEPT = 12


@dataclass(frozen=True)
class Global:
    r"""Solves the step globally where the loss is convex in the output of one MeanFieldLayer.

    In the space of measures the step is convex, and its value is a lower bound of P:

    .. math:: \min_\pi R\left(\int m\,\psi\,d\pi\right) + \frac{1}{2\gamma}\int |v - w|^2 d\pi
        \;\le\; \min_V P(V).

    Conditional gradient (or, where output weights train, its dual) solves it; the mixture found is
    rounded to m particles, which a local search improves. ``report.gap`` says how far from optimal
    the step can be; the bound is a proof (``report.certified``) where best responses are exact:
    frozen output weights with two inputs (a bias counts) or three and up to about 300 samples, and
    trained ones with two inputs. Otherwise it is an estimate.

    Args:
        tolerance_gap: Rounding ends when the gap is below this share of the bound.
        tolerance_bound: Gap of the relaxed problem itself at which it is solved, relative.
        max_iter: Iterations of conditional gradient; the dual may use ten times as many.
        starts: Roundings that are tried.
        polish: Steps of the local descent from each of them.
        exact_cells: With three inputs best responses are exact if 4 n^2 is at most this.
        seed: Of the random roundings; the global generator is not touched.

    Raises:
        ValueError: An option is out of its range.

    Example:
        >>> import torch, torch_wprox
        >>> from torch_wprox.certified.solver import Global
        >>> g = torch.Generator().manual_seed(0)
        >>> layer = torch_wprox.MeanFieldLayer(
        ...     1, width=10, parameterization="signed", generator=g, dtype=torch.float64
        ... )
        >>> x = torch.linspace(-1, 1, 5, dtype=torch.float64)[:, None]
        >>> opt = torch_wprox.WassersteinProx(layer.parameters(), gamma=10.0, solver=Global())
        >>> def closure():
        ...     opt.zero_grad()
        ...     loss = (layer(x) - (5 * x).sin()).square().mean()
        ...     loss.backward()
        ...     return loss
        >>> loss = opt.step(closure)
        >>> opt.report.certified, opt.report.lower_bound <= opt.report.objective
        (True, True)

    Source: Frank & Wolfe (1956) and Jaggi (2013) for the bound; Jordan, Kinderlehrer & Otto (1998)
    for the step.
    """

    tolerance_gap: float = 1e-4
    tolerance_bound: float = 1e-6
    max_iter: int = 300
    starts: int = 24
    polish: int = 2000
    exact_cells: int = 400_000
    seed: int = 0

    name = "global"

    def __post_init__(self) -> None:
        for option in ("tolerance_gap", "tolerance_bound"):
            if not getattr(self, option) >= 0:
                raise ValueError(f"{option} must be >= 0, got {getattr(self, option)!r}")
        for option in ("max_iter", "starts", "polish"):
            if not getattr(self, option) >= 1:
                raise ValueError(f"{option} must be >= 1, got {getattr(self, option)!r}")

    def minimize(
        self, objective: Objective, stopping: Stopping, memory: dict[str, Any] | None = None
    ) -> tuple[Status, dict[str, Any] | None]:
        """Solve the step; leave the bound on ``objective.bound``.

        Raises:
            ValueError: The parameters are not those of one MeanFieldLayer, they reach the loss by
                another way than its output, or the loss is not convex in the output.
        """
        function = objective.function
        if not (isinstance(function, FlatLoss) and function.runner.is_alone):
            raise ValueError(
                'solver="global" needs a MeanFieldLayer and a closure of one process: take '
                'solver="bfgs" or "lbfgs"'
            )
        try:
            return self._solve(objective, function)
        except BudgetExhausted:
            if objective.best is not objective.start:
                return Status.MAX_EVAL, None
        # Too few evaluations for the relaxed problem: the ones kept descend locally.
        return LBFGS().minimize(objective, stopping, None)

    def _solve(
        self, objective: Objective, function: FlatLoss
    ) -> tuple[Status, dict[str, Any] | None]:
        problem = output_problem(
            function.parameters.views,
            objective.blocks,
            objective.anchor,
            live_layers(),
            function.runner,
            objective.count_evaluation,
        )
        particles, oracle = problem.particles, problem.oracle

        def thrifty(z: Tensor) -> tuple[float, Tensor]:
            if objective.evaluations_left <= _KEPT:
                raise BudgetExhausted
            value, grad = oracle(z)
            return value, grad

        bounded = relax(
            particles,
            thrifty,
            tolerance=self.tolerance_bound,
            max_iter=self.max_iter,
            precision=oracle.precision,
            exact_cells=self.exact_cells,
        )
        objective.bound = Bound(bounded.lower_bound, bounded.certified)
        search(
            particles,
            oracle,
            bounded,
            starts=self.starts,
            polish=self.polish,
            tolerance_gap=self.tolerance_gap,
            precision=oracle.precision,
            seed=self.seed,
            evaluate=lambda x: objective.evaluate(problem.assemble(x), settled=True).value,
        )
        gap = objective.best.value - bounded.lower_bound
        if gap > self.tolerance_gap * abs(bounded.lower_bound):
            exhausted = objective.evaluations_left <= 0
            return (Status.MAX_EVAL if exhausted else Status.STALLED), None
        return (Status.CERTIFIED if bounded.certified else Status.CONVERGED), None
