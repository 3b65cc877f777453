"""Self-scaled BFGS with a dense inverse Hessian: for kinks and for stiff smooth losses alike."""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from torch_wprox.arguments import checked_count
from torch_wprox.objective import Evaluation, Objective
from torch_wprox.report import Status
from torch_wprox.solvers.curvature_pairs import CurvaturePairs, Pairs
from torch_wprox.solvers.line_search import Numbers, WeakWolfe, checked_search
from torch_wprox.solvers.quasi_newton import descend, start_shape
from torch_wprox.solvers.running_matrix import RunningMatrix
from torch_wprox.solvers.stopping import Stopping


@dataclass(frozen=True)
class BFGS:
    """Quasi-Newton descent from V = W with a dense inverse Hessian H (N, N).

    H is updated by :func:`self_scaled`. With a weak Wolfe search <s, y> > 0 always, so H stays
    positive definite. On a function with kinks it becomes ill-conditioned on purpose: it learns to
    move along the kink (Lewis & Overton 2013).

    The Hessian of P is that of F plus I/(m gamma), whatever the anchor and whatever particle is
    assigned to which anchor. So where F and gamma are those of the last step H is carried over
    whole; where gamma has fallen it is made that of the new P.

    Args:
        line_search: The weak Wolfe search.
        self_scaling: Whether H is scaled; False: BFGS as in every textbook.
        remember: What carries over to the next step, and is saved in a state dict. None: H, 8 N^2
            bytes in float64 (8 MB for N = 1000); k: the last k curvature pairs, 16 k N bytes,
            from which a different and worse H is made; 0: nothing.

    Raises:
        TypeError: ``line_search`` has no ``search``.
        ValueError: ``remember`` is neither None nor an integer >= 0.

    Example:
        >>> import torch
        >>> from torch_wprox import prox
        >>> solver = BFGS(self_scaling=False)
        >>> W, loss = torch.zeros(4, 1), lambda V: (V - 2).square().mean()
        >>> V, report = prox(loss, W, 1.0, solver=solver)
        >>> V[0], report.objective < report.loss_before
        (tensor([1.3333]), True)

    Source: Al-Baali 1998; Urban, Stefanou & Pons, Unveiling the optimization process of
    physics-informed neural networks, 2025; Lewis & Overton, Nonsmooth optimization via quasi-Newton
    methods, 2013.
    """

    line_search: WeakWolfe = field(default_factory=WeakWolfe)
    self_scaling: bool = True
    remember: int | None = None

    name = "bfgs"

    def __post_init__(self) -> None:
        checked_search(self.line_search)
        if self.remember is not None:
            checked_count("remember", self.remember, least=0)

    def minimize(
        self, objective: Objective, stopping: Stopping, memory: dict[str, Any] | None = None
    ) -> tuple[Status, dict[str, Any] | None]:
        """Descend until a rule of ``stopping`` holds, the budget ends or no direction descends."""
        inverse = DenseInverse(self.self_scaling, self.remember, objective, memory)
        return descend(objective, stopping, inverse, self.line_search, memory)


class DenseInverse:
    """The inverse Hessian as a matrix, and what of it carries over.

    Args:
        scaled: Whether updates are self-scaled.
        remember: As in :class:`BFGS`.
        objective: P of this step, for the Hessian of its distance term.
        memory: What :meth:`state` gave at the end of the last step.
    """

    def __init__(
        self,
        scaled: bool,
        remember: int | None,
        objective: Objective,
        memory: dict[str, Any] | None,
    ) -> None:
        self._scaled = scaled
        self._distance_hessian = objective.distance_hessian()
        self._kappa = objective.stiffness()
        self._pairs = CurvaturePairs(remember) if remember else None
        self._keeps_all = remember is None
        self._H: RunningMatrix | None = None
        self._product: tuple[Tensor, Tensor] | None = None  # the last gradient g, and H g
        self._recent: deque[tuple[Tensor, Tensor]] = deque(maxlen=_RECENT)
        if memory is None:
            return
        if self._pairs is not None and "steps" in memory:
            self._H = _from_pairs(self._pairs.recall(memory, objective))
        elif self._keeps_all and "inverse_hessian" in memory:
            self._H = RunningMatrix.of(memory)
            more = self._distance_hessian - memory["distance_hessian"]
            if bool((more > 0).any()):
                self._H = RunningMatrix(with_curvature(self._H.dense(), more))

    @property
    def is_empty(self) -> bool:
        """Whether nothing is known."""
        return self._H is None

    @property
    def is_matrix_next(self) -> bool:
        """Whether the next update makes a matrix, N^2 numbers, of H."""
        return self._H is not None and self._H.is_matrix_next

    def recent(self) -> tuple[Tensor, Tensor] | None:
        """Return the last pairs of this step, (k, N); None without any."""
        if not self._recent:
            return None
        S, Y = map(torch.stack, zip(*self._recent, strict=True))
        return S, Y

    def times(self, g: Tensor) -> Tensor:
        """Return H g, (N,)."""
        assert self._H is not None
        if self._product is None or self._product[0] is not g:
            self._product = g, self._H.times(g)
        return self._product[1]

    def update(self, before: Evaluation, after: Evaluation, t: float) -> None:
        """Take in one accepted iteration of length t."""
        s, y = after.point - before.point, after.grad - before.grad
        if self._pairs is not None:
            self._pairs.note(before, after)
        sy, yy, ss, sg = _numbers((s, y), (y, y), (s, s), (s, before.grad))
        if not (0 < sy < math.inf):
            return
        self._recent.append((s, y))
        if self._H is None:  # Nocedal & Wright (6.20): the scale of the first curvature seen
            if self._kappa is None:
                scale = _scale(s, y, sy, yy)
                self._H = RunningMatrix(torch.full_like(s, scale))
                sBs = ss / scale
            else:
                shape = start_shape(self._kappa, s, y)
                [scaled_yy, scaled_ss] = _numbers((y, shape * y), (s, s / shape))
                self._H = RunningMatrix(shape * (sy / scaled_yy))
                sBs = scaled_ss * scaled_yy / sy
        else:
            sBs = -t * sg  # s = -t H g
        Hy, Hg = self._products(before, after, y, yy)
        found = update_terms(s, y, Hy, sBs if self._scaled else None)
        if found is not None:
            U, M, scale = found
            self._H.add(U, M, scale)
            if Hg is not None:
                Hg = torch.addmv(scale * Hg, U.T, M @ (U @ after.grad))
        self._product = None if Hg is None else (after.grad, Hg)

    def _products(
        self, before: Evaluation, after: Evaluation, y: Tensor, yy: float
    ) -> tuple[Tensor, Tensor | None]:
        """Return H y and H g, g the gradient after the iteration, by one product with H.

        H g before the iteration is known, it gave the direction. So H is applied to g after it, and
        H y is the difference; or to y where that is so short that the difference would lose digits.
        Where products cost next to nothing none is saved: H g is None.
        """
        assert self._H is not None
        if self._H.is_small or self._product is None or self._product[0] is not before.grad:
            return self._H.times(y), None
        Hg_before = self._product[1]
        if yy < (_SHORT * after.residual) ** 2:
            Hy = self._H.times(y)
            return Hy, Hg_before + Hy
        Hg = self._H.times(after.grad)
        return Hg - Hg_before, Hg

    def forget(self) -> None:
        """Become what the last pairs say without scaling; when that was of no use, empty.

        Close to a minimum with kinks every crossing of one has enlarged H in all other directions,
        and a search along them ends at once. The gradient, all of the kinks, is no direction there.
        """
        self._H = self._product = None
        if len(self._recent) > 1:
            self._H = _from_pairs(self.recent())
        self._recent.clear()

    def state(self) -> dict[str, Any] | None:
        """Return what may carry over to the next step."""
        if self._pairs is not None:
            return self._pairs.state()
        if self._H is None or not self._keeps_all:
            return None
        return {**self._H.state(), "distance_hessian": self._distance_hessian}


def self_scaled(H: Tensor, s: Tensor, y: Tensor, sBs: float | None) -> None:
    r"""Update the inverse Hessian H (N, N) in place by the pair ``s, y`` (N,), <s, y> > 0.

        H+ = (H - Hy Hy^T/<y, Hy> + phi v v^T)/tau + s s^T/<s, y>,
        v = sqrt(<y, Hy>) (s/<s, y> - Hy/<y, Hy>),   tau, phi = scaling(...)

    tau = phi = 1 is BFGS, which forgets a curvature that is too large direction by direction only;
    tau < 1 lowers it everywhere. That is what kinks and stiff residuals need.

    Args:
        H: Symmetric and positive definite.
        s: The way between two points.
        y: The difference of the gradients.
        sBs: <s, Bs>, B the inverse of H; None: tau = phi = 1.

    Source: Al-Baali 1998; Urban, Stefanou & Pons 2025.
    """
    found = update_terms(s, y, torch.mv(H, y), sBs)
    if found is not None:
        U, M, scale = found
        H.addmm_(U.T, M @ U, beta=scale)


def update_terms(
    s: Tensor, y: Tensor, Hy: Tensor, sBs: float | None
) -> tuple[Tensor, Tensor, float] | None:
    """Return U (2, N), M (2, 2) and 1/tau with H+ = H/tau + U^T M U in :func:`self_scaled`.

    None where H is not positive definite at this precision.

    Args:
        s: The way between two points, (N,).
        y: The difference of the gradients, (N,).
        Hy: H y, (N,).
        sBs: As in :func:`self_scaled`.
    """
    sy, yHy = _numbers((s, y), (y, Hy))
    # Else H is not positive definite, or the numbers below would overflow.
    if not (yHy > 0 and _LEAST * min(sy, yHy) > 0):
        return None
    tau, phi = (1.0, 1.0) if sBs is None else scaling(sBs / sy, yHy / sy, len(s))
    ss, sh, hh = rank_two(sy, yHy, tau, phi)
    return torch.stack([s, Hy]), s.new_tensor([[ss, sh], [sh, hh]]), 1.0 / tau


def add_rank_two(
    H: Tensor, s: Tensor, Hy: Tensor, sy: float, yHy: float, tau: float, phi: float
) -> None:
    """Make H (N, N) the H+ of :func:`self_scaled`, in place: with U = (s, Hy), H/tau + U^T M U."""
    ss, sh, hh = rank_two(sy, yHy, tau, phi)
    M, U = H.new_tensor([[ss, sh], [sh, hh]]), torch.stack([s, Hy])
    H.addmm_(U.T, M @ U, beta=1.0 / tau)  # one pass over H


def rank_two(
    sy: Numbers, yHy: Numbers, tau: float = 1.0, phi: float = 1.0
) -> tuple[Numbers, Numbers, Numbers]:
    """Return the weights of s s^T, s y^T H + H y s^T and H y y^T H in :func:`self_scaled`.

    Args:
        sy: <s, y>, of one pair or of every row of a batch (B,).
        yHy: <y, Hy>, likewise.
        tau: Of :func:`scaling`; 1 for BFGS.
        phi: Likewise.
    """
    cross = -phi / (tau * sy)
    return 1.0 / sy - yHy / sy * cross, cross, (phi - 1.0) / (tau * yHy)


def scaling(b: float, h: float, N: int) -> tuple[float, float]:
    """Return tau and phi of :func:`self_scaled`.

        a = h b - 1 >= 0,   c = sqrt(a/(1 + a)),   rho = min(1, h (1 - c)),
        theta = max((rho - 1)/a, min(1/rho, (1 - b)/b)),   sigma = 1 + a theta,
        tau = min(1, 1/b) min(sigma^(-1/(N - 1)), 1/theta)      if theta > 0,
              min(min(1, 1/b) sigma^(-1/(N - 1)), sigma)        else,
        phi = (1 - theta)/sigma

    Args:
        b: <s, Bs>/<s, y>.
        h: <y, Hy>/<s, y>.
        N: Size of H.
    """
    a = h * b - 1.0
    if not (b > 0 and math.isfinite(a)) or N < 2:
        return 1.0, 1.0
    if not a > 0:  # s and Hy are parallel: v = 0
        return max(min(1.0, 1.0 / b), _LEAST), 1.0
    rho = min(1.0, h * (1.0 - math.sqrt(a / (1.0 + a))))
    if not rho > 0:
        return 1.0, 1.0
    theta = max((rho - 1.0) / a, min(1.0 / rho, (1.0 - b) / b))
    sigma = 1.0 + a * theta
    if not sigma > _LEAST:
        return 1.0, 1.0
    root, least = sigma ** (-1.0 / (N - 1)), min(1.0, 1.0 / b)
    tau = least * min(root, 1.0 / theta) if theta > 0 else min(least * root, sigma)
    phi = (1.0 - theta) / sigma
    return (tau, phi) if tau > _LEAST and math.isfinite(phi) else (1.0, 1.0)


# Pairs of this step from which H is made anew when a search fails.
_RECENT = 50
# H is applied to y where it is shorter than this share of g.
_SHORT = 0.1
# Below this a scaling says only that the pair is rounding.
_LEAST = 1e-12


def with_curvature(H: Tensor, more: Tensor) -> Tensor:
    """Return (H^-1 + diag(more))^-1 where ``more`` (N,) is nowhere negative, else H.

        (H^-1 + D)^-1 = H - H D^(1/2) (I + D^(1/2) H D^(1/2))^-1 D^(1/2) H

    A curvature that has fallen is left to the updates, which lower it: taking it off could leave a
    matrix that is not positive definite.
    """
    if bool((more < 0).any()) or not bool((more > 0).any()):
        return H
    root = more.sqrt()
    inner = root[:, None] * H * root
    inner.diagonal().add_(1.0)
    right = root[:, None] * H
    half = torch.linalg.solve_triangular(torch.linalg.cholesky(inner), right, upper=False)
    changed: Tensor = H - half.T @ half
    return changed


def _from_pairs(kept: tuple[Tensor, ...] | None) -> RunningMatrix | None:
    """Return H after pairs (k, N), as BFGS makes it one by one; None without any."""
    if kept is None:
        return None
    pairs = Pairs(kept[0][0], len(kept[0]))
    pairs.replace(*kept)
    return RunningMatrix(pairs.dense()) if len(pairs) else None


def _scale(s: Tensor, y: Tensor, sy: float, yy: float) -> float:
    """Return <s, y>/<y, y>, also where the squares of y overflow or vanish."""
    if math.isfinite(yy) and yy > torch.finfo(y.dtype).tiny / torch.finfo(y.dtype).eps:
        return sy / yy
    largest = y.abs().max().item()
    unit = y / largest
    return float(torch.dot(s, unit).item() / torch.dot(unit, unit).item() / largest)


def _numbers(*pairs: tuple[Tensor, Tensor]) -> list[float]:
    """Return inner products, with one device synchronisation for all of them."""
    numbers: list[float] = torch.stack([torch.dot(a, b) for a, b in pairs]).tolist()
    return numbers
