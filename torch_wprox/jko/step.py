"""One JKO step of a grid layer: build the problem, solve it, write the answer, report it."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from torch_wprox.arguments import checked_count, checked_flag, checked_number
from torch_wprox.closure.runner import ClosureRunner
from torch_wprox.closure.watch import Watch
from torch_wprox.jko.debiased import self_potential, solve_debiased
from torch_wprox.jko.dykstra import solve_dykstra
from torch_wprox.jko.kernel import GridKernel
from torch_wprox.jko.krylov import solve_krylov
from torch_wprox.jko.lbfgs import solve_lbfgs
from torch_wprox.jko.loss import ClosureLoss, ClosureMeasureLoss
from torch_wprox.jko.newton import solve_newton
from torch_wprox.jko.plan import Plan, transport_cost
from torch_wprox.jko.problem import JKOProblem, Method, OutputMap, Solution
from torch_wprox.layers.grid import GridLayer
from torch_wprox.report import JKOReport, Status

MethodName = Literal["newton", "lbfgs", "krylov", "dykstra"]
_OUTPUT_METHODS = {"newton": solve_newton, "lbfgs": solve_lbfgs, "dykstra": solve_dykstra}
_MAX_ITERATIONS = {"newton": 50, "lbfgs": 500, "krylov": 50, "dykstra": 20_000}


@dataclass(frozen=True)
class StepOptions:
    """How a step is solved.

    Attributes:
        method: One of `MethodName`.
        epsilon: Entropic regularisation.
        debiased: Whether the Sinkhorn divergence takes the place of W_eps.
        tolerance: On the relative residual.
        flat: On the objective of a debiased step, relative to its terms.
        max_iterations: Of the method; None: its own default.
        max_rounds: Of a debiased step.
        precision: dtype in which the step is computed.

    Raises:
        ValueError: A value is out of range.
    """

    method: MethodName
    epsilon: float
    debiased: bool
    tolerance: float
    flat: float
    max_iterations: int | None
    max_rounds: int
    precision: torch.dtype

    def __post_init__(self) -> None:
        if self.method not in get_args(MethodName):
            raise ValueError(f"method must be one of {get_args(MethodName)}, got {self.method!r}")
        for name in ("max_iterations", "max_rounds"):
            count = getattr(self, name)
            if count is None and name == "max_iterations":
                continue
            checked_count(name, count)
        checked_flag("debiased", self.debiased)
        checked_number("tolerance", self.tolerance, "between 0 and 1", lambda t: 0 < t < 1)

    @property
    def iterations(self) -> int:
        """Iterations that the method may take."""
        return self.max_iterations or _MAX_ITERATIONS[self.method]


def take_step(
    layer: GridLayer, runner: ClosureRunner, tau: float, options: StepOptions, watch: Watch
) -> tuple[JKOReport, Plan | None]:
    """Move the layer's weight by one step.

    Args:
        layer: The layer; its weight is a probability.
        runner: Runs the closure.
        tau: 2 gamma.
        options: How to solve.
        watch: Told of every iteration; ends the step early.

    Returns:
        The report and the plan; no plan if the weight did not move.

    Raises:
        RuntimeError: The closure does not fit the method.
    """
    weight = layer.weight
    anchor = weight.detach().clone()
    with layer.observing() as seen:
        before = float(runner())
    grad = weight.grad
    if not math.isfinite(before) or (grad is not None and not bool(grad.isfinite().all())):
        return _unmoved(layer, Status.NONFINITE, before, tau, runner.runs, options), None
    if tau == 0.0 or grad is None:
        return _unmoved(layer, Status.NO_MOVE, before, tau, runner.runs, options), None
    q = anchor.view(layer.blocks, *layer.shape).to(options.precision)
    kernel = GridKernel(
        layer.spacing, layer.shape, options.epsilon, dtype=options.precision, device=q.device
    )
    problem = JKOProblem(kernel, q, options.epsilon, tau, watch=watch)
    method, start = _method(layer, runner, seen.calls, problem, before, grad, options)
    found, iterations, rounds = _solved(problem, method, start, options)
    if watch.has_ended and found.status is not Status.NONFINITE:
        found = replace(found, status=Status.STOPPED)
    rounding = max(torch.finfo(t).eps for t in (options.precision, weight.dtype))
    ends_above = found.status is not Status.NONFINITE and _is_above(
        problem, found, before, debiased=options.debiased, rounding=rounding
    )
    if found.status is Status.NONFINITE or ends_above:
        weight.copy_(anchor)
        runner()
        status = Status.STALLED if ends_above else found.status
        return _unmoved(layer, status, before, tau, runner.runs, options), None
    weight.copy_(_with_mass_of(found.plan).reshape(-1))
    after = float(runner())
    applications = kernel.applications
    moved = found.plan.displacement(layer.axes()).norm(dim=0)
    report = JKOReport(
        status=found.status,
        evaluations=runner.runs,
        loss_before=before,
        loss_after=after,
        objective=found.objective,
        wasserstein_eps=options.epsilon * transport_cost(found.plan),
        mass=_mass(layer),
        iterations=iterations,
        rounds=rounds,
        kernel_applications=applications,
        residual=found.residual,
        mean_displacement=float((q * moved).sum()),
        epsilon=options.epsilon,
        tau=tau,
    )
    return report, found.plan


def _solved(
    problem: JKOProblem, method: Method, start: Tensor | None, options: StepOptions
) -> tuple[Solution, int, int]:
    """Return the solution, its iterations and its rounds."""
    if not options.debiased:
        plain = method(problem, start)
        return plain, plain.iterations, 1
    debiased = solve_debiased(
        problem, method, start, tolerance=options.flat, max_rounds=options.max_rounds
    )
    return debiased.solution, debiased.iterations, debiased.rounds


def _is_above(
    problem: JKOProblem, found: Solution, loss: float, *, debiased: bool, rounding: float
) -> bool:
    """Whether the solution is worse than the anchor: W_eps(q, q) + tau f(q), or tau f(q) debiased.

    A minimum is not; where a method gave up, the anchor is evaluated.
    """
    value = problem.tau * loss
    if not debiased:
        if found.status is Status.CONVERGED:
            return False
        q = problem.q
        log_d = self_potential(problem.kernel, q)
        held = torch.where(q > 0, q * log_d, 0)
        value += problem.epsilon * float(2 * held.sum() - q.sum())
    size = abs(value) + abs(found.objective) + abs(problem.tau * loss)
    return found.objective > value + 64 * rounding * size


def _method(
    layer: GridLayer,
    runner: ClosureRunner,
    calls: list[tuple[Tensor, Tensor]],
    problem: JKOProblem,
    before: float,
    grad: Tensor,
    options: StepOptions,
) -> tuple[Method, Tensor | None]:
    """Return the solver of a plain step, and where it starts.

    It starts at the multipliers of the anchor (for a closure that stays the same they are those of
    the last solution) or at 0, whichever has the lower objective.
    """
    q = problem.q
    limits: dict[str, Any] = {
        "tolerance": options.tolerance,
        "max_iterations": options.iterations,
    }
    if options.method == "krylov":
        measure = ClosureMeasureLoss(runner, layer, q)
        return (
            lambda problem, start: solve_krylov(problem, measure, start, **limits),
            problem.tau * grad.view_as(q).to(q),
        )
    if len(calls) != 1:
        raise RuntimeError(
            f"the closure calls the layer {len(calls)} times: call it once on the concatenated "
            'inputs, or use method="krylov"'
        )
    input, output = calls[0]
    features = layer.features(input.reshape(-1, layer.in_features).to(grad.dtype))
    outputs = OutputMap(
        features.view(-1, *layer.shape).to(q),
        layer.block_signs,
        layer.block_outputs,
        layer.out_features,
    )
    loss = ClosureLoss(runner, layer, output.shape, options.precision)
    at_anchor = loss.at(outputs.of(q))
    slack = torch.finfo(grad.dtype).eps ** 0.5
    if abs(at_anchor.value - before) > slack * max(abs(before), 1.0):
        raise RuntimeError(
            f"the closure gives {at_anchor.value} for the output that gave {before}: it "
            'depends on weight not only through the output, use method="krylov"'
        )
    solver = _OUTPUT_METHODS[options.method]
    start = None if options.method == "dykstra" else problem.tau * at_anchor.grad
    return lambda problem, start: solver(problem, outputs, loss, start, **limits), start


def _unmoved(
    layer: GridLayer,
    status: Status,
    loss: float,
    tau: float,
    evaluations: int,
    options: StepOptions,
) -> JKOReport:
    return JKOReport(
        status=status,
        evaluations=evaluations,
        loss_before=loss,
        loss_after=loss,
        objective=tau * loss,
        wasserstein_eps=0.0,
        mass=_mass(layer),
        iterations=0,
        rounds=0,
        kernel_applications=0,
        residual=0.0,
        mean_displacement=0.0,
        epsilon=options.epsilon,
        tau=tau,
    )


def _mass(layer: GridLayer) -> tuple[float, ...]:
    return tuple(layer.weight.detach().view(layer.blocks, -1).double().sum(1).tolist())


def _with_mass_of(plan: Plan) -> Tensor:
    """Return p with the mass of q in every block to the last bit, not to 1e-13."""
    p, q = plan.p.flatten(1), plan.q.flatten(1)
    mass = p.sum(1, keepdim=True)
    return p * torch.where(mass > 0, q.sum(1, keepdim=True) / mass, 1.0)
