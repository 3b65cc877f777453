"""The closure as a function of the layer's output: z -> R(z), grad R(z).

During one evaluation of the closure the layer answers z instead of its own output, and backward
leaves the gradient on z. Nothing about the loss is rewritten, so any loss works that depends on the
parameters through the output alone; whether it does is checked, not believed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from torch_wprox.certified.problem.convexity import ConvexityWatch
from torch_wprox.layers.mean_field import MeanFieldLayer

# Relative difference of two losses that should be the same number.
_SAME = 1e3


class OutputOracle:
    """R and its gradient at any output z of one layer.

    Args:
        layer: The layer whose output z is.
        parameters: Parameters that the step moves; ``run`` clears their gradients.
        run: One evaluation of the closure; returns the loss.
        count: Called before every evaluation; may raise when none is left.

    Attributes:
        features: X (n, d), the layer's input with a column of ones where neurons have a bias.
        output: The layer's own output at the start, (n, k).
        precision: Relative rounding error of the numbers that the closure returns.

    Raises:
        ValueError: The closure calls the layer not once, or the parameters reach the loss by
            another way than the layer's output.
    """

    def __init__(
        self,
        layer: MeanFieldLayer,
        parameters: Sequence[Tensor],
        run: Callable[[], Tensor],
        count: Callable[[], None],
    ) -> None:
        self._layer, self._run, self._count = layer, run, count
        count()
        with layer.observing() as seen:
            loss = float(run())
        if len(seen.calls) != 1:
            raise ValueError(
                f"the closure calls the layer {len(seen.calls)} times, the global solver needs one "
                "call per evaluation: pass the whole batch at once"
            )
        data, output = seen.calls[0]
        self._shape, self._dtype, self._device = output.shape, output.dtype, output.device
        flat = data.reshape(-1, layer.in_features).to(torch.float64)
        ones = flat.new_ones(len(flat), 1)
        self.features = torch.cat([flat, ones], 1) if layer.has_bias else flat
        self.output = output.reshape(-1, layer.out_features).to(torch.float64)
        self.precision = torch.finfo(output.dtype).eps
        self._watch = ConvexityWatch(self.precision)
        self._check(loss, parameters)

    def __call__(self, z: Tensor) -> tuple[float, Tensor]:
        """Return R(z) and grad R(z) (n, k) at z (n, k), by one evaluation of the closure.

        Raises:
            ValueError: R lies below one of its tangents, or has no gradient in z.
        """
        value, grad, seen = self._evaluated(z)
        self._watch.add(seen, value, grad)
        return value, grad

    def _evaluated(self, z: Tensor) -> tuple[float, Tensor, Tensor]:
        """Return R, grad R and the point that the closure saw, which its dtype has rounded."""
        self._count()
        leaf = z.detach().to(self._device, self._dtype).reshape(self._shape).clone()
        leaf.requires_grad_(True)
        with self._layer.substituting(leaf):
            loss = float(self._run())
        if leaf.grad is None:
            raise ValueError(
                "the loss has no gradient in the layer's output: call backward in the closure, and "
                "do not detach the output"
            )
        grad = leaf.grad.to(torch.float64).reshape(z.shape)
        return loss, grad, leaf.detach().to(torch.float64).reshape(z.shape)

    def _check(self, loss: float, watched: Sequence[Tensor]) -> None:
        """Substitute the layer's own output, also with moved parameters: nothing may change."""
        parameters = list(self._layer.parameters())
        before = [p.detach().clone() for p in parameters]
        try:
            same, _, _ = self._evaluated(self.output)
            reached = any(p.grad is not None and bool(p.grad.count_nonzero() > 0) for p in watched)
            with torch.no_grad():
                for p in parameters:
                    p.mul_(1.5).add_(0.5)
            moved, _, _ = self._evaluated(self.output)
        finally:
            with torch.no_grad():
                for p, saved in zip(parameters, before, strict=True):
                    p.copy_(saved)
        tolerance = _SAME * self.precision * max(abs(loss), abs(same), self.precision)
        if reached or abs(moved - same) > tolerance:
            raise ValueError(
                "the layer's parameters reach the loss by another way than the layer's output "
                "(weight decay inside the closure?): give weight_decay to the optimizer instead, "
                'or use solver="bfgs" or "lbfgs"'
            )
        if abs(same - loss) > tolerance:
            raise ValueError(
                f"the loss at the layer's own output is {same:.8g}, not {loss:.8g}: the closure "
                "is not a function of the output; the global solver cannot be used here"
            )
