"""The squared 2-Wasserstein distance between two weighted clouds."""

from __future__ import annotations

import torch
from torch import Tensor

from torch_wprox.distances.emd.exact import solve


def wasserstein_sq(
    X: Tensor, Y: Tensor, a: Tensor | None = None, b: Tensor | None = None
) -> Tensor:
    """Return the squared 2-Wasserstein distance between two point clouds.

        W2^2 = min_pi sum_ij pi_ij |X_i - Y_j|^2,   pi >= 0 with marginals a and b

    Equal sizes and uniform masses: exact assignment. Else: POT's linear program. The gradient flows
    through the cost with the plan fixed, which is exact wherever the plan is unique (Danskin).

    Args:
        X: (m, D).
        Y: (n, D).
        a: Masses of X, (m,), summing to the same total as ``b``; None: 1/m each.
        b: Masses of Y, (n,); None: 1/n each.

    Returns:
        W2^2, 0-d, in squared units of the points.

    Raises:
        ValueError: The shapes do not fit, or the masses are negative or of different totals.

    Example:
        >>> import torch
        >>> wasserstein_sq(torch.tensor([[0.0], [1.0]]), torch.tensor([[1.0], [2.0]]))
        tensor(1.)
    """
    if X.ndim != 2 or Y.ndim != 2 or X.shape[1] != Y.shape[1] or not len(X) or not len(Y):
        raise ValueError(
            "X and Y must be nonempty matrices (m, D) and (n, D) of one dimension D, got shapes "
            f"{tuple(X.shape)} and {tuple(Y.shape)}"
        )
    if a is None and b is None and len(X) == len(Y):
        sigma = solve(X.detach(), Y.detach(), None).to(Y.device)
        return (X - Y[sigma]).square().sum(1).mean()
    i, j, mass = _optimal_plan(X.detach(), Y.detach(), a, b)
    return (mass.to(X) * (X[i.to(X.device)] - Y[j.to(Y.device)]).square().sum(1)).sum()


def _optimal_plan(
    X: Tensor, Y: Tensor, a: Tensor | None, b: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the entries (i, j, mass) of an optimal plan, by POT's network simplex."""
    import ot

    masses = []
    for name, given, points in (("a", a, X), ("b", b, Y)):
        if given is None:
            given = X.new_full((len(points),), 1.0 / len(points))
        if given.shape != (len(points),) or not bool((given >= 0).all()):
            raise ValueError(
                f"{name} must be ({len(points)},) masses >= 0, one per point, got shape "
                f"{tuple(given.shape)} with minimum {given.min().item() if given.numel() else None}"
            )
        masses.append(given.detach().to("cpu", torch.float64))
    total_a, total_b = (mass.sum().item() for mass in masses)
    if abs(total_a - total_b) > 1e-6 * max(total_a, total_b):
        raise ValueError(f"a and b must have one total mass, got {total_a} and {total_b}")
    masses[1] *= total_a / total_b  # the simplex method wants them equal to the last bit
    X64, Y64 = (P.to("cpu", torch.float64) - X.mean(0).to("cpu", torch.float64) for P in (X, Y))
    cost = torch.cdist(X64, Y64, compute_mode="donot_use_mm_for_euclid_dist").square()
    plan = torch.from_numpy(
        ot.emd(masses[0].numpy(), masses[1].numpy(), cost.numpy(), numItermax=10_000_000)
    )
    i, j = plan.nonzero(as_tuple=True)
    return i, j, plan[i, j]
