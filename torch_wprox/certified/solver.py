"""``solver="global"``: the step solved in the space of measures, with a proven lower bound."""

from __future__ import annotations

import math
import warnings
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from torch_wprox.arguments import checked_count, checked_number
from torch_wprox.certified.bound.dual import UnboundedDual
from torch_wprox.certified.bound.proof import proved
from torch_wprox.certified.bound.relaxation import Bounded, held_against, relax
from torch_wprox.certified.problem.particle_problem import Configuration
from torch_wprox.certified.problem.probing import probe
from torch_wprox.certified.search.local import descended, descended_on_model
from torch_wprox.certified.search.search import search
from torch_wprox.certified.step_problem import OutputProblem, output_problem
from torch_wprox.layers.mean_field import live_layers
from torch_wprox.objective import BudgetExhausted, Objective
from torch_wprox.particles.flat import FlatLoss
from torch_wprox.report import Bound, Status
from torch_wprox.solvers.stopping import Stopping

# Evaluations that the relaxed problem leaves for its bound and for rounding.
_KEPT = 12
# Those of the last look at the best point: F there, R at its output, and R at the first output.
_CONFIRMING = 3
# Outputs that the search came to last and that probes start from.
_VISITED = 4
# Share of a time budget that the relaxed step leaves.
_FOR_ROUNDING = 0.4


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
    trained ones with two inputs. Otherwise it is an estimate, or what is proved in
    ``proof_seconds``. Either holds if the loss is convex in the output: that is probed where a step
    could go, and a violation raises.

    Where the gap is not closed L-BFGS runs from the anchor too, with at least half of ``max_eval``
    (for a squared error on the model, at no evaluations): the answer is never above its own.

    Args:
        tolerance_gap: Rounding ends when the gap is below this share of the bound.
        tolerance_bound: Gap of the relaxed problem itself at which it is solved, relative.
        max_iter: Iterations of conditional gradient; the dual may use ten times as many.
        starts: Roundings that are tried.
        polish: Steps of the local descent from each of them.
        exact_cells: With three inputs best responses are exact if 4 n^2 is at most this.
        proof_seconds: Time for the proof of a bound that would be an estimate otherwise, by branch
            and bound on the signs of the samples; 0: keep the estimate. The bound that is proved
            when time is up is reported, loose or not.
        tolerance_proof: The proof ends when every best response is known up to this share.
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
    proof_seconds: float = 0.0
    tolerance_proof: float = 0.01
    seed: int = 0

    name = "global"
    is_local = False

    def __post_init__(self) -> None:
        for option in ("tolerance_gap", "tolerance_bound", "proof_seconds", "tolerance_proof"):
            checked_number(option, getattr(self, option), ">= 0", lambda t: t >= 0)
        for option in ("max_iter", "starts", "polish"):
            checked_count(option, getattr(self, option))

    def minimize(
        self, objective: Objective, stopping: Stopping, memory: dict[str, Any] | None = None
    ) -> tuple[Status, dict[str, Any] | None]:
        """Solve the step; leave the bound on ``objective.bound``.

        Raises:
            ValueError: The parameters are not those of one MeanFieldLayer, they reach the loss by
                another way than its output, or the loss is not convex in the output.
        """
        function = objective.function
        if not isinstance(function, FlatLoss):
            raise ValueError(
                'solver="global" needs a MeanFieldLayer and a closure: take solver="bfgs" or '
                '"lbfgs"'
            )
        return _GlobalStep(self, objective, function, stopping).solve(), None


class _GlobalStep:
    """One step: what :class:`Global` knows of it while it solves."""

    def __init__(
        self, options: Global, objective: Objective, function: FlatLoss, stopping: Stopping
    ) -> None:
        self._options, self._objective, self._stopping = options, objective, stopping
        self._function = function
        self._allowed = objective.evaluations_left
        # The local solver has at least half of the evaluations, unless the loss is a quadratic.
        self._reserve = self._allowed // 2
        self._visited: list[Tensor] = []
        # What Ctrl-C keeps: the highest bound so far, and the local minimum it began with.
        self._told = -math.inf
        self._problem: OutputProblem | None = None
        self._local: Configuration | None = None
        # With a time budget the relaxed step has to leave some of it for rounding.
        self._kept_seconds = _FOR_ROUNDING * objective.watch.seconds_left

    def _relaxed_enough(self) -> bool:
        """Whether the relaxed step has had its share of the time (ranks have several clocks)."""
        watch = self._objective.watch
        if watch.is_over():
            return True
        return self._objective.is_alone and watch.seconds_left < self._kept_seconds < math.inf

    def solve(self) -> Status:
        """Relax, bound, round, probe, descend; leave point and bound on the objective.

        When the watch ends the step the relaxed problem keeps the bound so far, the search its best
        point, and both are still probed: what is proved by then is a proof.
        """
        try:
            return self._solved()
        except KeyboardInterrupt:
            self._keep()
            raise

    def _solved(self) -> Status:
        objective = self._objective
        bounded: Bounded | None = None
        is_probed = False
        problem: OutputProblem | None = None
        try:
            problem = self._problem = self._output_problem()
            bounded = self._relaxed(problem, may_be_quadratic=True)
            self._search(problem, bounded)
            if not self._probe(problem, bounded):
                bounded = None
                bounded = self._relaxed(problem, may_be_quadratic=False)
                self._search(problem, bounded)
                self._probe(problem, bounded)
            is_probed = True
        except BudgetExhausted:
            pass
        except UnboundedDual as error:
            warnings.warn(f"the step has no lower bound: {error}", stacklevel=8)
        if bounded is None or not math.isfinite(bounded.lower_bound):
            bounded = None
        certified = bounded is not None and bounded.certified and is_probed
        if bounded is None or not (certified and self._is_near(bounded.lower_bound)):
            status = self._descend(problem, bounded)
        if bounded is None or problem is None:
            return status
        objective.bound = self._confirmed(problem, bounded, is_probed)
        if self._is_near(objective.bound.lower_bound):
            return Status.CERTIFIED if objective.bound.certified else Status.CONVERGED
        return Status.MAX_EVAL if objective.evaluations_left <= 0 else Status.STALLED

    def _keep(self) -> None:
        """Keep what is known when Ctrl-C comes, if the best point is kept then."""
        objective = self._objective
        if self._problem is None or not objective.watch.keeps_best_on_interrupt:
            return
        if self._local is not None:
            with suppress(BudgetExhausted):
                point = self._problem.assemble(self._local)
                objective.evaluate(point, settled=True, final=True)
        if math.isfinite(self._told):  # not probed, so that it is an estimate
            objective.bound = Bound(min(self._told, objective.best.value), False)

    def _tell(self, value: float, bound: float) -> bool:
        """Tell the watch of a round of the relaxed problem; return whether the step has to end."""
        self._told = max(self._told, bound)
        value = self._objective.best.value if math.isnan(value) else value
        return self._objective.tell(value, lower_bound=bound)

    def _is_near(self, bound: float) -> bool:
        """Whether the best point is within the tolerance of a bound."""
        return self._objective.best.value - bound <= self._options.tolerance_gap * abs(bound)

    def _output_problem(self) -> OutputProblem:
        objective, function = self._objective, self._function
        problem = output_problem(
            function.parameters.views,
            objective.blocks,
            objective.anchor,
            live_layers(),
            function.runner,
            objective.count_evaluation,
            function.runner.ranks,
        )
        problem.oracle.require_same_start(float(function.runner.first_mean))
        return problem

    def _relaxed(self, problem: OutputProblem, *, may_be_quadratic: bool) -> Bounded:
        """Solve the relaxed step with what the local solver does not need."""
        objective = self._objective
        kept = self._reserve + _KEPT

        def thrifty(z: Tensor) -> tuple[float, Tensor]:
            nonlocal kept
            if objective.evaluations_left <= kept:
                kept = self._reserve  # what was kept is for the bound of the best point met
                raise BudgetExhausted
            return problem.oracle(z)

        options = self._options
        bounded = relax(
            problem.particles,
            thrifty,
            tolerance=options.tolerance_bound,
            max_iter=options.max_iter,
            precision=problem.oracle.precision,
            exact_cells=options.exact_cells,
            may_be_quadratic=may_be_quadratic,
            tell=self._tell,
            ends=self._relaxed_enough,
        )
        if bounded.model.is_exact:
            self._reserve = 0  # the local solver runs on the model
        self._told, self._local = bounded.lower_bound, bounded.local
        return bounded

    def _search(self, problem: OutputProblem, bounded: Bounded) -> None:
        """Round the relaxed solution and descend; every point evaluated is F(V) = R(z(V))."""
        options, oracle = self._options, problem.oracle
        self._visited = [bounded.relaxed.output, bounded.relaxed.bound_output]

        def evaluate(x: Configuration) -> float:
            with oracle.watching() as seen:
                found = self._objective.evaluate(problem.assemble(x), settled=True, final=True)
            oracle.require_output_alone(float(self._function.runner.last_loss), seen)
            self._visited.insert(0, problem.particles.output(x.points, x.offset))
            return found.value

        search(
            problem.particles,
            oracle,
            bounded,
            starts=options.starts,
            polish=options.polish,
            tolerance_gap=options.tolerance_gap,
            precision=oracle.precision,
            seed=options.seed,
            evaluate=evaluate,
            ends=self._objective.watch.is_over,
        )

    def _proved(self, problem: OutputProblem, bounded: Bounded) -> Bounded:
        """Prove an estimate, if the options give time for that."""
        options, objective = self._options, self._objective
        left = objective.evaluations_left - _CONFIRMING
        seconds = min(options.proof_seconds, objective.watch.seconds_left)
        seconds = float(objective.agree(torch.tensor(seconds, dtype=torch.float64)))
        if left <= 0:
            return bounded
        return proved(
            problem.particles,
            problem.oracle,
            bounded,
            seconds=seconds,
            tolerance=options.tolerance_proof,
            precision=problem.oracle.precision,
            exact_cells=options.exact_cells,
            evaluations=left,
        )

    def _probe(self, problem: OutputProblem, bounded: Bounded) -> bool:
        """Look for a loss that is not convex; return whether a quadratic model holds."""
        return probe(
            problem.oracle,
            problem.particles,
            bounded.model,
            [*self._visited[:_VISITED], problem.oracle.output],
            bounded.lower_bound,
        )

    def _descend(self, problem: OutputProblem | None, bounded: Bounded | None) -> Status:
        """Run the local solver from the anchor, so that the answer is not above its own."""
        objective = self._objective
        if problem is not None and bounded is not None and bounded.model.is_exact:
            if bounded.local is not None and objective.watch.is_over():
                return Status.STALLED  # the local minimum that the bound began with was evaluated
            model = problem.through(bounded.model)
            point = descended_on_model(objective, model, self._stopping, self._allowed)
            with suppress(BudgetExhausted):
                objective.evaluate(point, settled=True, final=True)
            return Status.STALLED
        kept = min(_CONFIRMING, objective.evaluations_left) if bounded is not None else 0
        objective.evaluations_left -= kept
        try:
            return descended(objective, self._stopping)
        finally:
            objective.evaluations_left += kept

    def _confirmed(self, problem: OutputProblem, estimated: Bounded, is_probed: bool) -> Bound:
        """Prove the bound and return it, after a last look at the closure at the best point.

        Raises:
            ValueError: The objective there is below the bound, or the closure is not one function.
        """
        objective, oracle = self._objective, problem.oracle
        bounded = self._proved(problem, estimated)
        try:
            with oracle.watching() as seen:
                best = objective.evaluate(objective.best.point, settled=True, final=True)
            oracle.require_output_alone(float(self._function.runner.last_loss), seen)
            oracle.require_repeatable()
        except BudgetExhausted:
            best, is_probed = objective.best, False
        x, value = problem.configuration(best.point), min(best.value, objective.best.value)

        def held(b: Bounded) -> Bound:
            return held_against(b, problem.particles, x, value, oracle.precision)

        found = held(bounded)
        estimate = None if bounded is estimated else held(estimated).lower_bound
        return replace(found, certified=found.certified and is_probed, estimate=estimate)
