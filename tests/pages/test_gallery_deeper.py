"""The page of the deeper networks says what their table says, and the parts are what it says."""

from __future__ import annotations

from collections.abc import Callable
from statistics import median

import pytest
import torch
from test_gallery_flow import GALLERY, page, short, table
from torch import nn

from lightning_examples import deeper_models
from lightning_examples.deeper import Kind
from torch_wprox import particle_groups

NAMES = {"digits, MLP": "MLP", "sequences, transformer": "transformer"}
SIZES = {"1000 1000 1000": "1000", "10 100 100": "10, 100 and 100", "1 1 10": "1, 1 and 10"}


def test_the_page_says_what_the_table_says() -> None:
    rows, said = table("deeper"), page("deeper")
    found: dict[tuple[str, str, str], tuple[float, float]] = {}
    for task in NAMES:
        for name in ("Adam", "LBFGS", "WassersteinProx"):
            of = [r for r in rows if (r["task"], r["optimizer"]) == (task, name)]
            trained = [r for r in of if r["first layer"] == "trained"]
            for sizes in {r["step sizes"] for r in trained}:
                runs = [r for r in trained if r["step sizes"] == sizes]
                assert len(runs) == 3
                columns = ("training loss", "test accuracy")
                loss, accuracy = (median(float(r[c]) for r in runs) for c in columns)
                found[task, name, sizes] = loss, accuracy
    howto = " ".join((GALLERY.parent / "howto" / "deeper.md").read_text().split())
    for task, network in NAMES.items():
        best = min(v for (t, name, _), v in found.items() if (t, name) == (task, "Adam"))
        assert found[task, "Adam", "0.03"] == best
        cases = [(f"`WassersteinProx`, {s}", ("WassersteinProx", k)) for k, s in SIZES.items()]
        for words, key in [*cases, ("Adam, 0.03", ("Adam", "0.03"))]:
            loss, accuracy = found[task, *key]
            shown = "1.000" if accuracy == 1 else short(accuracy, 3)
            assert f"| {network} | {words} | {loss:.1e} | {shown} |" in said
        assert f"{found[task, 'WassersteinProx', '1000 1000 1000'][0]:.1e} ({network})" in howto
        assert f"{best[0]:.1e}" in howto
        (loss, accuracy), pairs = min(
            (v, sizes) for (t, name, sizes), v in found.items() if (t, name) == (task, "LBFGS")
        )
        shown = "1.000" if accuracy == 1 else short(accuracy, 3)
        assert f"| {network} | L-BFGS, {pairs} | {loss:.1e} | {shown} |" in said
        assert f"{loss:.1e}" in howto


def test_neurons_are_exchanged_where_the_page_says() -> None:
    rows, said = table("deeper"), page("deeper")
    most: dict[str, float] = {}
    for r in rows:
        most[r["first layer"]] = max(most.get(r["first layer"], 0.0), float(r["exchanged"]))
    assert f"at most {100 * most['trained']:.0f} % of the neurons are exchanged" in said
    assert f"frozen up to {100 * most['frozen']:.0f} %." in said


@pytest.mark.parametrize(
    ("make", "frozen", "layouts"),
    [
        (deeper_models.mlp, False, ["pair", "pair"]),
        (deeper_models.mlp, True, ["pair", "plain"]),
        (deeper_models.Transformer, False, ["pair", "pair", "plain"]),
        (deeper_models.Transformer, True, ["pair", "pair", "plain"]),
    ],
)
def test_every_block_has_its_gamma_and_a_frozen_layer_does_not_train(
    make: Callable[[], nn.Module], frozen: bool, layouts: list[str]
) -> None:
    model = make()
    next(model.children()).requires_grad_(not frozen)
    groups = Kind("WassersteinProx", (1.0, 2.0, 3.0), frozen).make(model).param_groups
    assert [group["layout"] for group in groups] == layouts
    gammas = [3.0 if layout == "plain" else 1.0 + i for i, layout in enumerate(layouts)]
    assert [group["lr"] for group in groups] == gammas
    held = {id(p) for group in groups for p in group["params"] if p.requires_grad}
    assert held == {id(p) for p in model.parameters() if p.requires_grad}


def test_the_sequences_ask_for_a_sum() -> None:
    (x, y), (x_test, y_test) = deeper_models.sequences()
    assert (x.shape, x_test.shape) == ((600, 6), (300, 6))
    assert torch.equal((x[:, 0] + x[:, 1]) % 5, y)
    assert torch.equal((x_test[:, 0] + x_test[:, 1]) % 5, y_test)
    assert len(particle_groups(deeper_models.Transformer())) == 3
