"""Every benchmark runs, and prints a table."""

from __future__ import annotations

import importlib
import re
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import problems
from benchmarks.__main__ import NAMES
from benchmarks.quality import values
from benchmarks.table import header, quartiles, read, short
from torch_wprox.solvers import BFGS

DOCS = Path(__file__).resolve().parents[2] / "docs" / "benchmarks"


def tables(text: str) -> list[list[list[str]]]:
    """Return the Markdown tables of a text, as rows of cells, the head first."""
    found: list[list[list[str]]] = []
    inside = False
    for line in text.splitlines():
        if line.startswith("|"):
            if not inside:
                found.append([])
            found[-1].append([cell.strip() for cell in line.strip("|").split("|")])
        inside = line.startswith("|")
    return found


@pytest.mark.parametrize("name", NAMES)
def test_benchmark_says_what_its_flags_are(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        importlib.import_module(f"benchmarks.{name}").main(["--help"])
    assert ended.value.code == 0
    assert "--fast" in capsys.readouterr().out


@pytest.mark.nightly
@pytest.mark.parametrize("name", NAMES)
def test_benchmark_prints_whole_tables_of_numbers_and_writes_those_of_the_docs(
    name: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    with warnings.catch_warnings():  # a benchmark may silence other packages
        words = ["--fast", "--csv", str(tmp_path / f"{name}.csv")]
        importlib.import_module(f"benchmarks.{name}").main(words)
    for path in tmp_path.iterdir():
        documented = DOCS / path.name
        assert not documented.exists() or read(documented)[0] == read(path)[0]
    assert any(tmp_path.iterdir())
    found = tables(capsys.readouterr().out)
    assert found
    for head, _, *rows in found:
        assert rows, head
        for row in rows:
            assert len(row) == len(head), row
            assert any(re.search(r"\d", cell) for cell in row), row
            assert not any(re.search(r"\bnan\b", cell) for cell in row), row


def test_a_budget_read_off_a_longer_run_is_that_of_a_shorter_one() -> None:
    problem = problems.signed(*problems.sinus(), 10, 0)
    long = values(problem, 1.0, "emd", BFGS(), (30, 60))
    assert long[30] == values(problem, 1.0, "emd", BFGS(), (30,))[30]
    assert long[60] <= long[30]


def test_a_perturbation_is_relative_and_of_the_size_it_says() -> None:
    W, same, other = (problems.signed(*problems.sinus(), 50, 0, p).W for p in (0, 0, 1))
    assert torch.equal(W, same)
    relative = ((other - W) / W).abs().max()
    assert 1e-13 < relative < 1e-11


def test_numbers_are_medians_with_quartiles() -> None:
    assert quartiles([0.1, 0.2, 0.3, 0.4, 0.5]) == "0.3 (0.2, 0.4)"
    assert short(np.float64(1234.5)) == "1234"
    assert header(["a", "b"]).splitlines() == ["| a | b |", "|---|---|"]
