"""Sinkhorn divergence by GeomLoss, in the units of W2^2."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from torch_wprox.arguments import checked_count, checked_flag, checked_number
from torch_wprox.closure.ranks import Agree, alone
from torch_wprox.distances.base import AnchoredDistance, Distance, DistanceValue
from torch_wprox.distances.clouds import class_rows


@dataclass(frozen=True)
class Sinkhorn(Distance):
    r"""Entropic approximation of W2^2 between the clouds, debiased: zero exactly at V = W.

    .. math:: d(V, W) = OT_\varepsilon(V, W) - \frac{OT_\varepsilon(V, V)
        + OT_\varepsilon(W, W)}{2}, \qquad \text{cost } |v - w|^2

    Class by class, weighted by the share m_c/m of the class. As blur -> 0 it tends to W2^2.

    Args:
        blur: Length at which transport is blurred, in the units of the particles' coordinates;
            the entropy's weight is eps = 2 blur^2 against the cost |v - w|^2.
        scaling: Ratio of the annealing in (0, 1): nearer to 1 is more accurate and slower.
            The default of GeomLoss, 0.5, leaves errors of ten per cent in value and gradient.
        debiased: False gives OT_eps itself, which shrinks clouds and is not 0 at V = W.
        dense_up_to: Largest class whose cost matrices are kept in memory, 200 MB each for 5000
            particles. Above it GeomLoss computes the entries when they are needed, through KeOps.

    Raises:
        ValueError: An option is out of its range.
        ModuleNotFoundError: More than ``dense_up_to`` particles in a class, without pykeops.

    Example:
        >>> W = torch.tensor([[0.0, 0.0], [1.0, 0.0]], dtype=torch.float64)
        >>> round(Sinkhorn(blur=0.01).anchored(W, None).evaluate(W + 2.0).value.item(), 6)
        8.0

    Source: Feydy et al., Interpolating between optimal transport and MMD using Sinkhorn
    divergences, 2019.
    """

    blur: float = 0.05
    scaling: float = 0.9
    debiased: bool = True
    dense_up_to: int = 5000

    name = "sinkhorn"

    def __post_init__(self) -> None:
        checked_number("blur", self.blur, "> 0", lambda blur: 0 < blur < math.inf)
        checked_number("scaling", self.scaling, "in (0, 1)", lambda ratio: 0 < ratio < 1)
        checked_flag("debiased", self.debiased)
        checked_count("dense_up_to", self.dense_up_to, least=0)

    def anchored(self, W: Tensor, classes: Tensor | None, agree: Agree = alone) -> AnchoredDistance:
        """Return d(., W), class by class."""
        return _AnchoredSinkhorn(W, classes, self, agree)


class _AnchoredSinkhorn(AnchoredDistance):
    def __init__(self, W: Tensor, classes: Tensor | None, options: Sinkhorn, agree: Agree) -> None:
        self._W = W.double()
        self._agree = agree
        self._options = options
        self._rows = [
            rows if isinstance(rows, slice) else torch.from_numpy(rows).to(W.device)
            for rows in class_rows(classes, len(W))
        ]

    @cached_property
    def _backend(self) -> str:
        largest = max(len(self._W[rows]) for rows in self._rows)
        if largest <= self._options.dense_up_to:
            return "tensorized"
        try:
            import pykeops  # noqa: F401
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(
                f"Sinkhorn on {largest} particles needs KeOps: pip install pykeops, or use "
                'distance="sliced" or "emd"'
            ) from error
        return "online"

    def evaluate(self, V: Tensor) -> DistanceValue:
        """Return the divergence and its gradient, in float64: it is a difference of large terms."""
        points = V.detach().double()
        value, gradient = points.new_zeros(()), torch.zeros_like(points)
        for rows in self._rows:
            v, w = points[rows], self._W[rows]
            d, g = self._divergence(v, w)
            share = len(v) / len(V)
            value = value + share * d
            gradient[rows] = share * g
        # Ranks that round the iterations differently would drift apart.
        return DistanceValue(value, self._agree(gradient).to(V.dtype))

    def _divergence(self, v: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
        import geomloss

        options = self._options
        loss = geomloss.SamplesLoss(
            "sinkhorn",
            p=2,
            blur=options.blur,
            scaling=options.scaling,
            debias=options.debiased,
            diameter=self._diameter(v, w),
            backend=self._backend,
        )
        with torch.enable_grad():
            v = v.clone().requires_grad_()
            d: Any = 2.0 * loss(v, w)  # GeomLoss has the cost |v - w|^2/2
            (g,) = torch.autograd.grad(d, v)
        return d.detach().reshape(()), g

    def _diameter(self, v: Tensor, w: Tensor) -> float:
        """Return a bound on the distances, a power of two times the blur.

        The annealing starts from it: with a bound that moves with every point, rounding of the
        schedule would make the divergence jump.
        """
        both = torch.cat([v, w])
        size = torch.linalg.vector_norm(both.amax(0) - both.amin(0)).item()
        if not math.isfinite(size):
            return self._options.blur
        return self._options.blur * 2.0 ** max(
            0, math.ceil(math.log2(size / self._options.blur or 1))
        )
