"""The closure as a function of the layer's output: z -> R(z), grad R(z).

During one evaluation of the closure the layer answers z instead of its own output, and backward
leaves the gradient on z. Nothing about the loss is rewritten, so any loss works that depends on the
parameters through the output alone; whether it does is checked, not believed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from torch_wprox.certified.problem.convexity import ConvexityWatch
from torch_wprox.closure.ranks import ALONE, Ranks
from torch_wprox.layers.mean_field import MeanFieldLayer
from torch_wprox.layers.substitution import Observation, SubstituteShapeError

_REMEDY = 'Use solver="bfgs" or "lbfgs" here, which need no such function'
_ANOTHER_WAY = (
    "the layer's parameters reach the loss by another way than the layer's output "
    "(weight decay inside the closure?): give weight_decay to the optimizer instead, "
    'or use solver="bfgs" or "lbfgs"'
)
# (factor, shift) of the parameters under which the loss at a given output must not change: a
# penalty may look at sizes, at signs, or at how many are not zero.
_MOVEMENTS = ((1.5, 0.5), (-1.0, 0.0), (0.0, 0.0), (100.0, 1.0))
# Evaluations of one function agree to the bit; kernels that sum in an order of their own, to this
# many units in the last place.
_SAME = 32.0


class OutputOracle:
    """R and its gradient at any output z of one layer.

    The closure is run once as it is and then with z in the place of the layer's output. That it is
    one function of the output is checked: the layer's input must be the same in every evaluation,
    the loss at the layer's own output that of the closure, and no movement of the parameters may
    change it.

    Among several ranks every one holds some of the samples, and R is the mean of their losses: z is
    the output on all of them, the first rank's first.

    Args:
        layer: The layer whose output z is.
        parameters: Parameters that the step moves; ``run`` clears their gradients.
        run: One evaluation of the closure; returns the loss.
        count: Called before every evaluation; may raise when none is left.
        ranks: Those that evaluate together.

    Attributes:
        features: X (n, d), the layer's input on all ranks, with a column of ones where neurons
            have a bias.
        output: The layer's own output at the start, (n, k).
        dtype: Of that output.
        precision: Relative rounding error of the numbers that the closure returns.
        watch: All that was evaluated last, and whether a convex function can have these values.

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
        ranks: Ranks = ALONE,
    ) -> None:
        self._layer, self._run, self._count, self._ranks = layer, run, count, ranks
        self._trained = [p for p in parameters if p.requires_grad]
        count()
        with layer.observing() as seen:
            loss = float(run())
        several: ValueError | None = None
        if len(seen.calls) != 1:
            several = ValueError(
                f"the closure calls the layer {len(seen.calls)} times, the global solver needs one "
                "call per evaluation: pass the whole batch at once"
            )
        ranks.raise_together(several)
        data, output = seen.calls[0]
        self._input = data.clone()  # the closure may write into its batch
        self._shape, self.dtype, self._device = output.shape, output.dtype, output.device
        flat = self._input.reshape(-1, layer.in_features).to(torch.float64)
        ones = flat.new_ones(len(flat), 1)
        self._sizes = ranks.sizes(len(flat))
        flat = torch.cat([flat, ones], 1) if layer.has_bias else flat
        self.features = ranks.joined(flat, self._sizes)
        self.output = self._joined(output)
        self.precision = torch.finfo(output.dtype).eps
        self.watch = ConvexityWatch(self.precision)
        self._first = loss
        self._anchor = [p.detach().clone() for p in layer.parameters()]
        self._check(loss, parameters)

    def __call__(self, z: Tensor) -> tuple[float, Tensor]:
        """Return R(z) and grad R(z) (n, k) at z (n, k), by one evaluation of the closure.

        The closure sees z rounded to its own type, s. What is returned as R(z) is the height of the
        tangent at s, R(s) + <grad R(s), z - s>, so that value and gradient are those of one affine
        function that lies below R.

        Raises:
            ValueError: R lies below one of its tangents, or has no gradient in z.
        """
        value, grad, seen = self._evaluated(z)
        self._note(seen, value, grad)
        return value + float((grad * (z - seen)).sum()), grad

    @contextmanager
    def watching(self) -> Iterator[Observation]:
        """Evaluate the closure at the layer's own parameters; the block's value sees the output.

        Raises:
            ValueError: The layer's input is not that of the first evaluation.
        """
        with self._layer.observing() as seen:
            yield seen
        self._ranks.raise_together(self._changed_input(seen))

    def require_output_alone(self, loss: float, seen: Observation) -> None:
        """Check F(V) = R(z(V)) at the parameters V evaluated last.

        Args:
            loss: F(V), without the weight decay of the optimizer.
            seen: What the layer was seen to answer.

        Raises:
            ValueError: R at that output is another number.
        """
        z = self._joined(seen.calls[0][1])
        value, grad, at = self._evaluated(z)
        if not self._same(value, loss):
            raise ValueError(
                f"the layer's parameters reach the loss by another way than the layer's output: it "
                f"is {loss:.8g} at the parameters found but {value:.8g} at their output (a penalty "
                "on the parameters inside the closure, or a closure that is not one function?). "
                f"{_REMEDY}"
            )
        self._note(at, value, grad)

    def require_repeatable(self) -> None:
        """Check that the first loss comes again.

        Raises:
            ValueError: It does not.
        """
        self._require_one_function(self._first, self._evaluated(self.output)[0])

    def require_same_start(self, loss: float) -> None:
        """Check that the first evaluation here repeats one that was made before.

        Args:
            loss: What the closure returned then, at the same parameters.

        Raises:
            ValueError: It does not.
        """
        self._require_one_function(loss, self._first)

    def _require_one_function(self, before: float, now: float) -> None:
        if not self._same(before, now):
            raise ValueError(
                f"the closure is not one function: at the same output its loss was {before:.8g} "
                f"and is now {now:.8g} (a batch that changes, random numbers that torch does not "
                f"make?). Compute on one batch per step. {_REMEDY}"
            )

    def _note(self, z: Tensor, value: float, grad: Tensor) -> None:
        try:
            self.watch.add(z, value, grad)
        except ValueError:
            self.require_repeatable()  # a closure that changes is not convex either
            raise

    def _same(self, a: float, b: float) -> bool:
        return a == b or abs(a - b) <= _SAME * self.precision * max(abs(a), abs(b))

    def _joined(self, output: Tensor) -> Tensor:
        """Return the output (n, k) on all ranks from what the layer answered on this one."""
        mine = output.reshape(-1, self._layer.out_features).to(torch.float64)
        return self._ranks.joined(mine, self._sizes)

    def _changed_input(self, seen: Observation) -> ValueError | None:
        if len(seen.calls) != 1:
            return ValueError(
                f"the closure called the layer once and now {len(seen.calls)} times: it is not one "
                f"function of the layer's output. {_REMEDY}"
            )
        now, before = seen.calls[0][0], self._input
        if now.shape != before.shape:
            return ValueError(
                f"the layer's input changed its shape from {tuple(before.shape)} to "
                f"{tuple(now.shape)} during the step: compute on one batch per step. {_REMEDY}"
            )
        if torch.equal(now, before):
            return None
        change = float((now - before).abs().max())
        if change <= _SAME * torch.finfo(before.dtype).eps * float(before.abs().max()):
            return None
        return ValueError(
            f"the layer's input changed by {change:.3g} during the step: the closure is not "
            "one function (a batch that changes, noise that torch does not make?). Compute on "
            f"one batch per step. {_REMEDY}"
        )

    def _move_to(self, values: Sequence[Tensor]) -> None:
        with torch.no_grad():
            for p, value in zip(self._layer.parameters(), values, strict=True):
                p.copy_(value)

    def _evaluated(
        self, z: Tensor, at: Sequence[Tensor] | None = None
    ) -> tuple[float, Tensor, Tensor]:
        """Return R, grad R and the point that the closure saw, which its dtype has rounded.

        The layer's parameters are those of the start, or ``at``: were they the ones whose output is
        z, nothing would tell F(V) from R(z(V)).
        """
        self._count()
        self._move_to(self._anchor if at is None else at)
        mine = self._ranks.own(z.detach(), self._sizes)
        leaf = mine.to(self._device, self.dtype).reshape(self._shape).clone()
        leaf.requires_grad_(True)
        with self.watching(), self._layer.substituting(self._answer(leaf)):
            try:
                loss = float(self._run())
            except SubstituteShapeError as error:
                raise ValueError(
                    "the layer's input changed its shape during the step: compute on one batch per "
                    f"step. {_REMEDY}"
                ) from error
        missing: ValueError | None = None
        if leaf.grad is None:
            missing = ValueError(
                "the loss has no gradient in the layer's output: call backward in the closure, and "
                "do not detach the output"
            )
        self._ranks.raise_together(missing)
        assert leaf.grad is not None
        return loss, self._joined(leaf.grad / self._ranks.count), self._joined(leaf.detach())

    def _answer(self, leaf: Tensor) -> Tensor:
        """Return what the layer answers in the place of its output.

        DistributedDataParallel waits for a gradient of every parameter, and gets zeros.
        """
        if self._ranks.group is None:
            return leaf
        with torch.enable_grad():
            nothing = sum(((0.0 * p).sum().to(leaf) for p in self._trained), leaf.new_zeros(()))
            return leaf + nothing

    def _check(self, loss: float, watched: Sequence[Tensor]) -> None:
        """Substitute the layer's own output, also with moved parameters: nothing may change."""
        same, _, _ = self._evaluated(self.output)
        reached = any(p.grad is not None and bool(p.grad.count_nonzero() > 0) for p in watched)
        if reached:
            raise ValueError(_ANOTHER_WAY)
        if not self._same(same, loss):
            raise ValueError(
                f"the loss at the layer's own output is {same:.8g}, not {loss:.8g}: the closure "
                f"is not a function of the output; the global solver cannot be used here. {_REMEDY}"
            )
        try:
            for factor, shift in _MOVEMENTS:
                moved = [factor * p + shift for p in self._anchor]
                value, _, _ = self._evaluated(self.output, moved)
                if not self._same(value, same):
                    raise ValueError(_ANOTHER_WAY)
        finally:
            self._move_to(self._anchor)
