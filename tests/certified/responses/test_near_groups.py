"""Groups of near points."""

from __future__ import annotations

import torch

from torch_wprox.certified.responses.near_groups import near_groups


def test_groups_are_a_partition_into_as_few_near_points_as_asked_for() -> None:
    points = torch.randn(101, 3, generator=torch.Generator().manual_seed(0))
    for groups in (near_groups(points, size=8), near_groups(points, reach=0.5)):
        assert sorted(torch.cat(groups).tolist()) == list(range(101))
    assert max(len(g) for g in near_groups(points, size=8)) <= 8
    for group in near_groups(points, reach=0.5):
        x = points[group]
        assert float((x - x.mean(0)).norm(dim=1).max()) <= 0.5
    assert len(near_groups(points, reach=100.0)) == len(near_groups(points, size=101)) == 1
