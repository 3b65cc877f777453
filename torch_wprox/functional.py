"""The proximal step and the Wasserstein distance as functions of point clouds, no module needed."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from torch_wprox import solvers, step, transport
from torch_wprox.catalog import distance_named
from torch_wprox.distances import Distance
from torch_wprox.guards import checked_step_size, checked_weight_decay
from torch_wprox.objective import Block, Objective
from torch_wprox.optimizers import MAX_EVAL, TOLERANCE_GRAD
from torch_wprox.report import Status, StepReport
from torch_wprox.solvers import Solver, Stopping


def prox(
    fn: Callable[[Tensor], Tensor],
    W: Tensor,
    gamma: float,
    *,
    distance: str | Distance = "emd",
    solver: str | Solver = "auto",
    classes: Tensor | None = None,
    weight_decay: float = 0.0,
    max_eval: int = MAX_EVAL,
    tolerance_grad: float = TOLERANCE_GRAD,
    inexact: float | None = None,
) -> tuple[Tensor, StepReport]:
    """Take one proximal step of a function of a point cloud.

        V ~ argmin_V fn(V) + d(V, W) / (2 gamma),   fn(V) + d(V, W)/(2 gamma) <= fn(W)

    Args:
        fn: A cloud (m, D) to a 0-d tensor, differentiable by autograd.
        W: Anchor, (m, D), floating point; each row has mass 1/m.
        gamma: Step size, >= 0 (0: no move).
        distance: "emd", "frobenius", "sinkhorn", "sliced", or an object with options.
        solver: "auto", "gd", "adam", "bfgs", "lbfgs", or an object with options.
        classes: Integer labels (m,): only rows of equal label are exchangeable. None: all are.
        weight_decay: fn gets (weight_decay/2)|V|^2.
        max_eval: Evaluations of ``fn`` allowed.
        tolerance_grad: Converged when |grad P| <= tolerance_grad |grad fn(W)|.
        inexact: rho of the rule |grad P| <= rho |V - W_sigma|/(m gamma), None to switch it off.

    Returns:
        V (m, D), detached, and the report of the step.

    Raises:
        ValueError: ``W`` is not a matrix of floating point, or an option is out of range.

    Example:
        >>> import torch
        >>> V, report = prox(lambda V: V.square().sum() / 2, torch.ones(1, 2), 1.0)
        >>> V
        tensor([[0.5000, 0.5000]])

    Source: the note (Mercklé 2024), equation (28).
    """
    if W.ndim != 2 or not W.is_floating_point():
        raise ValueError(
            f"W must be a floating point matrix (m, D), got shape {tuple(W.shape)} and {W.dtype}"
        )
    gamma = float(checked_step_size("gamma", gamma))
    if max_eval < 1:
        raise ValueError(f"max_eval must be >= 1, got {max_eval!r}")
    shape, anchor = W.shape, W.detach().clone()

    def loss_and_grad(x: Tensor) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            V = x.detach().view(shape).requires_grad_()
            loss = fn(V)
            (grad,) = torch.autograd.grad(loss, V)
        return loss.detach(), grad.reshape(-1)

    loss, grad = loss_and_grad(anchor)
    if gamma == 0 or W.numel() == 0:
        status = Status.NO_MOVE if loss.isfinite() else Status.NONFINITE
        return anchor, step.unmoved(loss.item(), status, 1)
    block = Block(
        start=0,
        m=shape[0],
        D=shape[1],
        gamma=gamma,
        weight_decay=checked_weight_decay(weight_decay),
        distance=distance_named(distance).anchored(anchor, classes),
        is_cloud=True,
        classes=classes,
    )
    objective = Objective(
        (block,), loss_and_grad, anchor.reshape(-1), loss, grad, budget=max_eval - 1
    )
    status, _ = step.minimized(
        objective, solvers.named(solver), Stopping(tolerance_grad, inexact), None
    )
    evaluations = max_eval - objective.evaluations_left
    report = step.report_of(objective, status, objective.best, evaluations)
    return objective.best.point.view(shape), report


def wasserstein_sq(
    X: Tensor, Y: Tensor, a: Tensor | None = None, b: Tensor | None = None
) -> Tensor:
    """Return the squared 2-Wasserstein distance between two point clouds.

        W2^2 = min_pi sum_ij pi_ij |X_i - Y_j|^2,   pi >= 0 with marginals a and b

    Equal sizes and uniform masses: exact assignment. Else: POT's linear program. The gradient flows
    through the cost with the plan fixed, which is exact wherever the plan is unique (Danskin).

    Args:
        X: (m, D).
        Y: (n, D).
        a: Masses of X, (m,), summing to the same total as ``b``; None: 1/m each.
        b: Masses of Y, (n,); None: 1/n each.

    Returns:
        W2^2, 0-d, in squared units of the points.

    Raises:
        ValueError: The shapes do not fit, or the masses are negative or of different totals.

    Example:
        >>> import torch
        >>> wasserstein_sq(torch.tensor([[0.0], [1.0]]), torch.tensor([[1.0], [2.0]]))
        tensor(1.)
    """
    if X.ndim != 2 or Y.ndim != 2 or X.shape[1] != Y.shape[1] or not len(X) or not len(Y):
        raise ValueError(
            "X and Y must be nonempty matrices (m, D) and (n, D) of one dimension D, got shapes "
            f"{tuple(X.shape)} and {tuple(Y.shape)}"
        )
    if a is None and b is None and len(X) == len(Y):
        sigma = transport.solve(X.detach(), Y.detach(), None).to(Y.device)
        return (X - Y[sigma]).square().sum(1).mean()
    i, j, mass = _optimal_plan(X.detach(), Y.detach(), a, b)
    return (mass.to(X) * (X[i.to(X.device)] - Y[j.to(Y.device)]).square().sum(1)).sum()


def _optimal_plan(
    X: Tensor, Y: Tensor, a: Tensor | None, b: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the entries (i, j, mass) of an optimal plan, by POT's network simplex."""
    import ot

    masses = []
    for name, given, points in (("a", a, X), ("b", b, Y)):
        if given is None:
            given = X.new_full((len(points),), 1.0 / len(points))
        if given.shape != (len(points),) or not bool((given >= 0).all()):
            raise ValueError(
                f"{name} must be ({len(points)},) masses >= 0, one per point, got shape "
                f"{tuple(given.shape)} with minimum {given.min().item() if given.numel() else None}"
            )
        masses.append(given.detach().to("cpu", torch.float64))
    total_a, total_b = (mass.sum().item() for mass in masses)
    if abs(total_a - total_b) > 1e-6 * max(total_a, total_b):
        raise ValueError(f"a and b must have one total mass, got {total_a} and {total_b}")
    masses[1] *= total_a / total_b  # the simplex method wants them equal to the last bit
    X64, Y64 = (P.to("cpu", torch.float64) - X.mean(0).to("cpu", torch.float64) for P in (X, Y))
    cost = torch.cdist(X64, Y64, compute_mode="donot_use_mm_for_euclid_dist").square()
    plan = torch.from_numpy(
        ot.emd(masses[0].numpy(), masses[1].numpy(), cost.numpy(), numItermax=10_000_000)
    )
    i, j = plan.nonzero(as_tuple=True)
    return i, j, plan[i, j]
