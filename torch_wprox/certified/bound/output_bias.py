"""The loss minimised over an output bias that trains: one convex function of the neurons' output.

    R~(z) = min over c of  R(z + 1 c^T) + (mu/2)|c|^2

is convex, and the bounds of networks without a bias, applied to R~, are those of networks with one.
Its tangents come from those of R: from R(z' + 1 c^T) >= v + <lam, z' - z> + <s, c - c0>, where
s = lam^T 1, follows

    R~(z') >= v - <s, c0> + <lam, z' - z> - |s|^2/(2 mu),

and for mu = 0 only lam with s = 0 have a bound: multipliers sum to zero over the samples.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from torch_wprox.certified.bound.simplex_qp import simplex_qp
from torch_wprox.certified.problem.particle_problem import Risk
from torch_wprox.certified.problem.quadratic_model import (
    QuadraticRisk,
    learn_quadratic,
    local_quadratic,
)

# Evaluations of R for one of R~; a quadratic takes two.
_EVALUATIONS = 40
# Sums of multipliers below this many units in the last place of their sizes are zero.
_ULPS = 64.0
_RANK = 1e-10
# Of the Hessian, where the slope did not change over a whole step.
_FURTHER = 0.25


@dataclass(frozen=True)
class BiasedQuadratic:
    """A quadratic model of R, minimised over the bias: again a quadratic, but it mixes samples.

    Attributes:
        model: M, of R.
        stiffness: mu.
    """

    model: QuadraticRisk
    stiffness: float

    @property
    def is_exact(self) -> bool:
        """Whether R is this quadratic."""
        return self.model.is_exact

    @property
    def centre(self) -> Tensor:
        """Where M is centred, (n, k)."""
        return self.model.centre

    @property
    def value(self) -> float:
        """M~ at the centre."""
        return self(self.centre)[0]

    @property
    def grad(self) -> Tensor:
        """Its gradient there, (n, k)."""
        return self(self.centre)[1]

    def bend(self) -> Tensor:
        """Return the Hessian in the bias, (k, k)."""
        return _bend(self.model) + self.stiffness * torch.eye(
            self.centre.shape[1], dtype=self.centre.dtype, device=self.centre.device
        )

    def __call__(self, z: Tensor) -> tuple[float, Tensor]:
        """Return M~(z) and its gradient at z (n, k)."""
        _, slope = self.model(z)
        c = -self._inverse() @ slope.sum(0)
        value, grad = self.model(z + c)
        return value + 0.5 * self.stiffness * float(c.square().sum()), grad

    def hessian(self, u: Tensor) -> Tensor:
        """Return its Hessian times u (.., n, k)."""
        bent = self.model.hessian(u)
        c = bent.sum(-2) @ self._inverse()
        back = self.model.hessian(c.unsqueeze(-2).expand_as(u).contiguous())
        found: Tensor = bent - back
        return found

    def minimizer(self) -> Tensor:
        """Return the minimiser of M, which with c = 0 is one of M~, (n, k)."""
        return self.model.minimizer()

    def _inverse(self) -> Tensor:
        inverse: Tensor = torch.linalg.pinv(self.bend(), rtol=_RANK, hermitian=True)
        return inverse


class BiasedRisk:
    """R~ and its gradient, by a few evaluations of R.

    Args:
        risk: R and its gradient.
        stiffness: mu >= 0.
        offset: Bias (k,) where the first search begins; every other begins where one ended.
        precision: Relative rounding error of the gradient of R.

    Attributes:
        offset: The best bias (k,) of the last output.
        is_settled: Whether the last multipliers summed to what they must, up to rounding. If not
            (R has no minimum over the bias, or kinks and several outputs), what was returned is
            no function below R~.
    """

    def __init__(self, risk: Risk, stiffness: float, offset: Tensor, precision: float) -> None:
        self._risk, self._stiffness, self._precision = risk, stiffness, precision
        self.offset = offset
        self.is_settled = True
        self._bend: Tensor | None = None

    def learned(self, z: Tensor) -> BiasedQuadratic:
        """Return the model from long probes, exact if R is a quadratic."""
        return self._taken(learn_quadratic(self._risk, z + self.offset, self._precision))

    def modelled(self, z: Tensor) -> BiasedQuadratic:
        """Return the second-order model at z (n, k) and the bias there."""
        self(z)
        at = z + self.offset
        return self._taken(local_quadratic(self._risk, at, *self._risk(at), self._precision))

    def require_settled(self) -> None:
        """Check that the last multipliers summed to what they must.

        Raises:
            ValueError: They did not, so that no bound follows.
        """
        if not self.is_settled:
            raise ValueError(
                "no bound was found while the output bias trains without a penalty: the loss has "
                "no minimum over the bias, or kinks in several outputs. Give weight_decay, which "
                "penalises the bias, or hold it by output_bias.requires_grad_(False)"
            )

    def _taken(self, model: QuadraticRisk) -> BiasedQuadratic:
        found = BiasedQuadratic(model, self._stiffness)
        self._bend = found.bend()
        return found

    def __call__(self, z: Tensor) -> tuple[float, Tensor]:
        """Return R~(z) and its gradient at z (n, k): the height and slope of a function below it.

        BFGS in the k numbers of the bias, from the Hessian of the last model. The line search looks
        at slopes, which are exact where values no longer tell.
        """
        c = self.offset
        met = [self._tangent(z, c)]
        bend = torch.eye(len(c), dtype=c.dtype, device=c.device)
        bend = bend if self._bend is None else self._bend
        while len(met) < _EVALUATIONS and not self._is_zero(met[-1]):
            here = met[-1]
            slope = here.slope(self._stiffness)
            step = -torch.linalg.pinv(bend, rtol=_RANK, hermitian=True) @ slope
            down = float(step @ slope)
            if not down < 0:
                break
            share = 1.0
            while True:
                there = self._tangent(z, here.offset + share * step)
                met.append(there)
                after = float(step @ there.slope(self._stiffness))
                if after <= -0.5 * down or len(met) >= _EVALUATIONS:
                    break
                share *= min(0.9, max(0.1, down / (down - after)))
            moved = there.offset - here.offset
            turned = there.slope(self._stiffness) - slope
            if not float(moved @ turned) > 0:  # R is flat there: go further
                bend = _FURTHER * bend
                continue
            bent = bend @ moved
            bend = bend + torch.outer(turned, turned) / (moved @ turned)
            bend = bend - torch.outer(bent, bent) / (moved @ bent)
        self.offset = met[-1].offset
        return self._below(met)

    def _tangent(self, z: Tensor, c: Tensor) -> _Tangent:
        value, lam = self._risk(z + c)
        return _Tangent(c, value, lam, lam.sum(0))

    def _is_zero(self, t: _Tangent) -> bool:
        size = t.multiplier.abs().sum() + self._stiffness * t.offset.abs().sum()
        rounding = _ULPS * self._precision * float(size)
        return float(t.slope(self._stiffness).abs().max()) <= rounding

    def _below(self, met: list[_Tangent]) -> tuple[float, Tensor]:
        """Return height at z and slope of the best function below R~ that tangents of R make."""
        last = met[-1]
        self.is_settled = self._is_zero(last) or self._stiffness > 0
        chosen, weights = [last], torch.ones(1, dtype=last.sums.dtype)
        if not self._is_zero(last):
            chosen, weights = self._mixed(met)
        weights = weights.to(last.sums)
        sums = weights @ torch.stack([t.sums for t in chosen])
        lam = torch.einsum("t,tnk->nk", weights, torch.stack([t.multiplier for t in chosen]))
        height = sum(
            float(w) * (t.value - float(t.sums @ t.offset))
            for w, t in zip(weights, chosen, strict=True)
        )
        if self._stiffness > 0:
            return height - float(sums.square().sum()) / (2.0 * self._stiffness), lam
        if not self.is_settled:
            rounding = _ULPS * self._precision * float(lam.abs().sum())
            self.is_settled = float(sums.abs().max()) <= rounding
        # Rounding leaves a sum that is not quite zero; the bias it is charged for is that found.
        return height + float(sums @ last.offset), lam

    def _mixed(self, met: list[_Tangent]) -> tuple[list[_Tangent], Tensor]:
        """Return tangents and weights: at a kink the sums of several cancel, not those of one."""
        if len(self.offset) == 1:
            heights = [t.value - float(t.sums * t.offset) for t in met]
            slopes = [float(t.sums) for t in met]
            # max over w of sum w (height) - |sum w s|^2/(2 mu): the lowest point of the upper
            # envelope in c lies on one line or between two.
            best, pair, mix = -np.inf, (len(met) - 1, len(met) - 1), 1.0
            for i, a in enumerate(slopes):
                for j, b in enumerate(slopes):
                    if not a > b or (self._stiffness == 0 and not a > 0 >= b):
                        continue
                    w = -b / (a - b)
                    if self._stiffness > 0:
                        rise = (heights[i] - heights[j]) * self._stiffness / (a - b) ** 2
                        w = min(1.0, max(0.0, w + rise))
                    s = w * a + (1.0 - w) * b
                    found = w * heights[i] + (1.0 - w) * heights[j]
                    if self._stiffness > 0:
                        found -= s * s / (2.0 * self._stiffness)
                    if found > best:
                        best, pair, mix = found, (i, j), w
            i, j = pair
            return [met[i], met[j]], torch.tensor([mix, 1.0 - mix], dtype=torch.float64)
        near = met[-4 * len(self.offset) :]
        S = torch.stack([t.slope(self._stiffness) for t in near]).cpu().numpy()
        shares = simplex_qp(S @ S.T / max(float(np.square(S).max()), 1e-300), np.zeros(len(S)))
        return near, torch.from_numpy(shares)


@dataclass(frozen=True)
class _Tangent:
    """R at z + 1 c^T: c, R, lam and its sums over the samples, (k,)."""

    offset: Tensor
    value: float
    multiplier: Tensor
    sums: Tensor

    def slope(self, stiffness: float) -> Tensor:
        """Return the gradient of R + (mu/2)|c|^2 in c, (k,)."""
        return self.sums + stiffness * self.offset


def _bend(model: QuadraticRisk) -> Tensor:
    """Return E^T H E (k, k) for E c = 1 c^T."""
    k = model.centre.shape[1]
    eye = torch.eye(k, dtype=model.centre.dtype, device=model.centre.device)
    shifts = eye.unsqueeze(1).expand(k, *model.centre.shape).contiguous()
    found: Tensor = model.hessian(shifts).sum(-2)
    return 0.5 * (found + found.T)
