"""Every example runs, writes its figures, and the numbers that it claims hold."""

from __future__ import annotations

import csv
import importlib
import io
import re
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

from lightning_examples import output, problems
from lightning_examples.gallery import EXAMPLES

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def _no_window() -> Iterator[None]:
    before = mpl.get_backend()
    plt.switch_backend("agg")
    yield
    assert not plt.get_fignums()  # every example closes its figures
    plt.switch_backend(before)


def shows_data(ax: Axes) -> bool:
    """Whether something with finite coordinates is drawn, or the axes are switched off."""
    lines = [np.asarray(line.get_xydata(), dtype=float) for line in ax.get_lines()]
    return (
        not ax.axison
        or bool(ax.collections or ax.images or ax.patches)
        or any(np.isfinite(points).all(1).any() for points in lines if len(points))
    )


def fast(name: str, out: Path, *flags: str) -> Any:
    module = importlib.import_module(f"lightning_examples.{name}")
    return module.main(["--fast", "--no-progress", "--out", str(out), *flags])


@dataclass(frozen=True)
class Ran:
    """An example with ``--fast``: what ``main`` returned, wrote and printed."""

    result: Any
    folder: Path
    printed: str

    @property
    def written(self) -> set[str]:
        return {file.name for file in self.folder.iterdir() if file.is_file()}


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Ran]:
    """Run an example once for all the tests that ask for it."""
    save = output.save

    def checked(ax: Axes, path: Path, size: tuple[float, float]) -> None:
        for axes in ax.figure.figure.axes:
            assert shows_data(axes), f"{path.name} has an empty axes: {axes}"
        save(ax, path, size)

    @cache
    def run(name: str) -> Ran:
        folder, printed = tmp_path_factory.mktemp(name), io.StringIO()
        with pytest.MonkeyPatch.context() as patch, redirect_stdout(printed):
            patch.setattr(output, "save", checked)
            return Ran(fast(name, folder), folder, printed.getvalue())

    return run


def table(path: Path) -> list[dict[str, str]]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.slow
@pytest.mark.parametrize("name", EXAMPLES)
def test_example_writes_every_file_that_the_gallery_holds(
    name: str, ran: Callable[[str], Ran]
) -> None:
    found = ran(name)
    assert {f"{name}.png", f"{name}.csv"} <= found.written
    held = ROOT / "docs" / "gallery"
    for file in found.written:
        assert (held / file).exists(), f"{file} is new: run `make gallery`"
        if not file.endswith(".csv"):
            assert f"wrote {found.folder / file}" in found.printed
    rows, kept = table(found.folder / f"{name}.csv"), table(held / f"{name}.csv")
    assert rows
    for ours, theirs in zip(rows, kept, strict=False):
        assert ours.keys() == theirs.keys()


@pytest.mark.slow
def test_two_points_follow_the_closed_forms(ran: Callable[[str], Ran]) -> None:
    for row in table(ran("two_points").folder / "two_points.csv"):
        # The inner solver stops at a relative residual of 1e-13, amplified by g = 10 at most.
        assert float(row["error"]) < 1e-10, row
    held = table(ROOT / "docs" / "gallery" / "two_points.csv")
    assert max(float(row["error"]) for row in held) < 1e-10


@pytest.mark.slow
def test_sinus_descends_in_every_step_and_wasserstein_is_the_smaller_distance(
    ran: Callable[[str], Ran],
) -> None:
    for run in ran("sinus").result.values():
        assert run.losses == sorted(run.losses, reverse=True)
        for report in run.reports:
            assert report.objective <= report.loss_before
            assert report.wasserstein_sq <= report.frobenius_sq


@pytest.mark.slow
def test_the_global_step_on_tables_ends_lowest(ran: Callable[[str], Ran]) -> None:
    for name in ("surface", "diabetes"):
        rows = [row for row in ran("tabular").result if row["table"] == name]
        reached = {row["solver"]: row["objective"] for row in rows}
        assert reached["global"] <= min(reached.values()) + 1e-12


@pytest.mark.slow
def test_sinus_takes_the_flags_that_it_names(tmp_path: Path) -> None:
    wanted = {"m": 6, "n": 4, "gamma": 0.1, "seed": 3, "scale": 0.5, "solver": "gd", "steps": 1}
    flags = [part for name, value in wanted.items() for part in (f"--{name}", str(value))]
    runs = fast("sinus", tmp_path, *flags)
    assert runs["Frobenius"].positions[0].shape == (6, 2)
    assert len(runs["Frobenius"].reports) == 1


@pytest.mark.slow
def test_diabetes_spends_no_more_than_the_budget(ran: Callable[[str], Ran]) -> None:
    for name, run in ran("diabetes").result.items():
        assert run.evaluations[-1] <= 60 * 1.1, name  # L-BFGS may finish its line search
        assert run.losses[-1] < run.losses[0], name


def test_diabetes_is_standardised_on_the_training_part_and_split_without_overlap() -> None:
    (x, y), (x_val, y_val) = problems.diabetes()
    assert x.shape == (354, 10)
    assert x_val.shape == (88, 10)
    assert y.shape == (354, 1)
    assert y_val.shape == (88, 1)
    # float32 sums of 354 numbers of size 1
    assert x.mean(0).abs().max() < 1e-5
    assert (x.std(0) - 1).abs().max() < 1e-5
    rows = {tuple(row) for row in x.tolist()}
    assert not any(tuple(row) in rows for row in x_val.tolist())


@pytest.mark.parametrize("name", EXAMPLES)
def test_example_has_cells_and_says_how_to_run_it(name: str) -> None:
    source = (ROOT / "lightning_examples" / f"{name}.py").read_text()
    assert f"python -m lightning_examples.{name}" in source
    assert re.search(r"^# %% ", source, re.MULTILINE)
