"""Smooth, strongly convex functions on R^D: a quadratic plus an input-convex network."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

# How far from the identity a map may begin, in units of the standardised cloud. Weights are
# squares: at 0 their gradients vanish, and from far below they take long to grow.
_SHORTEST, _LONGEST = 1e-6, 0.05


@dataclass(frozen=True)
class ConvexNetwork:
    r"""The shape of an input-convex network; its numbers are one flat vector theta.

    .. math::
        \psi(x) = \tfrac12 |L^T x|^2 + \tfrac{\delta}{2}|x|^2 + \langle c, x\rangle
            + \langle w, z_K\rangle, \qquad
        z_k = \mathrm{softplus}(W_k z_{k-1} + A_k x + b_k), \quad z_0 = 0

    The weights w and W_k are squares, so that psi is convex in x whatever theta is, and delta > 0
    makes it strongly convex: its gradient is a bijection of R^D. Gradient and Hessian are written
    out, which makes them differentiable in theta; the Hessian is a sum of positive semidefinite
    terms to the last bit.

    Args:
        dim: D.
        width: Units in every layer.
        depth: K, number of layers; 0: psi is quadratic and its gradient an affine map.
        strength: delta, > 0.

    Raises:
        ValueError: An argument is out of range.

    Example:
        >>> network = ConvexNetwork(dim=2, width=8)
        >>> theta = network.initial(torch.Generator().manual_seed(0), torch.float64)
        >>> x = torch.tensor([[1.0, 2.0]], dtype=torch.float64)
        >>> torch.allclose(network.gradient(theta, x), x, atol=0.05)
        True

    Source: Amos, Xu & Kolter, Input convex neural networks, 2017; Korotin et al., Wasserstein-2
    generative networks, 2021 (the quadratic skip).
    """

    dim: int
    width: int = 32
    depth: int = 2
    strength: float = 1e-3

    def __post_init__(self) -> None:
        for name in ("dim", "width"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be >= 1, got {getattr(self, name)!r}")
        if self.depth < 0:
            raise ValueError(f"depth must be >= 0 (0: affine maps), got {self.depth!r}")
        if not 0 < self.strength < 1:
            raise ValueError(f"strength must be between 0 and 1, got {self.strength!r}")

    @property
    def size(self) -> int:
        """Length of theta."""
        return sum(a * b for a, b in self._shapes())

    def initial(
        self, generator: torch.Generator, dtype: torch.dtype, reach: float = _LONGEST
    ) -> Tensor:
        """Return a random theta (size,) on the CPU at which grad psi is nearly the identity.

        Args:
            generator: Chooses the directions and places at which the map can bend.
            dtype: Of theta.
            reach: About how far the map moves points of size 1: less than it will have to move
                them. Kept between 1e-6 and 0.05.
        """
        D, h, K = self.dim, self.width, self.depth
        weight = min(max(reach, _SHORTEST), _LONGEST) / (2 * h)

        def normal(rows: int, columns: int) -> Tensor:
            return torch.randn(rows, columns, generator=generator, dtype=dtype)

        parts = [
            (1 - self.strength) ** 0.5 * torch.eye(D, dtype=dtype),
            torch.zeros(1, D, dtype=dtype),
        ]
        if K:
            parts.append(weight**0.5 * (1 + 0.1 * normal(1, h)))
        for k in range(K):
            # Kinks of all directions that cut the standardised cloud at different places.
            directions = F.normalize(normal(h, D), dim=1)
            parts += [2.0 * directions, 2.0 * normal(1, h)]
            if k:
                parts.append((normal(h, h).abs() / h).sqrt())
        return torch.cat([part.reshape(-1) for part in parts])

    def value(self, theta: Tensor, x: Tensor) -> Tensor:
        """Return psi at x (m, D), (m,)."""
        L, c, *_ = self._matrices(theta)
        quadratic = (x @ L).square().sum(1) + self.strength * x.square().sum(1)
        found = 0.5 * quadratic + x @ c[0]
        if self.depth:
            weights, layers = self._layers(theta)
            *_, last = self._pre_activations(layers, x)
            found = found + F.softplus(last) @ weights
        return found

    def gradient(self, theta: Tensor, x: Tensor) -> Tensor:
        """Return grad psi at x (m, D), (m, D)."""
        L, c, *_ = self._matrices(theta)
        found = torch.addmm(c, x @ L, L.t()) + self.strength * x
        if self.depth:
            weights, layers = self._layers(theta)
            pre = list(self._pre_activations(layers, x))
            slope = weights * torch.sigmoid(pre[-1])  # d psi / d pre-activation of layer k
            for k in range(self.depth - 1, -1, -1):
                A, _, W = layers[k]
                found = torch.addmm(found, slope, A)
                if W is not None:
                    slope = (slope @ W) * torch.sigmoid(pre[k - 1])
        return found

    def hessian(self, theta: Tensor, x: Tensor) -> Tensor:
        """Return the Hessian of psi at x (m, D), (m, D, D): sum_k J_k^T diag(d_k) J_k + L L^T."""
        L, *_ = self._matrices(theta)
        eye = torch.eye(self.dim, dtype=x.dtype, device=x.device)
        found = (L @ L.t() + self.strength * eye).expand(len(x), -1, -1)
        if not self.depth:
            return found
        weights, layers = self._layers(theta)
        pre = list(self._pre_activations(layers, x))
        active = [torch.sigmoid(u) for u in pre]
        received = [weights.expand_as(pre[-1])]  # d psi / d z_k, last layer first
        for k in range(self.depth - 1, 0, -1):
            W = layers[k][2]
            assert W is not None
            received.append((received[-1] * active[k]) @ W)
        received.reverse()
        J = layers[0][0].expand(len(x), -1, -1)  # d pre_k / d x, (m, width, D)
        for k in range(self.depth):
            if k:
                A, _, W = layers[k]
                assert W is not None
                J = W @ (active[k - 1].unsqueeze(2) * J) + A
            bend = received[k] * active[k] * (1 - active[k])
            found = found + J.transpose(1, 2) @ (bend.unsqueeze(2) * J)
        return found

    # -- theta in pieces ---------------------------------------------------------------------------

    def _shapes(self) -> list[tuple[int, int]]:
        D, h = self.dim, self.width
        shapes = [(D, D), (1, D)]
        if self.depth:
            shapes.append((1, h))
        for k in range(self.depth):
            shapes += [(h, D), (1, h)] + ([(h, h)] if k else [])
        return shapes

    def _matrices(self, theta: Tensor) -> list[Tensor]:
        shapes = self._shapes()
        pieces = torch.split(theta, [a * b for a, b in shapes])
        return [piece.view(shape) for piece, shape in zip(pieces, shapes, strict=True)]

    def _layers(self, theta: Tensor) -> tuple[Tensor, list[tuple[Tensor, Tensor, Tensor | None]]]:
        """Return w (width,) and (A_k, b_k, W_k) of every layer."""
        _, _, root, *rest = self._matrices(theta)
        layers: list[tuple[Tensor, Tensor, Tensor | None]] = [(rest[0], rest[1], None)]
        for k in range(1, self.depth):
            A, b, R = rest[3 * k - 1 : 3 * k + 2]
            layers.append((A, b, R.square()))
        return root[0].square(), layers

    def _pre_activations(
        self, layers: list[tuple[Tensor, Tensor, Tensor | None]], x: Tensor
    ) -> Iterator[Tensor]:
        before: Tensor | None = None
        for A, b, W in layers:
            u = torch.addmm(b, x, A.t())
            if W is not None:
                assert before is not None
                u = torch.addmm(u, F.softplus(before), W.t())
            yield u
            before = u
