"""The table of sizes of the certified step."""

from __future__ import annotations

import pytest

from benchmarks import certified_sizes


@pytest.mark.slow
def test_a_small_size_is_solved_within_half_a_percent(capsys: pytest.CaptureFixture[str]) -> None:
    certified_sizes.main(["--fast"])
    *_, last = capsys.readouterr().out.strip().splitlines()
    cells = [cell.strip() for cell in last.strip("|").split("|")]
    assert cells[0] == "line, n = 12"
    assert "proved" in cells[5]
    assert float(cells[6].removesuffix(" %")) <= 0.5
