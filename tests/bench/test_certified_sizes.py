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


def test_a_row_with_time_for_a_proof_is_proved_in_five_inputs(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    row = certified_sizes.Size("d4", 4, 8, 6, 1.0, proof=30.0)
    monkeypatch.setattr(certified_sizes, "SIZES", (row,))
    certified_sizes.main(["--local", "0"])
    *_, last = capsys.readouterr().out.strip().splitlines()
    cells = [cell.strip() for cell in last.strip("|").split("|")]
    assert "proved" in cells[5]
    assert float(cells[6].removesuffix(" %")) <= 5.0
