"""The digits run as any Lightning module does, and their page says what their table says."""

from __future__ import annotations

import csv
from collections import defaultdict
from pathlib import Path
from statistics import median

import pytest
import torch

from lightning_examples import digits
from lightning_examples.classifier import Digits

HELD = Path(__file__).parents[2] / "docs" / "gallery"


def shown(number: float) -> str:
    return f"{number:.3f}"


def test_the_page_says_what_the_table_says() -> None:
    page = (HELD / "digits.md").read_text()
    accuracies, seconds = defaultdict(list), defaultdict(list)
    with (HELD / "digits.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            key = (row["optimizer"], row["budget"], float(row["step size"]))
            accuracies[key].append(float(row["accuracy"]))
            seconds[row["optimizer"], row["budget"]].append(float(row["seconds"]))
    found = {key: median(values) for key, values in accuracies.items()}
    assert {len(values) for values in accuracies.values()} == {5}
    for prox in ("WassersteinProx", "FrobeniusProx"):
        values = [found[prox, "evaluations", 10.0**k] for k in range(4)]
        assert min(values) == max(values)
        assert f"reach {shown(values[0])} for *every*" in page
    good = [found["Adam", "evaluations", 10.0**-k] for k in (1, 2, 3)]
    assert f"{shown(min(good))} to {shown(max(good))} from" in page
    assert f"{shown(found['Adam', 'evaluations', 1e-4])} at" in page
    longer = max(v for (name, budget, _), v in found.items() if budget == "seconds")
    assert f"reaches {shown(longer)}" in page
    ours = median(seconds["WassersteinProx", "evaluations"])
    assert f"({ours / median(seconds['Adam', 'evaluations']):.1f} times its own)" in page


def test_the_split_has_no_overlap() -> None:
    data = Digits(seed=1)
    parts = [set(part.indices) for part in (data.train, data.validation, data.test)]
    assert sum(len(part) for part in parts) == len(set().union(*parts)) == 1797


@pytest.mark.slow
def test_lightning_keeps_the_best_checkpoint_and_logs_gamma(tmp_path: Path) -> None:
    trainer = digits.main(["--fast", "--no-progress", "--out", str(tmp_path)])
    best = torch.load(trainer.checkpoint_callback.best_model_path, weights_only=True)
    assert best["optimizer_states"][0]["param_groups"][0]["lr"] == 10.0
    assert trainer.checkpoint_callback.best_model_score > 0.85
    (metrics,) = tmp_path.glob("run/lightning_logs/version_0/metrics.csv")
    with metrics.open(newline="") as file:
        logged = {row[key] for row in csv.DictReader(file) for key in row if "lr-Wass" in key}
    assert "10.0" in logged
