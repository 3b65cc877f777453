"""The page of the tables of data says what its own table says."""

from __future__ import annotations

import csv
import importlib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def test_the_gallery_page_of_tabular_says_what_its_table_says() -> None:
    page = (ROOT / "docs" / "gallery" / "tabular.md").read_text()
    with (ROOT / "docs" / "gallery" / "tabular.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["table"] for row in rows} == {"surface", "diabetes"}
    for row in rows:
        cells = [row["table"], row["solver"]]
        cells += [f"{float(row[name]):.4f}" for name in ("objective", "lower bound")]
        cells += [f"{100 * float(row['above the bound']):.2g} %"]
        cells += [f"{float(row['validation loss']):.3f}"]
        assert "| " + " | ".join(cells) + " |" in page
        assert float(row["objective"]) >= float(row["lower bound"])
        assert (row["proved"] == "True") == (row["table"] == "surface")  # as the page says


@pytest.mark.slow
def test_the_global_step_on_tables_ends_lowest(tmp_path: Path) -> None:
    module = importlib.import_module("lightning_examples.tabular")
    rows = module.main(["--fast", "--no-progress", "--out", str(tmp_path)])
    for name in ("surface", "diabetes"):
        reached = {row["solver"]: row["objective"] for row in rows if row["table"] == name}
        assert reached["global"] <= min(reached.values()) + 1e-12
    assert (tmp_path / "tabular.png").stat().st_size > 0
