"""A layer whose output can be watched, or replaced: what lets a closure be read as z -> R(z)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from torch import Size, Tensor, nn


class SubstituteShapeError(ValueError):
    """The tensor that is substituted has not the shape of the layer's output."""


@dataclass
class Observation:
    """The calls of a layer inside one ``with layer.observing()`` block.

    Attributes:
        calls: One ``(input, output)`` pair per call, in order, both detached.
    """

    calls: list[tuple[Tensor, Tensor]] = field(default_factory=list)


class OutputSubstitution(nn.Module):
    """A module that can answer a given tensor z instead of its own output.

    A closure that depends on the parameters through this layer alone is a function R of the
    layer's output z. One evaluation of it inside ``substituting(z)`` returns R(z), and its backward
    leaves grad R(z) in ``z.grad``. Subclasses implement ``compute`` and ``output_shape``;
    ``forward`` belongs to this class.

    Example:
        >>> import torch
        >>> from torch_wprox.layers.mean_field import MeanFieldLayer
        >>> layer = MeanFieldLayer(2, width=4)
        >>> x, z = torch.ones(3, 2), torch.zeros(3, 1, requires_grad=True)
        >>> with layer.substituting(z), layer.observing() as seen:
        ...     (layer(x) - 1).square().sum().backward()
        >>> z.grad.flatten().tolist(), len(seen.calls)
        ([-2.0, -2.0, -2.0], 1)
    """

    # Class attributes, so that neither pickles nor copies carry them outside of a `with` block.
    _substitute: Tensor | None = None
    _observation: Observation | None = None

    def compute(self, input: Tensor) -> Tensor:
        """The layer's own output."""
        raise NotImplementedError

    def output_shape(self, input: Tensor) -> Size:
        """The shape of ``compute(input)``."""
        raise NotImplementedError

    def forward(self, input: Tensor) -> Tensor:
        """The layer's output, or the tensor that is substituted for it."""
        z = self.compute(input) if self._substitute is None else self._answer(input)
        if self._observation is not None:
            self._observation.calls.append((input.detach(), z.detach()))
        return z

    def _answer(self, input: Tensor) -> Tensor:
        z, expected = self._substitute, self.output_shape(input)
        assert z is not None
        if z.shape != expected:
            raise SubstituteShapeError(
                f"z must have the shape of the layer's output, {tuple(expected)}, got "
                f"{tuple(z.shape)}: take it from `observing()` on the same batch, and call the "
                "layer once per evaluation"
            )
        return z

    @contextmanager
    def substituting(self, z: Tensor) -> Iterator[None]:
        """Make every call inside the block return ``z``, a tensor of the output's shape."""
        # Through __dict__: Module.__setattr__ would register a Parameter z as a parameter.
        before = self.__dict__.get("_substitute")
        self.__dict__["_substitute"] = z
        try:
            yield
        finally:
            self._put_back("_substitute", before)

    @contextmanager
    def observing(self) -> Iterator[Observation]:
        """Record the calls inside the block; the block's value has them as ``calls``."""
        before = self.__dict__.get("_observation")
        seen = Observation()
        self.__dict__["_observation"] = seen
        try:
            yield seen
        finally:
            self._put_back("_observation", before)

    def _put_back(self, name: str, before: object | None) -> None:
        if before is None:
            self.__dict__.pop(name, None)
        else:
            self.__dict__[name] = before
