"""A two-layer ReLU network as a cloud of particles."""

from __future__ import annotations

import math
from typing import Any, Literal, Self, TypeVar, get_args

import torch
from torch import Size, Tensor, nn
from torch.nn import functional as F

from torch_wprox.arguments import checked_count, checked_flag, checked_number
from torch_wprox.layers import conversion
from torch_wprox.layers.initialization import Initializer, balanced_classes, draw
from torch_wprox.layers.live import LiveModules
from torch_wprox.layers.parameterizations import (
    PARAMETERIZATIONS,
    Parameterization,
    ParameterizationName,
)
from torch_wprox.layers.substitution import OutputSubstitution

Reduction = Literal["mean", "sum"]

_T = TypeVar("_T")


class MeanFieldLayer(OutputSubstitution):
    r"""A two-layer ReLU network whose neurons are particles of a measure.

    .. math:: f(x) = c_0 + s \sum_{i=1}^m \alpha_i\, \mathrm{relu}(\langle w_i, x\rangle + b_i),
        \qquad s = 1/m \text{ (mean) or } 1 \text{ (sum)}

    One parameter ``particles`` (m, D) holds the cloud; ``parameterization`` says what its rows are:

    - "joint": (w, b, alpha), Euclidean metric, mass 1/m.
    - "signed": (w, b) with frozen ``alpha``; the measure (1/m) sum alpha_i delta_{w_i}.
    - "clouds": |alpha| (w, b), one cloud per sign, mass 1/m.
    - "sphere": (u, a) = (w/|w|, |w| alpha) with b part of w, product metric, mass 1/m.
    - "radial": (r, eta) with r eta = (w, b, alpha), cone metric, mass r^2/m.

    The same generator state gives one network in "joint", "sphere" and "radial", and one in
    "signed" and "clouds". In these two the first half of the neurons that feed an output has
    alpha = 1, the second half -1; neurons of output c come before those of output c + 1.

    Args:
        in_features: d, size of the input.
        width: m, number of neurons.
        out_features: k, size of the output.
        parameterization: What a particle is.
        bias: Whether neurons have a bias b.
        output_bias: Whether the output has a trained bias c_0 (k,), zero at first.
        reduction: "mean" (mean field: s = 1/m) or "sum" (s = 1, as F in the note).
        init: "normal", "uniform" (on [-1, 1]) or "grid" (on [-1, 1]^D, one grid per class of
            frozen output weights), or a function that fills a (m, D) tensor in place.
        init_scale: Factor on what ``init`` gives.
        generator: Random generator of the initialisation.
        device: Of the parameters.
        dtype: Of the parameters.

    Raises:
        ValueError: If an argument is not one of the values above.

    Shape:
        (..., in_features) -> (..., out_features)

    Example:
        >>> layer = MeanFieldLayer(1, width=50, parameterization="signed", reduction="sum")
        >>> layer.particles.shape, layer(torch.zeros(5, 1)).shape
        (torch.Size([50, 2]), torch.Size([5, 1]))

    Source: the note (Mercklé 2024), section 11 and section 6.2 (radial).
    """

    particles: nn.Parameter
    output_bias: nn.Parameter | None
    alpha: Tensor | None
    """Frozen output weights (m,), None where they train. Assigning a new one is allowed."""
    output_index: Tensor | None
    """Output that each neuron feeds (m,), None where output weights train."""

    def __init__(
        self,
        in_features: int,
        width: int,
        out_features: int = 1,
        *,
        parameterization: ParameterizationName = "joint",
        bias: bool = True,
        output_bias: bool = False,
        reduction: Reduction = "mean",
        init: Initializer = "normal",
        init_scale: float = 1.0,
        generator: torch.Generator | None = None,
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.in_features = checked_count("in_features", in_features)
        self.width = checked_count("width", width)
        self.out_features = checked_count("out_features", out_features)
        self.parameterization = _one_of(
            "parameterization", parameterization, get_args(ParameterizationName)
        )
        self.reduction = _one_of("reduction", reduction, get_args(Reduction))
        self.has_bias = checked_flag("bias", bias)
        has_output_bias = checked_flag("output_bias", output_bias)
        self.init = init
        self.init_scale = checked_number("init_scale", init_scale, "a finite number", math.isfinite)
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        columns = self.form.columns(self._inputs, self.out_features)
        start = torch.empty(self.width, columns, **factory)
        if not start.is_floating_point():
            raise ValueError(f"dtype must be a real floating type, got {start.dtype}")
        self.particles = nn.Parameter(start)
        self.register_parameter(
            "output_bias",
            nn.Parameter(torch.empty(self.out_features, **factory)) if has_output_bias else None,
        )
        self.register_buffer("alpha", None)
        self.register_buffer("output_index", None)
        if not self.form.trains_output:
            if self.width < self.out_features:
                raise ValueError(
                    f"width must be >= out_features = {out_features} when output weights are "
                    f"frozen (each neuron feeds one output), got {width}"
                )
            self.register_buffer("alpha", torch.empty(self.width, **factory))
            index = torch.empty(self.width, device=device, dtype=torch.long)
            self.register_buffer("output_index", index)
        self.reset_parameters(generator)
        _LIVE.register(self)

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        _LIVE.register(self)  # deepcopy, copy and pickle come here, and not through __init__

    @property
    def form(self) -> Parameterization:
        """The formulas of the parameterisation."""
        return PARAMETERIZATIONS[self.parameterization]

    @property
    def _inputs(self) -> int:
        return self.in_features + self.has_bias

    @property
    def scale(self) -> float:
        """The factor of the sum over neurons: 1/m (mean) or 1 (sum)."""
        return 1 / self.width if self.reduction == "mean" else 1.0

    @torch.no_grad()
    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Draw the particles anew; frozen output weights become 1 and -1 again, balanced."""
        dtype = self.particles.dtype if self.particles.dtype.itemsize >= 4 else torch.float32
        class_sizes, dim = [self.width], self._inputs + self.out_features
        if self.alpha is not None and self.output_index is not None:
            signs, index, class_sizes = balanced_classes(self.width, self.out_features)
            self.alpha.copy_(signs)
            self.output_index.copy_(index)
            dim = self._inputs
        start = draw(
            self.init,
            class_sizes,
            dim,
            generator=generator,
            device=self.particles.device,
            dtype=dtype,
        )
        start = self.init_scale * start
        if self.form.trains_output:
            start = self.form.encode(start[:, : self._inputs], start[:, self._inputs :])
        self.particles.copy_(start)
        if self.output_bias is not None:
            self.output_bias.zero_()

    def __setattr__(self, name: str, value: Any) -> None:
        """Check what is assigned to ``alpha``; everything else as in ``nn.Module``."""
        if name == "alpha" and "alpha" in self._buffers:
            if self.alpha is None:
                raise AttributeError(
                    f"alpha trains in parameterization={self.parameterization!r} as part of "
                    "`particles`: use set_neurons(w, alpha)"
                )
            value = conversion.checked_alpha(
                value, width=self.width, like=self.particles, unit=self.form.unit_weights
            )
        super().__setattr__(name, value)

    # -- the network -----------------------------------------------------------------------------

    def neurons(self) -> tuple[Tensor, Tensor]:
        """Weights of the two-layer network, up to the positive homogeneity of the ReLU.

        Returns:
            w (m, in_features + bias), the bias last, and a (m, out_features), with
            f(x) = scale * relu([x, 1] w^T) a; differentiable.
        """
        return self.form.neurons(self.particles, self._inputs, self._frozen())

    def _frozen(self) -> Tensor | None:
        """(m, k): row i is alpha_i e_c, c the output that neuron i feeds."""
        if self.alpha is None or self.output_index is None:
            return None
        column = self.alpha.unsqueeze(1)
        if self.out_features == 1:
            return column
        outputs = torch.arange(self.out_features, device=column.device)
        return column * (self.output_index.unsqueeze(1) == outputs)

    def compute(self, input: Tensor) -> Tensor:
        """The network's output: two matrix products."""
        w, a = self.neurons()
        d = self.in_features
        hidden = F.linear(input, w[:, :d], w[:, d] if self.has_bias else None)
        if self.reduction == "mean":
            a = a * self.scale
        return F.linear(F.relu(hidden), a.t(), self.output_bias)

    def output_shape(self, input: Tensor) -> Size:
        """(..., in_features) -> (..., out_features)."""
        return Size((*input.shape[:-1], self.out_features))

    # -- the measure -----------------------------------------------------------------------------

    @torch.no_grad()
    def positions(self) -> Tensor:
        """Positions of the particles in the space of the measure, (m, D), a copy.

        They are (w, b, alpha), (w, b), |alpha| (w, b), (u, a) with |u| = 1, or eta with
        |eta| = 1.
        """
        return self.form.positions(self.particles, self._inputs).clone()

    @torch.no_grad()
    def masses(self) -> Tensor:
        """Masses of the particles, (m,): 1/m; "signed": alpha/m; "radial": r^2/m.

        They do not depend on ``reduction``: "sum" is m times the integral against the measure.
        """
        return self.form.masses(self.particles, self.alpha)

    @property
    def outputs(self) -> Tensor:
        """The output that each neuron feeds (m,); where they train, the one it feeds most."""
        if self.output_index is not None:
            return self.output_index.clone()
        return self.neurons()[1].detach().abs().argmax(dim=1)

    @property
    def signs(self) -> Tensor:
        """The sign with which each neuron feeds ``outputs``, (m,)."""
        a = self.neurons()[1].detach()
        return torch.sign(a.gather(1, self.outputs.unsqueeze(1)).squeeze(1))

    # -- to and from plain weights ---------------------------------------------------------------

    @torch.no_grad()
    def set_neurons(
        self,
        w: Tensor,
        alpha: Tensor,
        *,
        bias: Tensor | None = None,
        output_bias: Tensor | None = None,
    ) -> None:
        """Make this the network x -> c_0 + s sum_i alpha_i relu(<w_i, x> + b_i), in place.

        Args:
            w: (m, d) weights of the neurons.
            alpha: (m,) or (m, k) output weights; where they are frozen and k > 1, every row has
                at most one entry that is not 0.
            bias: (m,) biases b; given if and only if the layer has them.
            output_bias: (k,) c_0; given if and only if the layer has it.

        Raises:
            ValueError: If a shape does not fit or a frozen neuron feeds several outputs.
        """
        w, alpha, output_bias = conversion.checked_neurons(
            w,
            alpha,
            bias,
            output_bias,
            sizes=(self.width, self.in_features, self.out_features),
            has_bias=self.has_bias,
            has_output_bias=self.output_bias is not None,
            like=self.particles,
        )
        if self.alpha is not None and self.output_index is not None:
            index, weight = conversion.one_output_each(alpha, unit=self.form.unit_weights)
            self.output_index.copy_(index)
            self.alpha.copy_(weight)
        self.particles.copy_(self.form.encode(w, alpha))
        if self.output_bias is not None and output_bias is not None:
            self.output_bias.copy_(output_bias)

    @classmethod
    def from_neurons(
        cls,
        w: Tensor,
        alpha: Tensor,
        *,
        bias: Tensor | None = None,
        output_bias: Tensor | None = None,
        parameterization: ParameterizationName = "joint",
        reduction: Reduction = "mean",
    ) -> Self:
        """The layer that is the network with these weights, on their device and in their dtype.

        Args:
            w: (m, d) weights of the neurons.
            alpha: (m,) or (m, k) output weights.
            bias: (m,) biases of the neurons, or None.
            output_bias: (k,) bias of the output, or None.
            parameterization: What a particle is.
            reduction: "mean" or "sum".

        Example:
            >>> layer = MeanFieldLayer.from_neurons(torch.eye(2), torch.tensor([1.0, -2.0]))
            >>> layer(torch.tensor([[3.0, 1.0]])).item()  # (3 - 2 * 1) / 2
            0.5
        """
        w, alpha = torch.as_tensor(w), torch.as_tensor(alpha)
        if w.ndim != 2 or alpha.ndim not in (1, 2):
            raise ValueError(
                f"w must be (m, d) and alpha (m,) or (m, k), got {tuple(w.shape)} and "
                f"{tuple(alpha.shape)}"
            )
        layer = cls(
            w.shape[1],
            w.shape[0],
            1 if alpha.ndim == 1 else alpha.shape[1],
            parameterization=parameterization,
            bias=bias is not None,
            output_bias=output_bias is not None,
            reduction=reduction,
            init=nn.init.zeros_,  # draws nothing from the global generator
            device=w.device,
            dtype=w.dtype,
        )
        layer.init = "normal"
        layer.set_neurons(w, alpha, bias=bias, output_bias=output_bias)
        return layer

    @classmethod
    def from_linear(cls, first: nn.Linear, second: nn.Linear) -> Self:
        """The "joint", "sum" layer that computes second(relu(first(x))); `to_linear` inverts it.

        Args:
            first: Linear layer d -> m, with or without bias.
            second: Linear layer m -> k; its bias becomes ``output_bias``.

        Raises:
            ValueError: If the outputs of the first are not the inputs of the second.

        Example:
            >>> first, second = nn.Linear(2, 8), nn.Linear(8, 1)
            >>> layer = MeanFieldLayer.from_linear(first, second)
            >>> torch.equal(layer.to_linear()[0].weight, first.weight)
            True
        """
        if first.out_features != second.in_features:
            raise ValueError(
                f"second.in_features must be first.out_features = {first.out_features}, got "
                f"{second.in_features}"
            )
        return cls.from_neurons(
            first.weight.detach(),
            second.weight.detach().t(),
            bias=None if first.bias is None else first.bias.detach(),
            output_bias=None if second.bias is None else second.bias.detach(),
            reduction="sum",
        )

    def to_linear(self) -> tuple[nn.Linear, nn.Linear]:
        """Two new layers with second(relu(first(x))) = self(x), for any parameterisation."""
        w, a = (t.detach() for t in self.neurons())
        return conversion.linear_layers(
            w, a * self.scale, has_bias=self.has_bias, output_bias=self.output_bias
        )

    def extra_repr(self) -> str:
        """The arguments that make this layer."""
        return (
            f"in_features={self.in_features}, width={self.width}, "
            f"out_features={self.out_features}, parameterization={self.parameterization!r}, "
            f"bias={self.has_bias}, output_bias={self.output_bias is not None}, "
            f"reduction={self.reduction!r}"
        )


def _one_of(name: str, value: _T, allowed: tuple[_T, ...]) -> _T:
    if value not in allowed:
        raise ValueError(f"{name} must be one of {allowed}, got {value!r}")
    return value


_LIVE: LiveModules[MeanFieldLayer] = LiveModules()


def live_layers() -> dict[int, MeanFieldLayer]:
    """Return every parameter, by id, of every MeanFieldLayer that is alive, with its layer."""
    return _LIVE.by_parameter()


def live_layer_of(parameter: nn.Parameter) -> MeanFieldLayer | None:
    """Return the MeanFieldLayer that owns this parameter, or None.

    Example:
        >>> layer = MeanFieldLayer(1, width=4)
        >>> other = nn.Linear(1, 1)
        >>> live_layer_of(layer.particles) is layer, live_layer_of(other.weight)
        (True, None)
    """
    return live_layers().get(id(parameter))
