"""The proximal point step as a torch optimizer: what both distances share."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from torch_wprox.arguments import as_number, checked_count
from torch_wprox.closure.guards import (
    checked_step_size,
    checked_weight_decay,
    chosen_step_size,
    group_step_size,
    is_no_step,
)
from torch_wprox.closure.optimizer import ClosureOptimizer, restore
from torch_wprox.closure.runner import ClosureRunner
from torch_wprox.closure.watch import Callback, Watch
from torch_wprox.distances.base import Distance
from torch_wprox.objective import Objective
from torch_wprox.optim import effort, step, warm_start
from torch_wprox.optim.blocks import blocks_of
from torch_wprox.optim.catalog import distance_named, solver_named
from torch_wprox.particles import layouts
from torch_wprox.particles.flat import FlatLoss, FlatParameters
from torch_wprox.report import Status, StepReport, unmoved
from torch_wprox.solvers.base import Solver
from torch_wprox.solvers.stopping import Stopping


class ProximalPoint(ClosureOptimizer[StepReport]):
    r"""Proximal point steps in a squared distance between clouds of particles.

    One call of :meth:`step` returns an approximate minimiser of

    .. math:: P(V) = F(V) + \sum_c \frac{d_c(V, W)}{2\gamma_c},

    where F is what the closure returns, W are the parameters before the step and d_c is the squared
    distance of the c-th cloud (mass 1/m per particle) or |V - W|^2 for a plain tensor. P(V) <= P(W)
    = F(W) whatever gamma is: no step size can diverge. Users take :class:`WassersteinProx` or
    :class:`FrobeniusProx`, which say what the arguments mean.

    Attributes:
        report: The :class:`~torch_wprox.StepReport` of the last step, None before the first.

    Example:
        >>> import torch, torch_wprox
        >>> issubclass(torch_wprox.WassersteinProx, ProximalPoint)
        True
    """

    _section = "prox"
    _exchanges = False
    """Whether the distance exchanges particles, so that a group without a cloud deserves a word."""

    def __init__(
        self,
        params: Any,
        gamma: float | None,
        *,
        lr: float | Tensor | None,
        distance: str | Distance,
        solver: str | Solver,
        classes: layouts.Classes,
        weight_decay: float,
        max_eval: int | None,
        tolerance_grad: float,
        inexact: float | None,
        process_group: Any,
        callback: Callback | None = None,
        seconds: float | None = None,
    ) -> None:
        step_size = chosen_step_size(gamma, lr)
        self._distance = distance_named(distance)
        self._solver = solver_named(solver)
        self._classes = layouts.checked_classes(classes)
        self._max_eval = None if max_eval is None else checked_count("max_eval", max_eval)
        self._stopping = Stopping(tolerance_grad, inexact)
        self._carried: warm_start.Carried | None = None
        self._length: float | None = None
        defaults = {
            "lr": step_size,
            "weight_decay": checked_weight_decay(weight_decay),
            "layout": "auto",
        }
        if layouts.module_of(params) is not None:
            params = [{"params": params}]  # add_param_group sees whose parameters they are
        super().__init__(
            params, defaults, process_group=process_group, callback=callback, seconds=seconds
        )

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group; its dict may say ``gamma`` (or ``lr``), ``weight_decay`` and ``layout``.

        Raises:
            ValueError: ``gamma`` and ``lr`` are both given and differ, or a value is out of range.
        """
        module = None
        if isinstance(param_group, dict):
            module = layouts.module_of(param_group.get("params"))
            param_group = group_step_size(param_group)
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        try:
            group["lr"] = checked_step_size("gamma", group["lr"])
            group["weight_decay"] = checked_weight_decay(group["weight_decay"])
            if group["layout"] == "auto":
                group["layout"] = layouts.layout_of(group["params"], warn=self._exchanges)
                if group["layout"] == "cloud" and self._exchanges:
                    layouts.warn_of_lone_matrix(module, group["params"])
            layouts.views_of_group(group["params"], group["layout"], self._classes)
        except BaseException:
            self.param_groups.pop()  # a refused group leaves the optimizer as it was
            raise

    def _trained(self) -> list[Tensor]:
        return [p for g in self.param_groups for p in g["params"] if p.requires_grad]

    def _take(
        self, runner: ClosureRunner, parameters: list[Tensor], snapshot: list[Tensor], watch: Watch
    ) -> StepReport:
        """Evaluate at the anchor, let the solver minimise, accept the best point it evaluated."""
        loss = runner()
        movable = self._movable_views()
        if not movable:
            status = Status.NO_MOVE if loss.isfinite() else Status.NONFINITE
            return unmoved(loss.item(), status, runner.runs)
        flat = FlatParameters([view for view, _ in movable])
        anchor = flat.read()
        grad = flat.read_grad(anchor)
        function = FlatLoss(flat, runner)
        is_same_loss = warm_start.is_same_loss(self._carried, loss, grad)
        max_eval = effort.allowed(self._max_eval, is_same_loss, self._solver)
        objective = Objective(
            blocks_of(flat, anchor, [group for _, group in movable], self._distance, runner.agree),
            function,
            anchor,
            loss,
            grad,
            budget=max_eval - 2,  # one is spent, one is kept for the accepted point
            agree=runner.agree,
            length=self._length,
            watch=watch,
        )
        memory = warm_start.recall(self._carried, loss, grad)
        status, memory = step.minimized(objective, self._solver, self._stopping, memory)
        length = warm_start.learnt_length(objective, self._length)
        accepted = objective.best
        end = objective.project(accepted.point)
        if accepted is not objective.last or not function.is_current:
            function(end)  # logs, buffers and gradients are those of the accepted parameters
        carried = warm_start.Carried(memory, runner.last_loss.item(), flat.read_grad(end))
        if accepted is objective.start:
            restore(parameters, snapshot)  # to the bit, whatever the coordinates of the view
        if status is Status.NONFINITE:
            self._say_once(
                "nonfinite",
                f"the loss ({objective.start.loss}) or its gradient is not finite at the "
                "parameters: they were not moved. report.status is 'nonfinite' at every such step, "
                "this warns once",
            )
        self._carried, self._length = carried, length
        return step.report_of(
            objective,
            status,
            accepted,
            runner.runs,
            max_eval=max_eval,
            is_same_loss=is_same_loss,
        )

    def _movable_views(self) -> list[tuple[layouts.View, dict[str, Any]]]:
        """Return the views that may move, with their groups: gamma > 0 and a gradient."""
        return [
            (view, group)
            for group in self.param_groups
            for view in layouts.views_of_group(group["params"], group["layout"], self._classes)
            if not is_no_step(float(group["lr"]), view.dtype)
            and any(p.grad is not None for p in view.parameters)
        ]

    def __repr__(self) -> str:
        """Say what a step is, and the groups."""
        options = f"distance={self._distance!r}, solver={self._solver!r}, max_eval={self._max_eval}"
        return super().__repr__().replace("(", f"({options}", 1)

    def _own_state(self) -> dict[str, Any]:
        return {
            "distance": self._distance.name,
            "solver": self._solver.name,
            "distance_state": self._distance.state_dict(),
            "carried": None if self._carried is None else self._carried.state_dict(),
            "length": self._length,
        }

    def _checked_state(self, saved: Mapping[str, Any]) -> dict[str, Any]:
        for name, own in (("distance", self._distance.name), ("solver", self._solver.name)):
            if saved.get(name, own) != own:
                raise ValueError(
                    f"the state was saved with {name}={saved[name]!r}, this optimizer has "
                    f"{name}={own!r}: construct it with the same {name}"
                )
        length, carried = saved.get("length"), saved.get("carried")
        distance_state = saved.get("distance_state", {})
        number = as_number(length)
        if length is not None and (number is None or not 0 < number < math.inf):
            raise ValueError(f"the state is corrupt: length must be a number > 0, got {length!r}")
        if carried is not None:
            warm_start.Carried.from_state_dict(carried)
        before = self._distance.state_dict()
        try:
            self._distance.load_state_dict(distance_state)
        except (AttributeError, KeyError, RuntimeError, TypeError, ValueError) as wrong:
            raise ValueError(
                f"the state is corrupt: distance={self._distance.name!r} cannot take its "
                f"distance_state ({wrong})"
            ) from wrong
        finally:
            self._distance.load_state_dict(before)
        return {"distance_state": distance_state, "carried": carried, "length": length}

    def _adopt(self, state: dict[str, Any]) -> None:
        self._distance.load_state_dict(state["distance_state"])
        carried = state["carried"]
        self._carried = None if carried is None else warm_start.Carried.from_state_dict(carried)
        self._length = state["length"]
