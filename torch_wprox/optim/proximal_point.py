"""The proximal point step as a torch optimizer: what both distances share."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from torch_wprox.closure.guards import (
    GradientWatch,
    checked_groups,
    checked_step_size,
    checked_weight_decay,
    chosen_step_size,
    warn_if_coarse,
)
from torch_wprox.closure.ranks import process_group_of
from torch_wprox.closure.runner import CLOSURE_HELP, Closure, ClosureRunner
from torch_wprox.distances.base import Distance
from torch_wprox.objective import Objective
from torch_wprox.optim import step, warm_start
from torch_wprox.optim.blocks import blocks_of
from torch_wprox.optim.catalog import distance_named, solver_named
from torch_wprox.particles import layouts
from torch_wprox.particles.flat import FlatLoss, FlatParameters
from torch_wprox.report import Status, StepReport, unmoved
from torch_wprox.solvers.base import Solver
from torch_wprox.solvers.stopping import Stopping


class ProximalPoint(Optimizer):
    """Proximal point steps in a squared distance between clouds of layouts.

    One call of :meth:`step` returns an approximate minimiser of

        P(V) = F(V) + sum_c d_c(V, W) / (2 gamma_c),

    where F is what the closure returns, W are the parameters before the step and d_c is the squared
    distance of the c-th cloud (mass 1/m per particle) or |V - W|^2 for a plain tensor. P(V) <= P(W)
    = F(W) whatever gamma is: no step size can diverge. Users take :class:`WassersteinProx` or
    :class:`FrobeniusProx`, which say what the arguments mean.

    Attributes:
        report: The :class:`~torch_wprox.StepReport` of the last step, None before the first.
    """

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
        classes: str | Tensor | None,
        weight_decay: float,
        max_eval: int,
        tolerance_grad: float,
        inexact: float | None,
        process_group: Any,
    ) -> None:
        step_size = chosen_step_size(gamma, lr)
        if isinstance(max_eval, bool) or not isinstance(max_eval, int) or max_eval < 1:
            raise ValueError(f"max_eval must be an integer >= 1, got {max_eval!r}")
        self.report: StepReport | None = None
        self._distance = distance_named(distance)
        self._solver = solver_named(solver)
        self._classes = classes
        self._max_eval = max_eval
        self._stopping = Stopping(tolerance_grad, inexact)
        self._process_group = process_group
        self._carried: warm_start.Carried | None = None
        self._length: float | None = None
        self._watch = GradientWatch()
        self._warned: set[str] = set()
        process_group_of(process_group)  # a wrong choice is refused now, not at the first step
        weight_decay = checked_weight_decay(weight_decay)
        super().__init__(params, {"lr": step_size, "weight_decay": weight_decay, "layout": "auto"})

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group; its dict may say ``gamma`` (or ``lr``), ``weight_decay`` and ``layout``.

        Raises:
            ValueError: ``gamma`` and ``lr`` are both given and differ, or a value is out of range.
        """
        if isinstance(param_group, dict) and "gamma" in param_group:
            param_group = dict(param_group)
            gamma = param_group.pop("gamma")
            if param_group.setdefault("lr", gamma) != gamma:
                raise ValueError(
                    f"a parameter group has gamma={gamma!r} and lr={param_group['lr']!r}: they are "
                    "two names of one step size, give one of them"
                )
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        try:
            group["lr"] = checked_step_size("gamma", group["lr"])
            group["weight_decay"] = checked_weight_decay(group["weight_decay"])
            if group["layout"] == "auto":
                group["layout"] = layouts.layout_of(group["params"], warn=self._exchanges)
            layouts.views_of_group(group["params"], group["layout"], self._classes)
        except BaseException:
            self.param_groups.pop()  # a refused group leaves the optimizer as it was
            raise

    @torch.no_grad()
    def step(self, closure: Closure | None = None) -> Any:
        """Take one proximal step.

        Args:
            closure: Clears the gradients, computes the loss, calls backward, returns the loss. It
                runs up to ``max_eval`` times, the last time at the accepted parameters.

        Returns:
            The first loss (at the anchor), detached.

        Raises:
            RuntimeError: ``closure`` is missing or returns no loss. After an exception inside the
                closure the parameters are back at the anchor.
        """
        if closure is None:
            raise RuntimeError(
                f"{type(self).__name__}.step needs a closure:\n{CLOSURE_HELP}\n"
                "Gradient scalers (precision 16-mixed, DeepSpeed) call step() without one: use "
                'precision "bf16-mixed" or "32-true" there'
            )
        checked_groups(self.param_groups)
        parameters = [p for g in self.param_groups for p in g["params"] if p.requires_grad]
        if "accumulation" not in self._warned and self._watch.warn_if_foreign(parameters):
            self._warned.add("accumulation")
        if "coarse" not in self._warned and warn_if_coarse(parameters):
            self._warned.add("coarse")
        runner = ClosureRunner(closure, parameters, process_group_of(self._process_group))
        snapshot = [p.detach().clone() for p in parameters]
        distance_state = self._distance.state_dict()
        try:
            with runner.arithmetic():
                self.report = self._minimised(runner, parameters, snapshot)
        except BaseException:
            _restore(parameters, snapshot)
            self._distance.load_state_dict(distance_state)
            raise
        finally:
            runner.finish()
        self._watch.remember(parameters)
        return runner.first_loss

    def _minimised(
        self, runner: ClosureRunner, parameters: list[Tensor], snapshot: list[Tensor]
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
        objective = Objective(
            blocks_of(flat, anchor, [group for _, group in movable], self._distance, runner.agree),
            function,
            anchor,
            loss,
            grad,
            budget=self._max_eval - 2,  # one is spent, one is kept for the accepted point
            agree=runner.agree,
            length=self._length,
        )
        memory = warm_start.recall(self._carried, loss, grad)
        status, memory = step.minimized(objective, self._solver, self._stopping, memory)
        length = warm_start.learnt_length(objective, self._length)
        accepted = objective.best
        end = objective.project(accepted.point)
        if accepted is not objective.last or not function.is_current:
            function(end)  # logs, buffers and gradients are those of the accepted parameters
        carried = (
            None
            if memory is None
            else warm_start.Carried(memory, runner.last_loss.item(), flat.read_grad(end))
        )
        if accepted is objective.start:
            _restore(parameters, snapshot)  # to the bit, whatever the coordinates of the view
        if status is Status.NONFINITE:
            self._say_nonfinite(objective.start.loss)
        self._carried, self._length = carried, length
        return step.report_of(objective, status, accepted, runner.runs)

    def _movable_views(self) -> list[tuple[layouts.View, dict[str, Any]]]:
        """Return the views that may move, with their groups: gamma > 0 and a gradient."""
        return [
            (view, group)
            for group in self.param_groups
            if float(group["lr"]) > 0
            for view in layouts.views_of_group(group["params"], group["layout"], self._classes)
            if any(p.grad is not None for p in view.parameters)
        ]

    def state_dict(self) -> dict[str, Any]:
        """Return the state: plain values and tensors, loads with ``weights_only=True``."""
        state = super().state_dict()
        state["prox"] = {
            "distance": self._distance.name,
            "solver": self._solver.name,
            "distance_state": self._distance.state_dict(),
            "carried": None if self._carried is None else self._carried.state_dict(),
            "length": self._length,
        }
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a state; options that it lacks keep their present values.

        Raises:
            ValueError: It comes from another distance or solver, or from other groups.
        """
        prox = state_dict.get("prox", {})
        for name, own in (("distance", self._distance.name), ("solver", self._solver.name)):
            if prox.get(name, own) != own:
                raise ValueError(
                    f"the state was saved with {name}={prox[name]!r}, this optimizer has "
                    f"{name}={own!r}: construct it with the same {name}"
                )
        present = [dict(group) for group in self.param_groups]
        super().load_state_dict({k: v for k, v in state_dict.items() if k != "prox"})
        for group, before in zip(self.param_groups, present, strict=True):
            for option, value in before.items():
                group.setdefault(option, value)
        # Not through the base class, which casts tensors to the dtype of a parameter.
        self._distance.load_state_dict(prox.get("distance_state", {}))
        carried = prox.get("carried")
        self._carried = None if carried is None else warm_start.Carried.from_state_dict(carried)
        self._length = prox.get("length")

    def __getstate__(self) -> dict[str, Any]:
        """Return all attributes: the base class would drop ours (hooks stay behind, as there)."""
        kept = {k: v for k, v in self.__dict__.items() if not k.startswith("_optimizer_")}
        kept["_watch"] = GradientWatch()  # gradients are not copied with their parameters
        if not isinstance(self._process_group, str | None):
            kept["_process_group"] = "auto"  # a group cannot leave its process
        return kept

    def _say_nonfinite(self, loss: float) -> None:
        if "nonfinite" not in self._warned:
            self._warned.add("nonfinite")
            warnings.warn(
                f"the loss ({loss}) or its gradient is not finite at the parameters: they were "
                "not moved. report.status is 'nonfinite' at every such step, this warns once",
                stacklevel=6,
            )


def _restore(parameters: list[Tensor], snapshot: list[Tensor]) -> None:
    for p, saved in zip(parameters, snapshot, strict=True):
        p.copy_(saved)
