"""Mixtures of Gaussians as densities of clouds."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from torch_wprox.maps.density import GaussianMixture, fitted_mixture


def normal(m: int, D: int, seed: int = 0) -> Tensor:
    return torch.randn(m, D, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_the_score_is_the_gradient_of_the_log_density() -> None:
    random = torch.Generator().manual_seed(1)
    factors = torch.randn(3, 2, 2, generator=random, dtype=torch.float64).tril()
    factors.diagonal(dim1=1, dim2=2).abs_().add_(0.3)
    weights = torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64)
    mixture = GaussianMixture(weights.log(), 2 * normal(3, 2, 2), factors)
    x = normal(20, 2).requires_grad_()
    log_density = mixture.log_parts(x).logsumexp(1)
    (expected,) = torch.autograd.grad(log_density.sum(), x)
    torch.testing.assert_close(mixture.score(x.detach()), expected)
    parts = [
        torch.distributions.MultivariateNormal(m, scale_tril=L)
        for m, L in zip(mixture.means, mixture.factors, strict=True)
    ]
    summed = torch.stack([w * p.log_prob(x).exp() for w, p in zip(weights, parts, strict=True)])
    torch.testing.assert_close(log_density, summed.sum(0).log())


def test_a_gaussian_cloud_is_one_component_with_its_moments() -> None:
    x = normal(800, 3) @ torch.tensor([[2.0, 0, 0], [1, 1, 0], [0, 0.5, 0.3]]).double()
    mixture = fitted_mixture(x, 0)
    assert len(mixture.means) == 1
    torch.testing.assert_close(mixture.means[0], x.mean(0))
    covariance = torch.cov(x.t(), correction=0)
    found = mixture.factors[0] @ mixture.factors[0].t()
    # The floor of the variance is 1e-4 of the cloud's.
    torch.testing.assert_close(found, covariance, rtol=1e-3, atol=1e-3)


def test_the_components_of_a_mixture_are_found() -> None:
    centres = torch.tensor([[-3.0, 0.0], [3.0, 0.0], [0.0, 4.0]], dtype=torch.float64)
    x = centres.repeat_interleave(1000, 0) + normal(3000, 2)
    mixture = fitted_mixture(x, 0)
    assert len(mixture.means) == 3
    assert torch.cdist(mixture.means, centres).amin(0).max() < 0.15
    logs = -(x[:, None] - centres).square().sum(2) / 2
    true = ((centres - x[:, None]) * logs.softmax(1)[..., None]).sum(1)
    assert (mixture.score(x) - true).norm() < 0.1 * true.norm()
    mean = (mixture.log_parts(x).logsumexp(1) - logs.logsumexp(1)).mean().item()
    # Three parts of equal weight; a fit has the higher likelihood by about half its 17 numbers.
    assert 0 < mean + math.log(3) + math.log(2 * math.pi) < 0.02


def test_few_points_and_equal_points_have_a_density() -> None:
    for x in (torch.ones(5, 2, dtype=torch.float64), normal(2, 4), normal(6, 1)):
        assert fitted_mixture(x, 0).score(x).isfinite().all()
