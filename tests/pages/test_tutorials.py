"""The notebooks of docs/tutorials run, and are committed with what they show."""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from matplotlib import pyplot as plt

NOTEBOOKS = sorted((Path(__file__).parents[2] / "docs" / "tutorials").glob("*.ipynb"))


@pytest.fixture(autouse=True)
def _no_window(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(plt, "show", lambda: plt.close("all"))
    before, state = plt.get_backend(), torch.random.get_rng_state()
    plt.switch_backend("agg")
    yield
    logging.disable(logging.NOTSET)
    torch.random.set_rng_state(state)
    plt.switch_backend(before)


def code_cells(path: Path) -> list[dict[str, Any]]:
    cells = json.loads(path.read_text())["cells"]
    return [cell for cell in cells if cell["cell_type"] == "code"]


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_the_notebook_runs(path: Path) -> None:
    namespace: dict[str, object] = {"__name__": "notebook"}
    with warnings.catch_warnings():  # a notebook may change the filters
        for cell in code_cells(path):
            exec(compile("".join(cell["source"]), path.name, "exec", dont_inherit=True), namespace)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_the_notebook_holds_outputs_with_a_picture_and_no_error(path: Path) -> None:
    outputs = [output for cell in code_cells(path) for output in cell["outputs"]]
    assert any("image/png" in output.get("data", {}) for output in outputs)
    assert not any(output["output_type"] == "error" for output in outputs)
    assert not any(output.get("name") == "stderr" for output in outputs)
