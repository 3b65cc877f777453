"""The benchmark of large clouds runs, and a distance needs memory in proportion to the cloud."""

from __future__ import annotations

import pytest

from benchmarks import scale
from benchmarks.memory import in_a_child


@pytest.mark.slow
def test_sliced_needs_memory_in_proportion_to_the_cloud() -> None:
    small, large = (in_a_child(scale.run, scale.Case(m, "sliced")) for m in (20_000, 80_000))
    assert small["finite"]
    assert large["finite"]
    # A cost matrix of 80 000 particles would be 6400 million numbers; the ratio of a cloud's
    # size to memory may only move by what pieces and the allocator round.
    assert large["clouds"] <= 1.5 * small["clouds"]
    assert large["value"] < large["identity"]
