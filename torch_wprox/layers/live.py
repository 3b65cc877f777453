"""Which module a bare parameter belongs to."""

from __future__ import annotations

import weakref
from typing import Generic, TypeVar

from torch import nn

M = TypeVar("M", bound=nn.Module)


class LiveModules(Generic[M]):
    """The modules of one kind that are alive, without keeping them alive.

    Attributes of a Parameter do not survive deepcopy, ``.double()`` or
    ``load_state_dict(assign=True)``; the module that owns it does know. So an optimizer that is
    handed bare parameters asks the modules that are alive.
    """

    def __init__(self) -> None:
        self._modules: weakref.WeakSet[M] = weakref.WeakSet()

    def register(self, module: M) -> None:
        """Remember a module for as long as it lives."""
        self._modules.add(module)

    def by_parameter(self) -> dict[int, M]:
        """Return every parameter, by id, of every module that is alive, with its module."""
        return {
            id(parameter): module
            for module in list(self._modules)
            for parameter in module._parameters.values()
            if parameter is not None
        }
