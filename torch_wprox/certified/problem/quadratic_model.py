"""A quadratic model of the loss as a function of the output, learnt from a few gradients."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from torch_wprox.certified.problem.particle_problem import Risk

# A loss that mixes samples has one dense Hessian; it is learnt column by column up to this size.
_DENSE_UP_TO = 256
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
        blocks: H, one symmetric block per sample (n, k, k), or a single one (1, n k, n k).
        is_exact: The loss was found to be this quadratic, to rounding.
    """

    centre: Tensor
    value: float
    grad: Tensor
    blocks: Tensor
    is_exact: bool

    def hessian(self, u: Tensor) -> Tensor:
        """Return H u for u (.., n, k)."""
        cut = u.reshape(*u.shape[:-2], self.blocks.shape[0], self.blocks.shape[1], 1)
        bent: Tensor = self.blocks @ cut
        return bent.reshape(u.shape)

    def root(self, u: Tensor) -> Tensor:
        """Return H^(1/2) u for u (.., n, k)."""
        eigenvalues, vectors = torch.linalg.eigh(self.blocks)
        root = (vectors * eigenvalues.clamp_min(0.0).sqrt().unsqueeze(-2)) @ vectors.mT
        return replace(self, blocks=root).hessian(u)

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
        right = self.grad.reshape(self.blocks.shape[0], self.blocks.shape[1], 1)
        step = torch.linalg.pinv(self.blocks, rtol=1e-10, hermitian=True) @ right
        minimizer: Tensor = self.centre - step.reshape(self.grad.shape)
        return minimizer


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
    model = QuadraticRisk(z, value, grad, _blocks(risk, z, grad, length), True)
    elsewhere = z + length * _wave(z)
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
        low, high = z, z + sign * length * _wave(z)
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
    model = _convex(QuadraticRisk(z, value, grad, _blocks(risk, z, grad, length), False))
    step = length * _wave(z)
    change, predicted = risk(z + step)[1] - grad, model.hessian(step)
    mixes = float((change - predicted).norm()) > 0.1 * float(change.norm())
    if not mixes or z.numel() > _DENSE_UP_TO:
        return model
    columns = []
    for j in range(z.numel()):
        probe = z.clone()
        probe.view(-1)[j] += length
        columns.append((risk(probe)[1] - grad).reshape(-1) / length)
    H = torch.stack(columns, 1)
    return _convex(replace(model, blocks=(0.5 * (H + H.T)).unsqueeze(0)))


def _convex(model: QuadraticRisk) -> QuadraticRisk:
    eigenvalues, vectors = torch.linalg.eigh(model.blocks)
    blocks = (vectors * eigenvalues.clamp_min(0.0).unsqueeze(-2)) @ vectors.mT
    return replace(model, blocks=blocks)


def _wave(z: Tensor) -> Tensor:
    """A fixed direction that no regular set of probes contains, like z (n, k)."""
    steps = torch.arange(z.numel(), dtype=z.dtype, device=z.device).reshape(z.shape)
    return (1.7 * steps + 0.6).sin()


def _blocks(risk: Risk, z: Tensor, grad: Tensor, length: float) -> Tensor:
    columns = []
    for c in range(z.shape[1]):
        probe = z.clone()
        probe[:, c] += length
        columns.append((risk(probe)[1] - grad) / length)
    blocks = torch.stack(columns, 2)
    return 0.5 * (blocks + blocks.mT)
