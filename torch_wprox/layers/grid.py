"""A two-layer ReLU network whose neurons sit on a fixed regular grid."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any, Self

import torch
from torch import Size, Tensor, nn
from torch.nn import functional as F

from torch_wprox.arguments import checked_count, checked_flag, checked_number
from torch_wprox.layers import binning
from torch_wprox.layers.mean_field import MeanFieldLayer
from torch_wprox.layers.substitution import OutputSubstitution


class GridLayer(OutputSubstitution):
    r"""A two-layer ReLU network that is a measure on a fixed grid of neurons.

    .. math:: f_c(x) = M \sum_{\text{blocks } b \text{ of output } c} s_b \sum_g p_{b,g}\,
        \mathrm{relu}(\langle w_g, x\rangle + b_g), \qquad p \ge 0,\ \sum p = 1

    Every output c has one block (a copy of the grid) for each sign; the one parameter ``weight``
    (N,) holds p, block after block: (output 0, first sign), (output 0, second sign), (output 1,
    ...).
    :class:`~torch_wprox.EntropicJKO` moves it; its mass per block never changes.

    Args:
        axes: One increasing, evenly spaced 1-d tensor per coordinate of a neuron: the d weights,
            then the bias if there is one.
        signs: Sign of every block of an output, 1 or -1.
        mass: M > 0. The grid can represent networks of path norm up to M max |w| only.
        out_features: k, size of the output.
        bias: Whether the last axis is the bias of the neurons.
        weight: (N,) start, nonnegative, summing to 1; None: uniform.
        device: Of the parameter.
        dtype: Of the parameter, torch's default if None. float64 is advised.

    Raises:
        ValueError: An argument is not as above.

    Shape:
        (..., d) -> (..., out_features)

    Example:
        >>> axis = torch.linspace(-4, 4, 11)
        >>> layer = GridLayer([axis, axis], mass=40.0)
        >>> layer.weight.shape, layer(torch.zeros(5, 1)).shape
        (torch.Size([242]), torch.Size([5, 1]))

    Source: the note (Mercklé 2024), sections 9 and 11.1.
    """

    weight: nn.Parameter
    cells: Tensor
    """Positions of the cells of one block, (G, D)."""

    def __init__(
        self,
        axes: Sequence[Tensor],
        signs: Sequence[float] = (1.0, -1.0),
        mass: float = 1.0,
        *,
        out_features: int = 1,
        bias: bool = True,
        weight: Tensor | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        bias = checked_flag("bias", bias)
        if not isinstance(axes, Iterable) or isinstance(axes, str):
            raise TypeError(
                "axes must be a list of 1-d tensors, one for every weight and one for the bias, "
                f"got {axes!r}"
            )
        points = [_checked_axis(k, axis) for k, axis in enumerate(axes)]
        if len(points) < 1 + bias:
            raise ValueError(
                f"axes must have one axis per weight{' and one for the bias' if bias else ''}, got "
                f"{len(points)}"
            )
        if not signs or any(s not in (1, -1) for s in signs):
            raise ValueError(f"signs must be 1 or -1, one or more, got {tuple(signs)}")
        mass = checked_number("mass", mass, "a finite number > 0", lambda M: 0 < M < math.inf)
        out_features = checked_count("out_features", out_features)
        self.shape = Size(len(axis) for axis in points)
        self.spacing = tuple(float(axis[-1] - axis[0]) / max(len(axis) - 1, 1) for axis in points)
        self.lower = tuple(float(axis[0]) for axis in points)
        self.in_features = len(points) - bias
        self.out_features = out_features
        self.has_bias = bias
        self.mass = float(mass)
        self.block_signs = tuple(float(s) for s in signs) * out_features
        self.block_outputs = tuple(c for c in range(out_features) for _ in signs)
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        count = len(self.block_signs) * self.shape.numel()
        uniform = torch.full((count,), 1 / count, **factory)
        if not uniform.is_floating_point():
            raise ValueError(f"dtype must be a real floating type, got {uniform.dtype}")
        self.weight = nn.Parameter(uniform)
        cells = torch.cartesian_prod(*points).reshape(-1, len(points))
        # Not in the state: the axes are arguments, as the sizes of any layer are.
        self.register_buffer("cells", cells.to(self.weight), persistent=False)
        if weight is not None:
            self.set_weight(weight)

    @property
    def blocks(self) -> int:
        """Number of blocks."""
        return len(self.block_signs)

    def axes(self) -> tuple[Tensor, ...]:
        """Positions along every axis."""
        return tuple(
            lower + dx * torch.arange(n, dtype=self.weight.dtype, device=self.weight.device)
            for lower, dx, n in zip(self.lower, self.spacing, self.shape, strict=True)
        )

    def density(self) -> Tensor:
        """The measure as pictures, (blocks, n_1, .., n_D): mass per cell, a copy."""
        return self.weight.detach().clone().view(self.blocks, *self.shape)

    @torch.no_grad()
    def set_weight(self, weight: Tensor) -> None:
        """Set p, given as (N,) or (blocks, n_1, .., n_D).

        Raises:
            ValueError: It does not fit, has negative or non-finite entries, or does not sum to 1.
        """
        weight = torch.as_tensor(weight)
        if weight.numel() != self.weight.numel():
            raise ValueError(
                f"weight must have {self.weight.numel()} entries ({self.blocks} blocks of "
                f"{tuple(self.shape)}), got shape {tuple(weight.shape)}"
            )
        self.weight.copy_(checked_measure(weight.reshape(-1)))

    def features(self, input: Tensor) -> Tensor:
        """M relu(<w_g, x> + b_g): (..., d) -> (..., G), the same for every block up to its sign."""
        d = self.in_features
        w, b = self.cells[:, :d], self.cells[:, d] if self.has_bias else None
        return self.mass * F.relu(F.linear(input, w, b))

    def compute(self, input: Tensor) -> Tensor:
        """The network's output."""
        p = self.weight.view(self.out_features, -1, self.shape.numel())
        signs = p.new_tensor(self.block_signs).view(self.out_features, -1, 1)
        return F.linear(self.features(input), (signs * p).sum(1))

    def output_shape(self, input: Tensor) -> Size:
        """(..., d) -> (..., out_features)."""
        return Size((*input.shape[:-1], self.out_features))

    # -- the measure, as in MeanFieldLayer ---------------------------------------------------------

    def positions(self) -> Tensor:
        """Positions (w, b) of all neurons, block after block, (N, D)."""
        return self.cells.detach().repeat(self.blocks, 1)

    @torch.no_grad()
    def masses(self) -> Tensor:
        """Signed masses M s p, (N,): the output is sum_i masses_i relu(<w_i, x> + b_i)."""
        return self.mass * self.signs * self.weight

    @property
    def signs(self) -> Tensor:
        """Sign of every neuron, (N,)."""
        return (
            self.weight.detach().new_tensor(self.block_signs).repeat_interleave(self.shape.numel())
        )

    @property
    def outputs(self) -> Tensor:
        """The output that every neuron feeds, (N,)."""
        index = torch.tensor(self.block_outputs, device=self.weight.device)
        return index.repeat_interleave(self.shape.numel())

    # -- to and from particles ---------------------------------------------------------------------

    @torch.no_grad()
    def to_particles(
        self,
        m: int,
        *,
        method: str = "quantize",
        generator: torch.Generator | None = None,
    ) -> MeanFieldLayer:
        """The measure as m particles: a "signed" layer with output weights M and -M.

        Every block gets a number of particles proportional to its mass (largest remainders first).

        Args:
            m: Number of particles.
            method: "quantize" splits each block along its longer side into halves of equal mass
                until every part has the mass of one particle, placed at its centre of mass;
                "sample" draws cells by their mass, and a uniform point in the cell.
            generator: Of the random numbers of "sample".

        Raises:
            ValueError: ``method`` or ``m`` is out of range.
        """
        if m < self.out_features:
            raise ValueError(f"m must be >= out_features = {self.out_features}, got {m}")
        cells, spacing = self.cells.double().cpu(), torch.tensor(self.spacing).double()
        density = self.density().double().cpu().flatten(1)
        parts = [
            binning.place(method, mass, cells, spacing, count, generator)
            for mass, count in zip(density, binning.shares(density.sum(1), m), strict=True)
        ]
        alpha = torch.zeros(m, self.out_features, dtype=torch.float64)
        start = 0
        for part, sign, output in zip(parts, self.block_signs, self.block_outputs, strict=True):
            alpha[start : start + len(part), output] = sign * self.mass
            start += len(part)
        points, d = torch.cat(parts).to(self.weight), self.in_features
        return MeanFieldLayer.from_neurons(
            points[:, :d],
            alpha.to(self.weight),
            bias=points[:, d] if self.has_bias else None,
            parameterization="signed",
        )

    @classmethod
    @torch.no_grad()
    def from_particles(
        cls, particles: MeanFieldLayer, axes: Sequence[Tensor], *, dtype: torch.dtype | None = None
    ) -> Self:
        r"""The layer on ``axes`` that is the network of these particles, binned.

        A neuron (w, alpha) gives mass proportional to :math:`|\alpha_c|` at w to the block (c,
        sign), divided over the corners of its cell so that mass and mean are kept;
        :math:`M = s \sum |\alpha|`.

        Raises:
            ValueError: A neuron lies outside of the axes, or the layer has a bias at its output.
        """
        if particles.output_bias is not None:
            raise ValueError(
                "particles must have no output_bias: a grid layer has none, use a separate module"
            )
        w, alpha = (t.detach().double().cpu() for t in particles.neurons())
        total = float(alpha.abs().sum())
        layer = cls(
            axes,
            mass=total * particles.scale,
            out_features=particles.out_features,
            bias=particles.has_bias,
            device=particles.particles.device,
            dtype=particles.particles.dtype if dtype is None else dtype,
        )
        split = torch.stack([alpha.clamp(min=0), (-alpha).clamp(min=0)], dim=-1).flatten(1) / total
        density = binning.deposit(w, split, layer.lower, layer.spacing, layer.shape)
        layer.set_weight(density)
        return layer

    def extra_repr(self) -> str:
        """The arguments that make this layer."""
        per_output = self.block_signs[: self.blocks // self.out_features]
        return (
            f"shape={tuple(self.shape)}, signs={per_output}, mass={self.mass}, "
            f"out_features={self.out_features}, bias={self.has_bias}"
        )


def checked_measure(p: Tensor) -> Tensor:
    """Return p (N,) if it is a probability: finite, nonnegative, summing to 1 within rounding.

    Raises:
        ValueError: It is not.
    """
    if not bool(torch.isfinite(p).all()):
        raise ValueError("weight must be finite, got NaN or infinity in it")
    if bool((p < 0).any()):
        raise ValueError(f"weight must be >= 0 everywhere, got {float(p.min())}")
    total = float(p.double().sum())
    if abs(total - 1) > 1e-5:  # what was summed in float32 and made double is one, too
        raise ValueError(
            f"weight must sum to 1, got {total!r}: divide it by its sum; mass scales the network"
        )
    return p


def _checked_axis(index: int, axis: Tensor) -> Tensor:
    try:
        points = torch.as_tensor(axis).detach().to("cpu", torch.float64)
    except (TypeError, ValueError, RuntimeError) as wrong:
        raise TypeError(f"axes[{index}] must be a 1-d tensor of numbers, got {axis!r}") from wrong
    if points.ndim != 1 or len(points) == 0 or not bool(torch.isfinite(points).all()):
        raise ValueError(f"axes[{index}] must be a 1-d tensor of finite numbers, one or more")
    steps = points.diff()
    # float32 axes made by linspace are even to their own rounding only.
    slack = 1e-5 * float(points.abs().max())
    if len(steps) and (float(steps.min()) <= 0 or float(steps.max() - steps.min()) > slack):
        raise ValueError(
            f"axes[{index}] must be increasing and evenly spaced, got steps from "
            f"{float(steps.min())} to {float(steps.max())}: use torch.linspace"
        )
    return points
