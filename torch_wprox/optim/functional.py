"""The proximal step of a function of a point cloud, no module needed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from torch_wprox.arguments import checked_count
from torch_wprox.closure.guards import checked_step_size, checked_weight_decay, is_no_step
from torch_wprox.closure.watch import Callback, Watch, checked_callback, checked_seconds
from torch_wprox.distances.base import Distance
from torch_wprox.objective import Block, Objective
from torch_wprox.optim import step
from torch_wprox.optim.catalog import distance_named, solver_named
from torch_wprox.optim.effort import FULL
from torch_wprox.optim.optimizers import TOLERANCE_GRAD
from torch_wprox.particles.layouts import labels_of
from torch_wprox.particles.views import compute_dtype
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
    classes: Tensor | Sequence[int] | None = None,
    weight_decay: float = 0.0,
    max_eval: int = FULL,
    tolerance_grad: float = TOLERANCE_GRAD,
    inexact: float | None = None,
    callback: Callback | None = None,
    seconds: float | None = None,
) -> tuple[Tensor, StepReport]:
    r"""Take one proximal step of a function of a point cloud.

    .. math:: V \approx \arg\min_V f(V) + \frac{d(V, W)}{2\gamma}, \qquad
        f(V) + \frac{d(V, W)}{2\gamma} \le f(W)

    for f = ``fn``.

    Args:
        fn: A cloud (m, D) to a 0-d tensor, differentiable by autograd.
        W: Anchor, (m, D), floating point; each row has mass 1/m.
        gamma: Step size, >= 0 (0: no move).
        distance: "emd", "frobenius", "sinkhorn", "sliced", or an object with options.
        solver: "auto", "gd", "adam", "bfgs", "lbfgs", "map", or an object with options.
        classes: Integer labels (m,): only rows of equal label are exchangeable. None: all are.
        weight_decay: fn gets (weight_decay/2)|V|^2.
        max_eval: Evaluations of ``fn`` allowed.
        tolerance_grad: Converged when |grad P| <= tolerance_grad |grad fn(W)|.
        inexact: rho of the rule |grad P| <= rho |V - W_sigma|/(m gamma), None to switch it off.
        callback: Called at every evaluation with a :class:`~torch_wprox.Progress`; a true answer
            ends the step at its best point.
        seconds: Time budget; when it is up, the best point so far is the answer.

    Returns:
        V (m, D), detached, and the report of the step.

    Raises:
        TypeError: An argument is of the wrong kind.
        ValueError: ``W`` is not a matrix of floating point, or an option is out of range.
        RuntimeError: What ``fn`` returns does not depend on its argument through autograd.

    Example:
        >>> import torch
        >>> V, report = prox(lambda V: V.square().sum() / 2, torch.ones(1, 2), 1.0)
        >>> V
        tensor([[0.5000, 0.5000]])

    Source: the note (Mercklé 2024), equation (28).
    """
    if not callable(fn):
        raise TypeError(f"fn must be a function of the cloud, got {fn!r}")
    if not isinstance(W, Tensor):
        raise TypeError(f"W must be a tensor (m, D), got {type(W).__name__}: torch.as_tensor(W)")
    if W.ndim != 2 or not W.is_floating_point():
        raise ValueError(
            f"W must be a floating point matrix (m, D), got shape {tuple(W.shape)} and {W.dtype}"
        )
    gamma = float(checked_step_size("gamma", gamma))
    weight_decay = checked_weight_decay(weight_decay)
    max_eval = checked_count("max_eval", max_eval)
    labels = labels_of(classes, W)
    chosen_distance, chosen_solver = distance_named(distance), solver_named(solver)
    stopping = Stopping(tolerance_grad, inexact)
    watch = Watch(checked_callback(callback), checked_seconds(seconds))
    # As in the optimizers: coarser types compute in float32, and what comes out is rounded.
    kind, shape = W.dtype, W.shape
    anchor = W.detach().to(compute_dtype(W), copy=True)

    def loss_and_grad(x: Tensor) -> tuple[Tensor, Tensor]:
        V = x.detach().view(shape).to(kind).requires_grad_()
        with torch.enable_grad():
            loss = _checked_loss(fn(V))
            [grad] = torch.autograd.grad(loss, V, allow_unused=True)
        if grad is None:
            raise RuntimeError(_NO_GRADIENT)
        return loss.detach().reshape(()), grad.to(x).reshape(-1)

    loss, grad = loss_and_grad(anchor)
    if W.numel() == 0 or is_no_step(gamma, anchor.dtype):
        status = Status.NO_MOVE if loss.isfinite() else Status.NONFINITE
        return anchor.to(kind), unmoved(loss.item(), status, 1)
    block = Block(
        start=0,
        m=shape[0],
        D=shape[1],
        gamma=gamma,
        weight_decay=weight_decay,
        distance=chosen_distance.anchored(anchor, labels),
        is_cloud=True,
        classes=labels,
    )
    objective = Objective(
        (block,),
        loss_and_grad,
        anchor.reshape(-1),
        loss,
        grad,
        budget=max_eval - 1,
        watch=watch,
    )
    status, _ = step.minimized(objective, chosen_solver, stopping, None)
    evaluations = max_eval - objective.evaluations_left
    report = step.report_of(objective, status, objective.best, evaluations, max_eval=max_eval)
    return objective.best.point.view(shape).to(kind), report


_NO_GRADIENT = (
    "fn must depend on its argument through autograd, and what it returned does not: compute it "
    "from V with torch operations, without .detach(), .item() or torch.no_grad()"
)


def _checked_loss(loss: Any) -> Tensor:
    if not isinstance(loss, Tensor):
        raise TypeError(f"fn must return a 0-d tensor, got {type(loss).__name__}: {_NO_GRADIENT}")
    if loss.numel() != 1 or loss.is_complex():
        raise ValueError(
            f"fn must return one real number, got shape {tuple(loss.shape)} of {loss.dtype}: "
            "reduce it (.mean() or .sum(); .real or .abs() if it is complex)"
        )
    if not loss.requires_grad:
        raise RuntimeError(_NO_GRADIENT)
    return loss
