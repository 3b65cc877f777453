"""A quadratic model of the loss as a function of the output, learnt from a few gradients."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from torch_wprox.certified.problem.particle_problem import Risk
from torch_wprox.closure.block_hessian import (
    BlockHessian,
    hessian_by_sample,
    learnt_hessian,
    wave,
)

# A loss that mixes samples has one dense Hessian; it is learnt column by column up to this size.
_DENSE_UP_TO = 256
# Samples are mixed where their blocks alone miss this share of a change of the gradient. A bound
# needs no better model, and n k gradients more are a high price for one.
_MIXES = 0.1
# Twelve halvings leave 1/4096 of a smooth change, and the whole jump of one kink among at most 50.
_HALVINGS, _JUMP, _NOTICEABLE = 12, 0.02, 1e-3
# Rounding of a model that is the loss itself, in units in the last place of the largest term.
_SAME = 1e3


@dataclass(frozen=True)
class QuadraticRisk:
    """R(z) = value + <grad, z - z0> + (1/2)<z - z0, H (z - z0)>, H block diagonal.

    Attributes:
        centre: z0 (n, k).
        value: R(z0).
        grad: grad R(z0), (n, k).
        hessian: H.
        is_exact: The loss was found to be this quadratic, to rounding.
    """

    centre: Tensor
    value: float
    grad: Tensor
    hessian: BlockHessian
    is_exact: bool

    def root(self, u: Tensor) -> Tensor:
        """Return H^(1/2) u for u (.., n, k)."""
        return self.hessian.root()(u)

    def __call__(self, z: Tensor) -> tuple[float, Tensor]:
        """Return the model's value and gradient at z (n, k)."""
        u = z - self.centre
        bent = self.hessian(u)
        value = self.value + float((u * (self.grad + 0.5 * bent)).sum())
        return value, self.grad + bent

    def values_and_grads(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Return the model's values (..) and gradients (.., n, k) at z (.., n, k)."""
        u = z - self.centre
        bent = self.hessian(u)
        values = self.value + (u * (self.grad + 0.5 * bent)).flatten(-2).sum(-1)
        return values, self.grad + bent

    def values(self, z: Tensor) -> Tensor:
        """Return the model's values (..) at z (.., n, k)."""
        return self.values_and_grads(z)[0]

    def agrees(self, z: Tensor, value: float, grad: Tensor, precision: float) -> bool:
        """Return whether R(z) and grad R(z) are the model's own, up to rounding.

        Args:
            z: Where R was evaluated, (n, k).
            value: R(z).
            grad: grad R(z).
            precision: Relative rounding error of both.
        """
        expected, slope = self(z)
        size = float(grad.abs().max()) + float(self.grad.abs().max())
        error = float((grad - slope).abs().max())
        off = abs(value - expected)
        return error <= _SAME * precision * size and off <= _SAME * precision * (
            abs(value) + abs(self.value)
        )

    def minimizer(self) -> Tensor:
        """Return the minimiser of least distance to the centre, (n, k)."""
        return self.centre - self.hessian.pseudo_inverse()(self.grad)


def learn_quadratic(risk: Risk, z: Tensor, precision: float) -> QuadraticRisk:
    """Learn the second-order model of R at z from k + 2 evaluations, if it is a squared error.

    Losses are sums over samples, so H is block diagonal, and one column of all blocks at once is a
    difference of two gradients. A squared error is its own model, at any distance: the probes are
    long, and a point that they did not see tells whether the loss is a quadratic. If not,
    :func:`local_quadratic` probes again, nearer.

    Args:
        risk: The loss.
        z: Where, (n, k).
        precision: Relative rounding error of the loss's gradient.

    Returns:
        The model; ``is_exact`` says whether R is that quadratic.
    """
    value, grad = risk(z)
    length = 1.0 + float(z.abs().max())
    H = hessian_by_sample(lambda probe: risk(probe)[1], z, grad, length)
    model = QuadraticRisk(z, value, grad, H, True)
    elsewhere = z + length * wave(z)
    if model.agrees(elsewhere, *risk(elsewhere), precision):
        return model
    return local_quadratic(risk, z, value, grad, precision)


def has_kink(risk: Risk, model: QuadraticRisk) -> bool:
    """Return whether the gradient of R jumps on a line through the model's centre.

    The line is halved, to the half in which the gradient changes more. Of a smooth loss the change
    shrinks with the length, at a kink most of it stays.

    Args:
        risk: The loss.
        model: Of it; the line has the length 1 + |z| at its centre z.
    """
    z, length = model.centre, 1.0 + float(model.centre.abs().max())
    for sign in (1.0, -1.0):
        low, high = z, z + sign * length * wave(z)
        at_low, at_high = model.grad, risk(high)[1]
        whole = float((at_high - at_low).norm())
        if whole <= _NOTICEABLE * float(at_low.norm()):
            continue
        for _ in range(_HALVINGS):
            middle = 0.5 * (low + high)
            at_middle = risk(middle)[1]
            if float((at_middle - at_low).norm()) >= float((at_high - at_middle).norm()):
                high, at_high = middle, at_middle
            else:
                low, at_low = middle, at_middle
            if float((at_high - at_low).norm()) <= _JUMP * whole:
                break  # it shrinks with the interval
        else:
            return True
    return False


def local_quadratic(
    risk: Risk, z: Tensor, value: float, grad: Tensor, precision: float
) -> QuadraticRisk:
    """Return the second-order model of R at z from k + 1 gradients, made positive semidefinite.

    The probes have the length that balances rounding and curvature. One gradient more tells whether
    the loss mixes samples; then H is learnt as one matrix if it has at most 256 rows.
    """
    length = math.sqrt(precision) * (1.0 + float(z.abs().max()))
    H = learnt_hessian(
        lambda probe: risk(probe)[1], z, grad, length, tolerance=_MIXES, dense_up_to=_DENSE_UP_TO
    )
    return QuadraticRisk(z, value, grad, H.convex(), False)
