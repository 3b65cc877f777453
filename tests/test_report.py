"""What reports say of themselves."""

from __future__ import annotations

import dataclasses

import torch

from torch_wprox import Status
from torch_wprox.report import unmoved


def test_a_report_prints_its_numbers_and_no_assignment() -> None:
    report = dataclasses.replace(
        unmoved(2.0, Status.CONVERGED, 9),
        loss_after=0.5,
        objective=1.0,
        permuted_fraction=0.25,
        assignment=torch.arange(1000),
        lower_bound=0.8,
        gap=0.2,
        certified=True,
    )
    text = str(report)
    assert "converged after 9 evaluations: loss 2 -> 0.5" in text
    assert "25% of the particles exchanged" in text
    assert "proved (if the loss is convex in the output) lower bound 0.8, gap 25.000%" in text
    assert "tensor" not in text
    assert "assignment" not in repr(report)


def test_a_report_says_that_a_bound_is_an_estimate_and_a_distance_missing() -> None:
    report = dataclasses.replace(
        unmoved(1.0, Status.STALLED, 3), wasserstein_sq=None, lower_bound=0.5, gap=0.5
    )
    assert "estimated lower bound 0.5" in str(report)
    assert "Wasserstein not computed" in str(report)
