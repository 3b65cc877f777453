"""The pages on the note's sections 6 to 11 say what their tables say."""

from __future__ import annotations

import math
from statistics import median

import torch
from test_gallery_flow import page, short, table

from lightning_examples import experiment
from lightning_examples.flow import gradient_flow


def test_every_descent_is_of_first_order_in_gamma() -> None:
    said, rows = page("flow_vs_prox"), table("flow_vs_prox")
    errors: dict[str, dict[float, float]] = {}
    for name in dict.fromkeys(row["descent"] for row in rows):
        kind = [row for row in rows if row["descent"] == name]
        gammas = sorted({float(row["gamma"]) for row in kind}, reverse=True)
        errors[name] = {
            g: median(float(row["error"]) for row in kind if float(row["gamma"]) == g)
            for g in gammas
        }
        slope = math.log(errors[name][gammas[4]] / errors[name][gammas[-1]])
        slope /= math.log(gammas[4] / gammas[-1])
        assert 0.85 < slope < 1.1, name
        assert short(slope, 2) in said, name
        assert short(errors[name][gammas[0]], 2) in said
    assert errors["Frobenius prox"] == errors["Wasserstein prox"]
    assert all(float(row["permuted fraction"]) == 0 for row in rows)


def test_the_flow_is_of_fourth_order() -> None:
    x, y = experiment.sinus()

    def end(steps: int) -> torch.Tensor:
        layer = experiment.note_layer(4, seed=1, scale=1.0)
        loss = lambda: experiment.mean_squared_error(layer, x, y)  # noqa: E731
        return gradient_flow(layer, loss, 0.002, steps)[-1]

    exact = end(256)
    coarse, fine = ((end(n) - exact).norm().item() for n in (4, 8))
    assert 12 < coarse / fine < 20
