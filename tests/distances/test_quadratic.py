"""Several squared distances as one quadratic: the same numbers as one by one."""

from __future__ import annotations

import pytest
import torch

from torch_wprox.distances import EMD, Frobenius
from torch_wprox.distances.quadratic import FlatQuadratic, Term

F64 = torch.float64


@pytest.mark.parametrize("kappas", [(0.5, 0.5, 0.5), (0.5, 2.0, 7.0)])
@pytest.mark.parametrize("settled", [False, True])
def test_one_quadratic_is_the_sum_of_its_terms_while_assignments_change(
    kappas: tuple[float, ...], settled: bool
) -> None:
    g = torch.Generator().manual_seed(0)
    shapes = [(7, 2), (1, 5), (4, 3)]
    distances = [EMD(), Frobenius(), EMD()]
    sizes = [m * D for m, D in shapes]
    W = torch.randn(sum(sizes), generator=g, dtype=F64)
    labels = [torch.tensor([0, 1, 0, 1, 0, 1, 0]), None, None]

    def terms() -> list[Term]:
        starts = [sum(sizes[:k]) for k in range(3)]
        return [
            Term(s, m, D, kappa, d.anchored(w.view(m, D), c))
            for s, (m, D), kappa, d, w, c in zip(
                starts, shapes, kappas, distances, W.split(sizes), labels, strict=True
            )
        ]

    quadratic, apart = FlatQuadratic(terms(), W), terms()
    anchor = W.clone()
    for k in range(6):
        x = W + k * torch.randn(len(W), generator=g, dtype=F64)
        grad = torch.randn(len(W), generator=g, dtype=F64)
        weight, squares, total = quadratic.added(grad, x, settled=settled)
        value = weight * squares
        parts = [
            (t, (t.distance.settle if settled else t.distance.evaluate)(x[t.rows].view(t.m, t.D)))
            for t in apart
        ]
        expected = sum(0.5 * t.kappa * t.m * d.value.item() for t, d in parts)
        pulls = [0.5 * t.kappa * t.m * d.gradient.reshape(-1) for t, d in parts]
        assert value.item() == pytest.approx(expected, rel=1e-14)
        torch.testing.assert_close(total, grad + torch.cat(pulls), rtol=1e-14, atol=1e-14)
    assert torch.equal(W, anchor)  # targets are written into a copy
    assert not torch.equal(apart[0].distance.assignment, torch.arange(7))


def test_a_distance_without_a_target_says_so() -> None:
    from torch_wprox.distances import Sinkhorn

    W = torch.zeros(2, 2)
    with pytest.raises(NotImplementedError, match="target"):
        Sinkhorn().anchored(W, None).target(W, settled=False)
