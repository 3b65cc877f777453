"""Small random steps of every kind, and closures and losses that no certificate may believe."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from torch_wprox import FrobeniusProx, MeanFieldLayer, StepReport, WassersteinProx
from torch_wprox.layers.parameterizations import PARAMETERIZATIONS

F64 = torch.float64
FORMS = [name for name, form in PARAMETERIZATIONS.items() if form.is_homogeneous]
Loss = Callable[[Tensor], Tensor]


def smooth_losses(y: Tensor, classes: Tensor) -> dict[str, Loss]:
    return {
        "squared": lambda z: (z - y).square().mean(),
        "logistic": lambda z: F.softplus(-y.sign() * z).mean(),
        "Huber": lambda z: F.huber_loss(z, y),
        "cross-entropy": lambda z: F.cross_entropy(F.pad(z, (0, 1)), classes),
        "Poisson": lambda z: F.poisson_nll_loss(z, y.abs()),
    }


def kinked_losses(y: Tensor) -> dict[str, Loss]:
    return {
        "absolute": lambda z: (z - y).abs().mean(),
        "hinge": lambda z: (1.0 - y.sign() * z).clamp_min(0.0).mean(),
        "square and maximum": lambda z: (z - y).square().mean() + (z - y).abs().max(),
        "quantile": lambda z: torch.maximum(0.8 * (y - z), -0.2 * (y - z)).mean(),
    }


def nonconvex_losses(y: Tensor) -> dict[str, Loss]:
    """Losses that look convex near the first output, or wherever one happens to look."""

    def square(z: Tensor) -> Tensor:
        return (z - y).square()

    return {
        "clipped square": lambda z: square(z).clamp(max=25.0).mean(),
        "clipped absolute": lambda z: (z - y).abs().clamp(max=4.0).mean(),
        "minimum of two": lambda z: torch.minimum(square(z), 3.0 + (z + 3.0 * y).square()).mean(),
        "tanh of the residual": lambda z: (0.2 * (z - y)).tanh().square().mean(),
        "Cauchy": lambda z: square(z).log1p().mean(),
        "Geman-McClure": lambda z: (square(z) / (1.0 + square(z))).mean(),
        "Welsch": lambda z: (1.0 - (-0.05 * square(z)).exp()).mean(),
        "trimmed mean": lambda z: square(z).flatten().topk(len(y) // 2, largest=False)[0].mean(),
        "median": lambda z: square(z).median(),
        "two wells": lambda z: ((z.square() - y.square()).square()).mean(),
        "sigmoid": lambda z: torch.sigmoid(-z * y.sign()).mean(),
        "ramp": lambda z: (1.0 - z * y.sign()).clamp(0.0, 2.0).mean(),
        "ripples": lambda z: (square(z) + 0.3 * (8.0 * z).sin()).mean(),
        "root": lambda z: ((z - y).abs() + 1e-3).sqrt().mean(),
    }


NONCONVEX = tuple(nonconvex_losses(torch.ones(2, 1)))


@dataclass
class Step:
    """One step: a layer at the anchor, the batch, the loss of the output and the optimizer."""

    name: str
    layer: MeanFieldLayer
    x: Tensor
    loss: Loss
    gamma: float
    kind: type[WassersteinProx] | type[FrobeniusProx]
    classes: str | None
    target: Tensor

    def taken(
        self, solver: str, *, closure: Callable[[MeanFieldLayer], Tensor] | None = None,
        max_eval: int = 1000,
    ) -> StepReport:  # fmt: skip
        """Take the step with a copy of the layer and return its report."""
        layer = copy.deepcopy(self.layer)
        options = {} if self.kind is FrobeniusProx else {"classes": self.classes}
        opt = self.kind(layer.parameters(), self.gamma, solver=solver, max_eval=max_eval, **options)

        def run() -> Tensor:
            layer.zero_grad()
            if closure is not None:
                return closure(layer)
            value = self.loss(layer(self.x))
            value.backward()
            return value

        opt.step(run)
        assert opt.report is not None
        return opt.report


def random_step(seed: int, family: str) -> Step:
    """Draw d from 1 to 3, n from 1 to 14, m from 1 to 4, k from 1 to 2, form, dtype and the rest.

    Args:
        seed: Of everything.
        family: "smooth", "kinked" or "nonconvex".
    """
    g = torch.Generator().manual_seed(seed)

    def whole(low: int, high: int) -> int:
        return int(torch.randint(low, high + 1, (1,), generator=g))

    def power(low: float, high: float) -> float:
        return 10 ** float(torch.empty(1, dtype=F64).uniform_(low, high, generator=g))

    d, n, k = whole(1, 3), whole(1, 14), 1 + (whole(0, 2) == 0)
    m = max(whole(1, 4), k)
    dtype = torch.float32 if whole(0, 2) == 0 else F64
    if family == "nonconvex":
        n, k, m, dtype = max(n, 4), 1, 2 * m, F64
    form = FORMS[whole(0, len(FORMS) - 1)]
    layer = MeanFieldLayer(
        d, m, k, parameterization=form, reduction=("sum", "mean")[whole(0, 1)],
        output_bias=whole(0, 3) == 0, bias=whole(0, 3) > 0, generator=g, dtype=dtype,
    )  # fmt: skip
    scale, gamma = power(-2, 0.5), power(-2, 2)
    with torch.no_grad():
        layer.particles.copy_(scale * torch.randn(layer.particles.shape, generator=g, dtype=F64))
    x = torch.randn(n, d, generator=g, dtype=F64).to(dtype)
    size = 10.0 if family == "nonconvex" else 1.0
    y = (size * torch.randn(n, k, generator=g, dtype=F64)).to(dtype)
    if family == "smooth":
        losses = smooth_losses(y, torch.randint(k + 1, (n,), generator=g))
    else:
        losses = kinked_losses(y) if family == "kinked" else nonconvex_losses(y)
    name = list(losses)[whole(0, len(losses) - 1)]
    kind = (WassersteinProx, FrobeniusProx)[whole(0, 1)]
    return Step(name, layer, x, losses[name], gamma, kind, ("sign", None)[whole(0, 1)], y)


def unfaithful_closure(step: Step, seed: int) -> tuple[str, Callable[[MeanFieldLayer], Tensor]]:
    """A closure that is not one function of the layer's output, with the name of its fault."""
    g = np.random.default_rng(seed)
    faults = ("noise on inputs", "noise on targets", "another batch", "a penalty without gradient")
    fault = faults[seed % len(faults)]
    size, after = 10.0 ** g.uniform(-3, -0.5), int(g.integers(1, 12))
    power, level = g.uniform(0.5, 3.0), float(step.layer.particles.detach().abs().mean())
    runs = 0

    def closure(layer: MeanFieldLayer) -> Tensor:
        nonlocal runs
        runs += 1
        x, y = step.x, step.target
        if fault == "noise on inputs":
            x = x + size * torch.from_numpy(g.standard_normal(x.shape)).to(x)
        if fault == "noise on targets":
            y = y + size * torch.from_numpy(g.standard_normal(y.shape)).to(y)
        if fault == "another batch" and runs > after:
            x, y = x.flip(0) + size, y.flip(0)
        value = (layer(x) - y).square().mean()
        value.backward()
        if fault == "a penalty without gradient":
            v = layer.particles.detach()
            value = value.detach() + 0.1 * (v.abs().pow(power) > level).double().mean()
        return value

    return fault, closure
