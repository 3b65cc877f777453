"""The frame of every optimizer of this package: a step that runs its closure many times."""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, ClassVar, Generic, TypeVar

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from torch_wprox.closure.guards import (
    FOREIGN_GRADIENTS,
    NO_GRADIENTS,
    GradientWatch,
    callers_level,
    checked_groups,
    coarse_types_warning,
)
from torch_wprox.closure.ranks import process_group_of
from torch_wprox.closure.runner import CLOSURE_HELP, Closure, ClosureRunner
from torch_wprox.closure.saved_state import checked_saved_groups
from torch_wprox.closure.watch import (
    LOGGER,
    Callback,
    Watch,
    checked_callback,
    checked_seconds,
)

Report = TypeVar("Report")

_STATE_HOOKS = (
    "_optimizer_state_dict_pre_hooks",
    "_optimizer_state_dict_post_hooks",
    "_optimizer_load_state_dict_pre_hooks",
    "_optimizer_load_state_dict_post_hooks",
)


class ClosureOptimizer(Optimizer, ABC, Generic[Report]):
    """An optimizer whose step evaluates its closure as one function, several times.

    The frame of a step: refuse what cannot work, warn once of what misleads, run the closure with
    the same random numbers and on all ranks alike, and after an exception put parameters and state
    back. What a step does, and which state it keeps, is said by five methods of a subclass:
    ``_trained``, ``_take``, ``_own_state``, ``_checked_state`` and ``_adopt``.

    Args:
        params: Parameters, named parameters or groups, as for any torch optimizer.
        defaults: Options of a group and their values.
        process_group: "auto" (the default group if torch.distributed is initialised), None, or the
            group of the ranks that step together.
        callback: Called as a step goes on, with a :class:`~torch_wprox.Progress`; a true answer
            ends the step at its best point. None: nobody listens.
        seconds: Time budget of one step; when it is up, the step ends at the best point so far.

    Attributes:
        report: What the last step said of itself, None before the first.
        callback: As given; may be changed between steps. Copies and pickles leave it behind.
        seconds: As given; may be changed between steps.
    """

    _section: ClassVar[str]
    """Key of the subclass's own part of the state dict."""

    def __init__(
        self,
        params: Any,
        defaults: dict[str, Any],
        *,
        process_group: Any,
        callback: Callback | None,
        seconds: float | None,
    ) -> None:
        self.callback = checked_callback(callback)
        self.seconds = checked_seconds(seconds)
        process_group_of(process_group)  # a wrong choice is refused now, not at the first step
        self.report: Report | None = None
        self._process_group = process_group
        self._watch = GradientWatch()
        self._warned: set[str] = set()
        self._had_gradients = False
        if isinstance(params, nn.Module) or not isinstance(params, Iterable):
            raise TypeError(
                "params must be parameters or groups, such as model.parameters(), got "
                f"{type(params).__name__}"
            )
        super().__init__(params, defaults)

    @abstractmethod
    def _trained(self) -> list[Tensor]:
        """Return the parameters that a step may move, checked."""

    @abstractmethod
    def _take(
        self, runner: ClosureRunner, parameters: list[Tensor], snapshot: list[Tensor], watch: Watch
    ) -> Report:
        """Take one step.

        Args:
            runner: Runs the closure; it runs last at the accepted parameters.
            parameters: Those of `_trained`, at the anchor; moved to the accepted point.
            snapshot: Copies of them at the anchor.
            watch: Told of every evaluation; ends the step early.
        """

    @abstractmethod
    def _own_state(self) -> dict[str, Any]:
        """Return the subclass's part of the state: tensors and plain values."""

    @abstractmethod
    def _checked_state(self, saved: Mapping[str, Any]) -> dict[str, Any]:
        """Return ``saved``, completed where it lacks something, if it fits this optimizer.

        Raises:
            ValueError: It does not fit, or is corrupt.
        """

    @abstractmethod
    def _adopt(self, state: dict[str, Any]) -> None:
        """Take over a state that `_checked_state` returned."""

    @torch.no_grad()
    def step(self, closure: Closure | None = None) -> Any:
        """Take one step.

        Args:
            closure: Clears the gradients, computes the loss, calls backward, returns the loss. It
                runs several times, the last time at the accepted parameters.

        Returns:
            The first loss (at the anchor), detached.

        Raises:
            RuntimeError: ``closure`` is missing or returns no loss. After an exception inside the
                closure the parameters are back at the anchor.
            TypeError: ``closure`` cannot be called.
            ValueError: A parameter group holds a value out of range.
        """
        if closure is None:
            raise RuntimeError(
                f"{type(self).__name__}.step needs a closure:\n{CLOSURE_HELP}\n"
                "Some frameworks call step() without one. Hugging Face Trainer and ignite's "
                "create_supervised_trainer: the page on frameworks in the documentation has the "
                "lines that change it. Gradient scalers (precision 16-mixed, DeepSpeed): use "
                'precision "bf16-mixed" or "32-true"'
            )
        if not callable(closure):
            raise TypeError(
                f"closure must be a function that returns the loss, got {closure!r}:\n"
                f"{CLOSURE_HELP}"
            )
        checked_groups(self.param_groups)
        parameters = self._trained()
        self._say_of_the_parameters(parameters)
        runner = ClosureRunner(closure, parameters, process_group_of(self._process_group))
        snapshot = [p.detach().clone() for p in parameters]
        state = self._own_state()
        watch = Watch(checked_callback(self.callback), checked_seconds(self.seconds), runner.agree)
        try:
            with runner.arithmetic():
                self.report = self._take(runner, parameters, snapshot, watch)
        except BaseException:
            restore(parameters, snapshot)
            self._adopt(state)
            raise
        finally:
            runner.finish()
        self._watch.remember(parameters)
        self._say_of_the_closure(runner.objection)
        LOGGER.info("%s: %s", type(self).__name__, self.report)
        if watch.interrupt is not None:
            raise watch.interrupt
        return runner.first_loss

    def state_dict(self) -> dict[str, Any]:
        """Return the state: plain values and tensors, loads with ``weights_only=True``.

        Hooks see all of it, the optimizer's own part included.
        """
        with self._hooks_aside() as hooks:
            for hook in hooks["_optimizer_state_dict_pre_hooks"].values():
                hook(self)
            state = super().state_dict()
            state[self._section] = self._own_state()
            for hook in hooks["_optimizer_state_dict_post_hooks"].values():
                changed = hook(self, state)
                state = state if changed is None else changed
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a state; options that it lacks keep their present values.

        Raises:
            TypeError: It is no dictionary.
            ValueError: It is corrupt, or another optimizer's, or was saved with other options or
                groups. Nothing has changed then.
        """
        if not isinstance(state_dict, Mapping):
            raise TypeError(
                f"state_dict must be the dictionary that {type(self).__name__}.state_dict() "
                f"returned, got {type(state_dict).__name__}"
            )
        with self._hooks_aside() as hooks:
            state = dict(state_dict)
            for hook in hooks["_optimizer_load_state_dict_pre_hooks"].values():
                changed = hook(self, state)
                state = state if changed is None else changed
            self._load(state)
            for hook in hooks["_optimizer_load_state_dict_post_hooks"].values():
                hook(self)

    def _load(self, state: dict[str, Any]) -> None:
        saved = checked_saved_groups(state, self._section, self.param_groups, type(self).__name__)
        own = self._checked_state(state.get(self._section, {}))
        if len(saved) == len(self.param_groups):  # else the base class says so
            options = [{k: v for k, v in g.items() if k != "params"} for g in self.param_groups]
            saved = [{**o, **s} for o, s in zip(options, saved, strict=True)]
        super().load_state_dict({"state": state["state"], "param_groups": saved})
        # Not through the base class, which casts tensors to the dtype of a parameter.
        self._adopt(own)

    @contextmanager
    def _hooks_aside(self) -> Iterator[dict[str, Any]]:
        """Keep the base class from running the hooks on a state without the section."""
        hooks = {name: getattr(self, name) for name in _STATE_HOOKS}
        for name in _STATE_HOOKS:
            setattr(self, name, OrderedDict())
        try:
            yield hooks
        finally:
            for name, kept in hooks.items():
                setattr(self, name, kept)

    def _say_of_the_parameters(self, parameters: list[Tensor]) -> None:
        if "accumulation" not in self._warned and self._watch.sees_foreign(parameters):
            self._say_once("accumulation", FOREIGN_GRADIENTS)
        if "coarse" not in self._warned and (coarse := coarse_types_warning(parameters)):
            self._say_once("coarse", coarse)

    def _say_of_the_closure(self, objection: tuple[str, str] | None) -> None:
        # One step without gradients after others that had some may be meant: Lightning's weight
        # averaging recomputes the statistics of BatchNorm by one that has no backward.
        had, self._had_gradients = (
            self._had_gradients,
            objection is None or objection[0] != NO_GRADIENTS,
        )
        if objection is not None and (objection[0] != NO_GRADIENTS or not had):
            self._say_once(*objection)

    def _say_once(self, key: str, message: str) -> None:
        """Warn at the user's line, once in the life of this optimizer for every ``key``."""
        if key not in self._warned:
            self._warned.add(key)
            warnings.warn(message, stacklevel=callers_level())

    def __getstate__(self) -> dict[str, Any]:
        """Return all attributes: the base class would drop ours (hooks stay behind, as there)."""
        kept = {k: v for k, v in self.__dict__.items() if not k.startswith("_optimizer_")}
        kept["callback"] = None  # it belongs to the running program, often to its screen
        kept["_watch"] = GradientWatch()  # gradients are not copied with their parameters
        if not isinstance(self._process_group, str | None):
            kept["_process_group"] = "auto"  # a group cannot leave its process
        return kept


def restore(parameters: list[Tensor], snapshot: list[Tensor]) -> None:
    """Write ``snapshot`` back into ``parameters``, whatever the closure has put in their place."""
    for p, saved in zip(parameters, snapshot, strict=True):
        if p.shape == saved.shape and p.dtype == saved.dtype:
            p.copy_(saved)
        else:
            p.data = saved
