"""JKO steps of a grid layer as a torch optimizer."""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from torch_wprox.arguments import checked_number
from torch_wprox.closure.guards import chosen_step_size
from torch_wprox.closure.optimizer import ClosureOptimizer
from torch_wprox.closure.ranks import process_group_of
from torch_wprox.closure.runner import ClosureRunner
from torch_wprox.closure.watch import Callback, Watch
from torch_wprox.jko.debiased import FLAT
from torch_wprox.jko.plan import Plan
from torch_wprox.jko.step import MethodName, StepOptions, take_step
from torch_wprox.layers.grid import GridLayer, checked_measure
from torch_wprox.report import JKOReport, Status

# f is said to stall after this many steps that each lower it by less than a thousandth.
_STALLED_STEPS, _STALLED_BY = 3, 1e-3

_log = logging.getLogger(__name__)


class EntropicJKO(ClosureOptimizer[JKOReport]):
    r"""Entropic JKO steps: the Wasserstein gradient flow of a :class:`~torch_wprox.GridLayer`.

    .. math:: p_{t+1} = \arg\min_p\; W_\varepsilon(p, p_t) + \tau f(p), \qquad \tau = 2\gamma,

    W_eps the entropic transport cost for c = |x - y|^2 inside every block (sign), f what the
    closure returns. The mass of every block never changes; W_eps(p, q) + tau f(p) never rises (f
    itself can when epsilon/tau is large: ``debiased`` steps never raise it). A step spreads mass
    by a variance epsilon/2 along every axis, so let a step move mass over several cells.

    Args:
        layer: The grid layer; its ``weight`` is the only parameter of the optimizer.
        gamma: Step size, >= 0 (0: no move), 1 by default, as in the proximal optimizers:
            f + W^2/(2 gamma).
        epsilon: Entropic regularisation in squared units of the axes. None: 2 dx^2, dx the
            largest spacing. Below dx^2 displacements lock to whole cells, and a warning says so.
        lr: Another name of ``gamma``; ``gamma`` wins when both are given.
        method: "newton": on the semi-dual, whose unknowns are the multipliers of the outputs;
            "lbfgs": the same for many outputs (hundreds and more); "krylov": Newton-Krylov on the
            grid, for a closure that uses the weights beside the output; "dykstra":
            Algorithm 1 of the note, corrected, as a reference.
        debiased: Take the Sinkhorn divergence instead of W_eps: no spreading, f never rises.
        tolerance: On the relative residual; None: epsilon_machine^(5/8) of the weight's dtype,
            2e-10 or 5e-5. The rounds of a debiased step end when the objective is about this share
            of its terms above its minimum; None: 3e-5.
        max_iterations: Of the method; None: 50 (newton, krylov), 500 (lbfgs), 20000 (dykstra).
        max_rounds: Of a debiased step; the status is "max_iter" where they are used up.
        precision: dtype in which the step is computed, whatever the dtype of the weight.
        process_group: As in the proximal optimizers. With several ranks only method="krylov".
        callback: Called at every iteration with a :class:`~torch_wprox.Progress`, whose objective
            is W_eps + tau f; a true answer ends the step there.
        seconds: Time budget of one step.

    Attributes:
        report: The :class:`~torch_wprox.JKOReport` of the last step, None before the first.
        plan: The entropic plan of the last step, None before the first.

    Raises:
        TypeError: ``layer`` is no GridLayer.
        ValueError: An argument is out of range; the message says the remedy.

    Example:
        >>> import torch_wprox
        >>> axis = torch.linspace(-4, 4, 11, dtype=torch.float64)
        >>> layer = torch_wprox.GridLayer([axis, axis], dtype=torch.float64)
        >>> x = torch.linspace(-0.5, 0.5, 5, dtype=torch.float64)[:, None]
        >>> y = torch.sin(10 * x - torch.pi / 2) + 0.2 * x - 0.5
        >>> opt = torch_wprox.EntropicJKO(layer, gamma=1.0, epsilon=1.0)
        >>> def closure():
        ...     opt.zero_grad()
        ...     loss = (layer(x) - y).square().mean()
        ...     loss.backward()
        ...     return loss
        >>> loss = opt.step(closure)
        >>> round(opt.report.loss_before, 6), round(opt.report.loss_after, 6)
        (0.736926, 0.571403)

    Source: the note (Mercklé 2024), sections 9.1 and 11.2; Peyré, Entropic approximation of
    Wasserstein gradient flows, 2015.
    """

    _section = "jko"

    def __init__(
        self,
        layer: GridLayer,
        gamma: float | None = None,
        epsilon: float | None = None,
        *,
        lr: float | Tensor | None = None,
        method: MethodName = "newton",
        debiased: bool = False,
        tolerance: float | None = None,
        max_iterations: int | None = None,
        max_rounds: int = 100,
        precision: torch.dtype = torch.float64,
        process_group: Any = "auto",
        callback: Callback | None = None,
        seconds: float | None = None,
    ) -> None:
        if not isinstance(layer, GridLayer):
            raise TypeError(f"layer must be a torch_wprox.GridLayer, got {type(layer).__name__}")
        if layer.weight.dtype not in (torch.float32, torch.float64):
            raise ValueError(
                f"layer must have float32 or float64 weights, got {layer.weight.dtype}: fewer "
                "digits lose mass"
            )
        step_size = chosen_step_size(gamma, lr)
        if precision not in (torch.float32, torch.float64):
            raise ValueError(f"precision must be torch.float64 or torch.float32, got {precision!r}")
        finest = max(torch.finfo(t).eps for t in (precision, layer.weight.dtype))
        self._options = StepOptions(
            method=method,
            epsilon=_checked_epsilon(epsilon, layer),
            debiased=debiased,
            tolerance=finest**0.625 if tolerance is None else tolerance,
            flat=FLAT if tolerance is None else tolerance,
            max_iterations=max_iterations,
            max_rounds=max_rounds,
            precision=precision,
        )
        self.plan: Plan | None = None
        self._layer = layer
        self._stalled = 0
        super().__init__(
            [layer.weight],
            {"lr": step_size},
            process_group=process_group,
            callback=callback,
            seconds=seconds,
        )

    @property
    def layer(self) -> GridLayer:
        """The layer that the optimizer moves."""
        return self._layer

    @property
    def epsilon(self) -> float:
        """Entropic regularisation in force."""
        return self._options.epsilon

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add the one group; refuse any other."""
        if self.param_groups:
            raise ValueError(
                "EntropicJKO moves the weight of its layer and nothing else: give other parameters "
                "an optimizer of their own"
            )
        super().add_param_group(param_group)

    def _trained(self) -> list[Tensor]:
        weight = self._weight()
        checked_measure(weight)
        group = process_group_of(self._process_group)
        if group is not None and self._options.method != "krylov":
            raise RuntimeError(
                f'method="{self._options.method}" needs the outputs of all ranks in one process: '
                'use method="krylov" with several ranks'
            )
        return [weight]

    def _take(
        self, runner: ClosureRunner, parameters: list[Tensor], snapshot: list[Tensor], watch: Watch
    ) -> JKOReport:
        tau = 2.0 * float(self.param_groups[0]["lr"])
        report, self.plan = take_step(self._layer, runner, tau, self._options, watch)
        self._say_what_happened(report, parameters[0])
        return report

    def _weight(self) -> Tensor:
        weight: Tensor = self.param_groups[0]["params"][0]
        if weight is not self._layer.weight:
            raise RuntimeError(
                "layer.weight is another tensor than when the optimizer was made "
                "(load_state_dict(assign=True)?): make the optimizer again"
            )
        return weight

    def _say_what_happened(self, report: JKOReport, weight: Tensor) -> None:
        if report.status is Status.NONFINITE:
            self._say_once(
                "nonfinite",
                f"the loss ({report.loss_before}) or its gradient is not finite at the weights: "
                "they were not moved. report.status is 'nonfinite' at every such step, this warns "
                "once",
            )
        elif report.status is Status.STALLED and self.plan is None:
            self._say_once(
                "above",
                f'method="{self._options.method}" found no measure below the anchor: the weights '
                'were not moved. Take method="newton" or a smaller gamma. report.status is '
                "'stalled' at every such step, this warns once",
            )
        elif report.status is Status.MAX_ITER and report.rounds < self._options.max_rounds:
            self._say_once(
                "max_iter",
                f'method="{self._options.method}" ended after max_iterations='
                f"{self._options.iterations} with residual {report.residual:.3g}; the measure has "
                "the right mass. report.status is 'max_iter' at every such step, this warns once",
            )
        if report.status not in (Status.NONFINITE, Status.NO_MOVE):
            self._watch_stall(report.loss_before, report.loss_after, weight)

    def _watch_stall(self, before: float, after: float, weight: Tensor) -> None:
        """Warn when f stalls although a larger M would lower it.

        The output u is proportional to M: <grad h(u), u> = <grad f(p), p> is the derivative of f in
        log M.
        """
        self._stalled = self._stalled + 1 if after > (1 - _STALLED_BY) * before else 0
        if self._stalled < _STALLED_STEPS or weight.grad is None:
            return
        along_mass = float((weight.grad.double() * weight.double()).sum())
        if along_mass < -_STALLED_BY * abs(after):
            largest = float(self._layer.cells.norm(dim=1).max())
            self._say_once(
                "stall",
                f"f stalls at {after:.6g} and a larger mass would lower it: the grid holds "
                f"networks of path norm up to mass * max|w| = {self._layer.mass * largest:.6g} "
                "only. Make the layer with a larger mass or wider axes",
            )

    def _own_state(self) -> dict[str, Any]:
        return {
            "method": self._options.method,
            "debiased": self._options.debiased,
            "epsilon": self.epsilon,
            "stalled": self._stalled,
        }

    def _checked_state(self, saved: Mapping[str, Any]) -> dict[str, Any]:
        for name in ("method", "debiased", "epsilon"):
            own = getattr(self._options, name)
            if saved.get(name, own) != own:
                raise ValueError(
                    f"the state was saved with {name}={saved[name]!r}, this optimizer has "
                    f"{name}={own!r}: construct it with the same {name}"
                )
        stalled = saved.get("stalled", 0)
        if isinstance(stalled, bool) or not isinstance(stalled, int) or stalled < 0:
            raise ValueError(f"the state is corrupt: stalled must be a count, got {stalled!r}")
        return {"stalled": stalled}

    def _adopt(self, state: dict[str, Any]) -> None:
        self._stalled = state["stalled"]

    def __repr__(self) -> str:
        """Say the options and the step size."""
        return (
            f"EntropicJKO(gamma={float(self.param_groups[0]['lr'])}, epsilon={self.epsilon}, "
            f"method={self._options.method!r}, debiased={self._options.debiased})"
        )


def _checked_epsilon(epsilon: float | None, layer: GridLayer) -> float:
    largest = max(layer.spacing)
    if epsilon is None:
        epsilon = 2 * largest**2 if largest > 0 else 1.0
        _log.info("epsilon=None: took 2 dx^2 = %g", epsilon)
        return epsilon
    epsilon = checked_number(
        "epsilon", epsilon, "> 0 (or None: 2 dx^2)", lambda e: 0 < e < math.inf
    )
    if epsilon < largest**2:
        warnings.warn(
            f"epsilon={epsilon:g} is below dx^2 = {largest**2:g}: the grid locks, displacements "
            "round to whole cells. Take epsilon >= dx^2 (epsilon=None: 2 dx^2) or a finer grid",
            stacklevel=4,
        )
    return epsilon
