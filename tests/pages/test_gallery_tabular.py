"""The page of the tables of data says what its own table says."""

from __future__ import annotations

import csv
from pathlib import Path

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
