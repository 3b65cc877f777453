"""Input-convex networks, their gradients as maps, and the log determinants."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from torch_wprox.maps import ConvexNetwork, LogDet, TransportMap, pushed


def case(dim: int, depth: int, seed: int = 0, width: int = 12) -> tuple[TransportMap, Tensor]:
    """A map far from the identity, and points."""
    random = torch.Generator().manual_seed(seed)
    network = ConvexNetwork(dim, width, depth)
    theta = network.initial(random, torch.float64)
    theta = theta + 0.3 * torch.randn(theta.shape, generator=random, dtype=torch.float64)
    x = torch.randn(40, dim, generator=random, dtype=torch.float64)
    return TransportMap(network, theta, x.mean(0, keepdim=True) + 0.5, 1.7), x


CASES = pytest.mark.parametrize(("dim", "depth"), [(1, 1), (2, 0), (2, 3), (5, 1), (7, 2)])


@CASES
def test_the_map_is_the_gradient_of_its_potential(dim: int, depth: int) -> None:
    map_, x = case(dim, depth)
    at = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(map_.potential(at).sum(), at)
    torch.testing.assert_close(map_(x), gradient, rtol=1e-7, atol=1e-7)  # softplus is cut at 20


@CASES
def test_the_jacobian_is_that_of_autograd(dim: int, depth: int) -> None:
    map_, x = case(dim, depth)
    jacobian = torch.func.vmap(torch.func.jacrev(lambda at: map_(at[None])[0]))(x)
    torch.testing.assert_close(map_.jacobian(x), jacobian, rtol=1e-10, atol=1e-12)


@CASES
@pytest.mark.parametrize("seed", range(3))
def test_the_potential_is_strongly_convex_whatever_theta_is(
    dim: int, depth: int, seed: int
) -> None:
    map_, x = case(dim, depth, seed)
    wild = TransportMap(map_.network, 5 * map_.theta, map_.centre, map_.scale)
    # The rounding of an eigenvalue is that of the largest one.
    for m in (map_, wild):
        values = torch.linalg.eigvalsh(m.jacobian(x))
        assert (values[:, 0] >= m.network.strength - 1e-13 * values[:, -1]).all()


@CASES
def test_the_inverse_undoes_the_map(dim: int, depth: int) -> None:
    map_, x = case(dim, depth)
    torch.testing.assert_close(map_.inverse(map_(x)), x, rtol=1e-8, atol=1e-8)


def test_an_affine_map_changes_volume_by_its_determinant() -> None:
    map_, x = case(4, 0)
    jacobian = torch.func.jacrev(lambda at: map_(at[None])[0])(x[0])
    torch.testing.assert_close(map_.log_det(x), torch.logdet(jacobian).expand(len(x)))


def test_the_first_map_is_nearly_the_identity() -> None:
    for depth in (0, 1, 2, 3):
        network = ConvexNetwork(3, 32, depth)
        theta = network.initial(torch.Generator().manual_seed(1), torch.float64)
        x = torch.randn(50, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        assert (network.gradient(theta, x) - x).abs().max() < 0.1


def test_full_lanczos_answers_the_probes_exactly() -> None:
    map_, x = case(5, 2)
    random = torch.Generator().manual_seed(0)
    z = torch.randint(0, 2, x.shape, generator=random).to(x) * 2 - 1
    values, vectors = torch.linalg.eigh(map_.jacobian(x))
    expected = ((vectors.mT @ z[:, :, None])[:, :, 0].square() * values.log()).sum(1)
    found = LogDet("lanczos", iterations=5).of(map_, x)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


def test_lanczos_and_its_gradient_are_unbiased() -> None:
    map_, x = case(5, 2)
    theta = map_.theta.clone().requires_grad_()
    map_ = TransportMap(map_.network, theta, map_.centre, map_.scale)
    many = x.repeat(500, 1)
    found, exact = LogDet("lanczos", iterations=5).of(map_, many), map_.log_det(x)
    # A probe's standard deviation is about 1: 20 000 of them leave .007.
    assert abs(found.mean() - exact.mean()) < 0.03
    (ours,) = torch.autograd.grad(found.mean(), theta)
    (true,) = torch.autograd.grad(exact.mean(), theta)
    assert (ours - true).norm() < 0.03 * true.norm()


def test_a_cloud_in_chunks_is_the_cloud_in_one_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    map_, x = case(3, 2)
    map_ = TransportMap(map_.network, map_.theta.requires_grad_(), map_.centre, map_.scale)
    whole = pushed.push(map_, x, LogDet())
    monkeypatch.setattr(pushed, "_CHUNK_NUMBERS", 12 * 3 * 7)
    parts = pushed.push(map_, x, LogDet())
    assert parts._graph is None
    torch.testing.assert_close(whole.points, parts.points)
    torch.testing.assert_close(whole.log_det, parts.log_det)
    weights = x.cos(), x[:, 0]
    torch.testing.assert_close(whole.pull_back(*weights), parts.pull_back(*weights))


@pytest.mark.parametrize(
    "options",
    [{"dim": 0}, {"width": 0}, {"depth": -1}, {"strength": 0.0}, {"strength": 1.0}],
)
def test_an_option_out_of_range_is_named(options: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        ConvexNetwork(**{"dim": 2, **options})  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="iterations"):
        LogDet(iterations=0)
    with pytest.raises(ValueError, match="method"):
        LogDet("cg")  # type: ignore[arg-type]
