"""The Gibbs kernel exp(-|x - y|^2 / epsilon) of a regular grid: separable, blocked, log domain."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

# Terms below exp(-NEGLIGIBLE) of the largest one are not summed: with 1e6 cells they stay below the
# rounding error.
_NEGLIGIBLE = {torch.float64: 50.0, torch.float32: 30.0}
# No exponent inside a window may exceed this: exp overflows at 709 and 88 and underflows there too.
_RANGE = {torch.float64: 300.0, torch.float32: 60.0}


@dataclass(frozen=True)
class Window:
    r"""How one axis is cut: output block I reads the input blocks I - halo .. I + halo.

    With i = I b + i' and j = (I + k) b + j', the exponent of the kernel is split into

    .. math:: -h (i - j)^2 = -h k^2 b^2 + \bigl(2 h k b (i' - j') - h (i' - j')^2\bigr).

    The first part joins the shift of input block I + k, the second is the matrix. All exponents
    stay within 2 h (halo + 1) b^2, whatever the potential is: what underflows is dominated by
    the largest entry of its block, seen from any cell of the output block.

    Attributes:
        size: b, cells in a block.
        halo: Blocks read on either side.
        matrix: ((2 halo + 1) b, b), the second part.
        shift: (2 halo + 1,), the first part.
    """

    size: int
    halo: int
    matrix: Tensor
    shift: Tensor


class GridKernel:
    r"""The kernel :math:`\xi_{ij} = e^{-|x_i - x_j|^2/\varepsilon}` of one regular grid.

    N = k^D cells cost about D k^(D+1) operations and no N x N matrix. Every operation works on
    fields of logarithms and adds a leading batch of blocks, which do not mix. The kernel is cut off
    at a reach at which what a plan carries is below exp(-50) (float32: exp(-30)); cut off, it is
    still symmetric, so that a plan made of it has the mass of its marginal to the last bits.

    Args:
        spacing: Distance of neighbouring cells, one number per axis.
        shape: Number of cells, one per axis.
        epsilon: Entropic regularisation, > 0.
        dtype: float64 or float32.
        device: Of the fields.

    Attributes:
        applications: Fields to which the kernel was applied so far.

    Example:
        >>> kernel = GridKernel([0.5], [3], epsilon=1.0)
        >>> kernel.lse(torch.zeros(1, 3, dtype=torch.float64), kernel.windows([0.0])).exp()
        tensor([[2.1467, 2.5576, 2.1467]], dtype=torch.float64)
    """

    def __init__(
        self,
        spacing: Sequence[float],
        shape: Sequence[int],
        epsilon: float,
        *,
        dtype: torch.dtype = torch.float64,
        device: torch.device | str | None = None,
    ) -> None:
        if dtype not in _RANGE:
            raise ValueError(f"dtype must be torch.float64 or torch.float32, got {dtype}")
        self.shape = tuple(shape)
        self.decay = tuple(dx * dx / epsilon for dx in spacing)
        self.dtype = dtype
        self.device = torch.device("cpu" if device is None else device)
        self.applications = 0
        self._made: dict[tuple[int, int], Window] = {}

    def slopes(self, log_a: Tensor) -> list[float]:
        """Return the largest difference of neighbours along every axis of ``log_a`` (B, *shape)."""
        return [
            float(log_a.diff(dim=axis).abs().amax()) if log_a.shape[axis] > 1 else 0.0
            for axis in range(1, log_a.ndim)
        ]

    def windows(self, slopes: Sequence[float]) -> tuple[Window, ...]:
        r"""Return windows that reach as far as a potential of these slopes moves mass.

        With :math:`|\log a_i - \log a_j| \le \ell |i - j|` a term at distance r is at most
        :math:`e^{\ell r - h r^2}` times the one at distance 0: below exp(-T) beyond

        .. math:: R = \frac{\ell}{2h} + \sqrt{\frac{\ell^2}{4h^2} + \frac{T}{h}}.
        """
        return tuple(
            self._window(axis, self._reach(axis, slope)) for axis, slope in enumerate(slopes)
        )

    def lse(self, u: Tensor, windows: tuple[Window, ...]) -> Tensor:
        r"""Return :math:`\log \sum_j e^{u_j - |x_i - x_j|^2/\varepsilon}` for u (B, *shape)."""
        return self.expectation(u, None, windows)[0]

    def expectation(
        self, u: Tensor, v: Tensor | None, windows: tuple[Window, ...]
    ) -> tuple[Tensor, Tensor]:
        r"""Return the log-sum-exp of u, and the mean of v under the weights that it sums.

        .. math:: E_i = \sum_j e^{u_j - |x_i - x_j|^2/\varepsilon} v_j \Big/
            \sum_j e^{u_j - |x_i - x_j|^2/\varepsilon}

        Means along one axis after the other compose, and v need not be positive.

        Args:
            u: (B, *shape) logarithms, -inf allowed.
            v: (C, B, *shape) or (C, 1, *shape) fields, or None.
            windows: As :meth:`windows` returns.

        Returns:
            (B, *shape) and (C, B, *shape); E is 0 where no weight is positive.
        """
        self.applications += 1 if v is None else v.shape[0]
        for axis, window in enumerate(windows):
            u, v = _along(
                u.movedim(1 + axis, -1), None if v is None else v.movedim(2 + axis, -1), window
            )
            u = u.movedim(-1, 1 + axis)
            v = None if v is None else v.movedim(-1, 2 + axis)
        return u, u if v is None else v

    def _reach(self, axis: int, slope: float) -> int:
        n, h = self.shape[axis], self.decay[axis]
        if not math.isfinite(slope) or h == 0.0:
            return n - 1
        centre = slope / (2 * h)
        reach = centre + math.sqrt(centre**2 + _NEGLIGIBLE[self.dtype] / h)
        # Rounded up to two digits in base 2, so that a step makes few windows.
        unit = 2.0 ** max(math.floor(math.log2(reach)) - 2, 0)
        return int(min(math.ceil(reach / unit) * unit, n - 1))

    def _window(self, axis: int, reach: int) -> Window:
        if (axis, reach) not in self._made:
            self._made[axis, reach] = self._make(self.shape[axis], self.decay[axis], reach)
        return self._made[axis, reach]

    def _make(self, n: int, h: float, reach: int) -> Window:
        def halo_of(b: int) -> int:
            return math.ceil(reach / b)

        def cost(b: int) -> float:  # reading a window, and multiplying by its matrix
            return math.ceil(n / b) * b / n * (2 * halo_of(b) + 1) * (4 + b)

        # b = 1 is the plain log-sum-exp: its matrix holds ones only, no range to exceed.
        fits = (
            b
            for b in range(1, n + 1)
            if b == 1 or 2 * h * (halo_of(b) + 1) * b * b <= _RANGE[self.dtype]
        )
        b = min(fits, key=cost)
        halo = min(halo_of(b), math.ceil(n / b) - 1)
        k = torch.arange(-halo, halo + 1, dtype=torch.float64).view(-1, 1, 1)
        cells = torch.arange(b, dtype=torch.float64)
        apart = cells.view(1, 1, -1) - cells.view(1, -1, 1)  # i' - j' at [k, j', i']
        matrix = torch.exp(2 * h * b * k * apart - h * apart.square()).reshape(-1, b)
        shift = -h * (k * b).square().flatten()
        return Window(
            b, halo, matrix.to(self.device, self.dtype), shift.to(self.device, self.dtype)
        )


def _along(u: Tensor, v: Tensor | None, window: Window) -> tuple[Tensor, Tensor | None]:
    """Sum along the last axis: u (B, .., n) and v (C, B or 1, .., n)."""
    n, b, halo = u.shape[-1], window.size, window.halo
    fill = -n % b
    u = F.pad(u, (0, fill), value=-math.inf)
    u = u.view(*u.shape[:-1], -1, b)
    top = u.amax(-1)
    x = torch.exp(u - _finite(top).unsqueeze(-1))
    near = F.pad(top, (halo, halo), value=-math.inf).unfold(-1, 2 * halo + 1, 1) + window.shift
    level = _finite(near.amax(-1, keepdim=True))
    factor = torch.exp(near - level)
    y = _windowed(x, factor, window)
    total = (torch.log(y) + level).flatten(-2)[..., :n]
    if v is None:
        return total, None
    v = F.pad(v, (0, fill))
    v = v.view(*v.shape[:-1], -1, b)
    mean = _windowed(v * x, factor, window) / torch.where(y > 0, y, 1)
    return total, mean.flatten(-2)[..., :n]


def _windowed(x: Tensor, factor: Tensor, window: Window) -> Tensor:
    """Return the sums over windows of x (.., blocks, b), factor (.., blocks, 2 halo + 1)."""
    halo = window.halo
    x = F.pad(x, (0, 0, halo, halo)).unfold(-2, 2 * halo + 1, 1).transpose(-1, -2)
    return (x * factor.unsqueeze(-1)).flatten(-2) @ window.matrix


def _finite(level: Tensor) -> Tensor:
    return torch.where(level == -math.inf, 0, level)
