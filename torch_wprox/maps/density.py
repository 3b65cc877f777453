"""The density of a cloud as a mixture of Gaussians, for the gradient of its logarithm."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

# Numbers of components that are tried; the Bayesian information criterion chooses.
_TRIED = (1, 2, 3, 4, 6, 8, 12, 16)
_ITERATIONS, _TOLERANCE = 200, 1e-6
# No component is narrower than this share of the cloud, in variance.
_NARROWEST = 1e-4


@dataclass(frozen=True)
class GaussianMixture:
    r"""A mixture, :math:`\mu(x) = \sum_k w_k N(x; m_k, C_k)`.

    Attributes:
        log_weights: log w, (K,).
        means: m, (K, D).
        factors: Lower Cholesky factors of C, (K, D, D).
    """

    log_weights: Tensor
    means: Tensor
    factors: Tensor

    def log_parts(self, x: Tensor) -> Tensor:
        """Return log(w_k N(x; m_k, C_k)) at x (n, D), (n, K)."""
        off = self._whitened(x)
        size = self.factors.diagonal(dim1=1, dim2=2).log().sum(1)
        constant = self.log_weights - size - 0.5 * x.shape[1] * math.log(2 * math.pi)
        return constant - 0.5 * off.square().sum(1).t()

    def score(self, x: Tensor) -> Tensor:
        """Return grad log mu at x (n, D), (n, D)."""
        share: Tensor = self.log_parts(x).softmax(1)  # of every component at every point
        pulls = torch.linalg.solve_triangular(
            self.factors.transpose(1, 2), self._whitened(x), upper=True
        )
        found: Tensor = -torch.einsum("ik,kdi->id", share, pulls)
        return found

    def _whitened(self, x: Tensor) -> Tensor:
        """Return the solutions u of (factor of C_k) u = x - m_k, (K, D, n)."""
        off = (x - self.means[:, None]).transpose(1, 2)
        found: Tensor = torch.linalg.solve_triangular(self.factors, off, upper=False)
        return found


def fitted_mixture(points: Tensor, seed: int) -> GaussianMixture:
    """Fit a mixture to points (n, D) by expectation and maximisation.

    The number of components is that of the least Bayesian information criterion,
    K(1 + D + D(D + 1)/2) log(n) - 2 log-likelihood; it rises with the size of the cloud.
    """
    n, D = points.shape
    random = torch.Generator().manual_seed(seed)
    centred = points - points.mean(0)
    floor = _NARROWEST * centred.square().mean() + torch.finfo(points.dtype).tiny
    best, least, worse = None, math.inf, 0
    for K in _TRIED:
        numbers = K * (1 + D + D * (D + 1) // 2)
        if K > 1 and 2 * numbers > n * D:  # more numbers than half of those that were observed
            break
        found, log_likelihood = _maximised(points, K, floor, random)
        criterion = numbers * math.log(n) - 2 * n * log_likelihood
        worse = 0 if criterion < least else worse + 1
        if criterion < least:
            best, least = found, criterion
        if worse == 2:
            break
    assert best is not None
    return best


def _maximised(
    points: Tensor, K: int, floor: Tensor, random: torch.Generator
) -> tuple[GaussianMixture, float]:
    """Return the mixture after the iteration and its mean log density."""
    share = _first_shares(points, K, random)
    before = -math.inf
    for _ in range(_ITERATIONS):
        mixture = _given_shares(points, share, floor)
        parts = mixture.log_parts(points)
        now = parts.logsumexp(1).mean().item()
        if now - before < _TOLERANCE:
            break
        before, share = now, parts.softmax(1)
    return mixture, now


def _given_shares(points: Tensor, share: Tensor, floor: Tensor) -> GaussianMixture:
    """Return the mixture whose components own ``share`` (n, K) of the points."""
    mass = share.sum(0).clamp_min(1e-12)
    means = (share.t() @ points) / mass[:, None]
    off = points - means[:, None]  # (K, n, D)
    covariances = torch.einsum("ik,kid,kie->kde", share, off, off) / mass[:, None, None]
    eye = torch.eye(points.shape[1], dtype=points.dtype, device=points.device)
    factors = torch.linalg.cholesky(covariances + floor * eye)
    return GaussianMixture((mass / mass.sum()).log(), means, factors)


def _first_shares(points: Tensor, K: int, random: torch.Generator) -> Tensor:
    """Give every point to the nearest of K seeds, chosen by k-means++, (n, K)."""
    first = torch.randint(len(points), (1,), generator=random).item()
    seeds = [points[int(first)]]
    for _ in range(K - 1):
        apart = torch.stack([(points - s).square().sum(1) for s in seeds]).amin(0).cpu()
        chances = apart if apart.sum() > 0 else torch.ones_like(apart)
        seeds.append(points[int(torch.multinomial(chances, 1, generator=random).item())])
    nearest = torch.cdist(points, torch.stack(seeds)).argmin(1)
    return torch.nn.functional.one_hot(nearest, K).to(points.dtype)
