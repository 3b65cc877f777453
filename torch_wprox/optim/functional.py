"""The proximal step and the Wasserstein distance as functions of point clouds, no module needed."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from torch_wprox.closure.guards import checked_step_size, checked_weight_decay
from torch_wprox.distances.base import Distance
from torch_wprox.objective import Block, Objective
from torch_wprox.optim import step
from torch_wprox.optim.catalog import distance_named, solver_named
from torch_wprox.optim.optimizers import MAX_EVAL, TOLERANCE_GRAD
from torch_wprox.report import Status, StepReport, unmoved
from torch_wprox.solvers.base import Solver
from torch_wprox.solvers.stopping import Stopping


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
        return anchor, unmoved(loss.item(), status, 1)
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
        objective, solver_named(solver), Stopping(tolerance_grad, inexact), None
    )
    evaluations = max_eval - objective.evaluations_left
    report = step.report_of(objective, status, objective.best, evaluations)
    return objective.best.point.view(shape), report
