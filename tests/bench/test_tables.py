"""Tables of the docs are the CSV files that benchmarks write."""

from __future__ import annotations

import argparse
import csv
import importlib
import re
from pathlib import Path

import pytest

from benchmarks.table import Table, add_arguments, read

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
FILES = sorted(path.stem for path in (DOCS / "benchmarks").glob("*.csv"))
MODULES = {path.stem for path in (ROOT / "benchmarks").glob("*.py")}
INCLUDED = re.compile(r"^:file: (\S*benchmarks/(\w+)\.csv)$", re.MULTILINE)


def pages_with(stem: str) -> list[Path]:
    """Return the pages that include a table."""
    return [page for page in DOCS.glob("**/*.md") if stem in dict(included(page))]


def included(page: Path) -> list[tuple[str, Path]]:
    """Return name and file of every table of a benchmark in a page."""
    found = INCLUDED.findall(page.read_text())
    return [(stem, (page.parent / path).resolve()) for path, stem in found]


def module_of(stem: str) -> str:
    """Return the benchmark that writes ``NAME.csv`` or ``NAME_PART.csv``."""
    return max((m for m in MODULES if stem == m or stem.startswith(f"{m}_")), key=len)


def arguments(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return parser.parse_args(words)


def test_every_file_that_a_page_includes_is_there() -> None:
    for page in DOCS.glob("**/*.md"):
        for _, path in included(page):
            assert path.is_file(), f"{page.name} includes {path}"


@pytest.mark.parametrize("stem", FILES)
def test_a_file_is_included_by_a_page_that_says_the_command_which_writes_it(
    stem: str, capsys: pytest.CaptureFixture[str]
) -> None:
    pages, name = pages_with(stem), module_of(stem)
    assert pages
    for page in pages:
        before = page.read_text().split(f"benchmarks/{stem}.csv\n")[0]
        assert f"python -m benchmarks.{name}" in before, page.name
    with pytest.raises(SystemExit):
        importlib.import_module(f"benchmarks.{name}").main(["--help"])
    assert "--csv" in capsys.readouterr().out


@pytest.mark.parametrize("stem", FILES)
def test_a_file_is_a_whole_table(stem: str) -> None:
    head, *rows = read(DOCS / "benchmarks" / f"{stem}.csv")
    assert rows
    assert all(len(row) == len(head) for row in rows)


def test_a_table_is_printed_and_written_alike(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "new" / "speed.csv"
    table = Table(["name, unit", "value"], arguments("--csv", str(path)), part="small")
    table.add(['"quoted"', 0.5])
    with path.with_name("speed_small.csv").open(newline="") as file:
        assert list(csv.reader(file)) == [["name, unit", "value"], ['"quoted"', "0.5"]]
    assert not path.exists()
    assert capsys.readouterr().out == '| name, unit | value |\n|---|---|\n| "quoted" | 0.5 |\n'


def test_with_keep_a_row_takes_the_place_of_the_one_with_its_labels(tmp_path: Path) -> None:
    words = ["--csv", str(tmp_path / "speed.csv")]
    for more, rows in (([], ["aax", "aby", "bay"]), (["--keep"], ["abz", "cay"])):
        table = Table(["m", "n", "value"], arguments(*words, *more), labels=2)
        for cells in rows:
            table.add(cells)
    assert read(tmp_path / "speed.csv")[1:] == [list(r) for r in ("aax", "abz", "bay", "cay")]
    with pytest.raises(ValueError, match=r"--keep: .*speed\.csv has the columns .* write it anew"):
        Table(["m", "value"], arguments(*words, "--keep"))
    Table(["m", "value"], arguments(*words)).add("az")
    assert read(tmp_path / "speed.csv") == [["m", "value"], ["a", "z"]]


def test_a_row_has_as_many_cells_as_the_table_has_columns() -> None:
    with pytest.raises(ValueError, match=r"1 cells for 2 columns: \['a'\]"):
        Table(["m", "value"]).add("a")
