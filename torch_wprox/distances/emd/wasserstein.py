"""The squared 2-Wasserstein distance between two weighted clouds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from torch_wprox.distances.emd.exact import solve

ArrayLike = Tensor | NDArray[Any] | Sequence[Any]
"""What becomes a tensor: a tensor, a NumPy array, (nested) lists of numbers."""

# Masses summed in float32 may differ by this much of their total.
_SAME_TOTAL = 1e-6


def wasserstein_sq(
    X: ArrayLike, Y: ArrayLike, a: ArrayLike | None = None, b: ArrayLike | None = None
) -> Tensor:
    r"""Return the squared 2-Wasserstein distance between two point clouds.

    .. math:: W_2^2 = \min_\pi \sum_{ij} \pi_{ij} |X_i - Y_j|^2,
        \qquad \pi \ge 0 \text{ with marginals } a \text{ and } b

    Equal sizes and uniform masses: exact assignment. Else: POT's linear program, to about 1e-14 of
    the largest |X_i - Y_j|^2. The gradient flows through the cost with the plan fixed, which is
    exact wherever the plan is unique (Danskin); none flows into the masses.

    Args:
        X: (m, D), finite; complex points count as real ones of dimension 2 D.
        Y: (n, D).
        a: Masses of X, (m,), summing to the same total as ``b``; None: 1/m each.
        b: Masses of Y, (n,); None: 1/n each.

    Returns:
        W2^2, 0-d, in squared units of the points times mass; in the floating type of the points,
        in torch's default type where they are integers.

    Raises:
        TypeError: An argument is no array of numbers.
        ValueError: The shapes do not fit, points are not finite, or the masses are negative, not
            finite, all zero or of different totals.

    Example:
        >>> import torch
        >>> wasserstein_sq(torch.tensor([[0.0], [1.0]]), torch.tensor([[1.0], [2.0]]))
        tensor(1.)
    """
    X, Y = _points("X", X), _points("Y", Y)
    if X.ndim != 2 or Y.ndim != 2 or X.shape[1] != Y.shape[1] or not len(X) or not len(Y):
        raise ValueError(
            "X and Y must be nonempty matrices (m, D) and (n, D) of one dimension D, got shapes "
            f"{tuple(X.shape)} and {tuple(Y.shape)}"
        )
    kind = torch.promote_types(X.dtype, Y.dtype)
    # Coarser types would lose the digits of small distances.
    precise = torch.promote_types(kind, torch.float32)
    X, Y = X.to(precise), Y.to(X.device, precise)
    X64, Y64 = _normalised(X.detach(), Y.detach())
    if a is None and b is None and len(X) == len(Y):
        sigma = solve(X64, Y64, None).to(X.device)
        return (X - Y[sigma]).square().sum(1).mean().to(kind)
    p, total = _masses("a", a, len(X))
    q, other = _masses("b", b, len(Y))
    if abs(total - other) > _SAME_TOTAL * max(total, other):
        raise ValueError(f"a and b must have one total mass, got {total} and {other}")
    i, j, mass = _optimal_plan(X64, Y64, p, q)
    distances = (X[i.to(X.device)] - Y[j.to(X.device)]).square().sum(1)
    return (total * (mass.to(X) * distances).sum()).to(kind)


def _points(name: str, given: ArrayLike) -> Tensor:
    """Return the points as a finite, real tensor of floating point."""
    try:
        points = torch.as_tensor(given)
    except (TypeError, ValueError, RuntimeError) as wrong:
        raise TypeError(
            f"{name} must be a tensor, an array or lists of numbers, got {given!r}: {wrong}"
        ) from wrong
    if points.is_complex():
        points = torch.view_as_real(points.resolve_conj()).flatten(-2)
    if not points.is_floating_point():
        points = points.to(torch.get_default_dtype())
    if not bool(points.isfinite().all()):
        bad = int((~points.isfinite()).sum())
        raise ValueError(
            f"{name} must be finite, got NaN or infinity in {bad} of {points.numel()} coordinates"
        )
    return points


def _normalised(X: Tensor, Y: Tensor) -> tuple[Tensor, Tensor]:
    """Return both clouds on the CPU in float64, of size 1 around 0: tolerances are absolute there.

    The scale is a power of two, so it changes no digit.
    """
    clouds = [P.to("cpu", torch.float64) for P in (X, Y)]
    clouds = _scaled(clouds)
    centre = clouds[0].mean(0)
    X64, Y64 = _scaled([P - centre for P in clouds])
    return X64, Y64


def _scaled(clouds: list[Tensor]) -> list[Tensor]:
    size = max(float(P.abs().max()) if P.numel() else 0.0 for P in clouds)
    _, exponent = math.frexp(size)
    half = exponent // 2  # 2^1074 is no number, its root is one
    return [P * 2.0**-half * 2.0 ** (half - exponent) for P in clouds]


def _masses(name: str, given: ArrayLike | None, count: int) -> tuple[Tensor, float]:
    """Return the masses as shares of their total, (count,) in float64, and the total."""
    if given is None:
        return torch.full((count,), 1.0 / count, dtype=torch.float64), 1.0
    try:
        masses = torch.as_tensor(given)
    except (TypeError, ValueError, RuntimeError) as wrong:
        raise TypeError(
            f"{name} must be a tensor, an array or a list of masses, got {given!r}: {wrong}"
        ) from wrong
    if masses.shape != (count,) or masses.is_complex():
        raise ValueError(
            f"{name} must be ({count},) real masses, one per point, got shape "
            f"{tuple(masses.shape)} of {masses.dtype}"
        )
    masses = masses.detach().to("cpu", torch.float64)
    if not bool((masses >= 0).all()) or not bool(masses.isfinite().all()):
        raise ValueError(
            f"{name} must be finite masses >= 0, got values from {masses.min().item()} to "
            f"{masses.max().item()}"
        )
    largest = masses.max().item()
    if largest == 0:
        raise ValueError(f"{name} must have mass, got a total of 0: leave it out for equal masses")
    relative = masses / largest  # so that no sum overflows or vanishes
    share = relative.sum().item()
    return relative / share, share * largest


def _optimal_plan(X: Tensor, Y: Tensor, p: Tensor, q: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the entries (i, j, mass) of an optimal plan, by POT's network simplex.

    It takes masses and costs of size 1: with far smaller ones it ends early, or crashes.
    """
    import ot

    cost = torch.cdist(X, Y, compute_mode="donot_use_mm_for_euclid_dist").square()
    plan = torch.from_numpy(ot.emd(p.numpy(), q.numpy(), cost.numpy(), numItermax=10_000_000))
    i, j = plan.nonzero(as_tuple=True)
    return i, j, plan[i, j]
