"""The pages on the note's sections 1 to 5 say what their tables say."""

from __future__ import annotations

import csv
import math
from pathlib import Path
from statistics import median
from typing import Any

import torch

from lightning_examples import problems

BOTH = ("Wasserstein", "Frobenius")
GALLERY = Path(__file__).parents[2] / "docs" / "gallery"


def table(name: str) -> list[dict[str, str]]:
    with open(GALLERY / f"{name}.csv", newline="") as file:
        return list(csv.DictReader(file))


def page(name: str) -> str:
    return " ".join((GALLERY / f"{name}.md").read_text().split())


def short(value: float, digits: int) -> str:
    """A number as the pages print it: 0.234."""
    return f"{value:.{digits}f}"


def medians(rows: list[dict[str, str]], by: str, column: str) -> dict[str, float]:
    """Median of a column by the value of another."""
    groups: dict[str, list[float]] = {}
    for row in rows:
        groups.setdefault(row[by], []).append(float(row[column]))
    return {name: median(values) for name, values in groups.items()}


def span(rows: list[dict[str, str]], column: str, **where: Any) -> tuple[int, int]:
    """Least and largest integer of a column among the rows with the given values."""
    values = [int(r[column]) for r in rows if all(r[k] == str(v) for k, v in where.items())]
    return min(values), max(values)


def test_early() -> None:
    rows, text = table("early"), page("early")
    loss = medians(rows, "descent", "loss")
    for names, words in (
        (("Frobenius, inner gd", "Wasserstein, inner gd"), "{} (Frobenius) and {} (Wasserstein)"),
        (("Frobenius", "Wasserstein", "global"), "{} and {}, the global steps to {}"),
    ):
        assert words.format(*(short(loss[name], 3) for name in names)) in text
    moved = {name: span(rows, "inactive moved", descent=name) for name in loss}
    assert moved["Frobenius"] == (0, 0)
    assert "all {} to {} neurons in it".format(*span(rows, "inactive")) in text
    assert "{} to {} of these neurons do move".format(*moved["Wasserstein"]) in text
    assert "{} to {} of them move".format(*moved["global"]) in text
    far = max(float(row["farthest"]) for row in rows if row["descent"] == "Wasserstein")
    assert f"up to {far:.1f} far" in text
    assert all(float(r["relative gap"]) < 1e-6 for r in rows if r["descent"] == "global")
    assert (GALLERY / "early.gif").stat().st_size < 1_500_000


def test_grid() -> None:
    ends = [f"{float(r['f']):.3g}" for r in table("grid") if r["step"] == "15"]
    assert "fifteen steps is {}, {} and {}.".format(*ends) in page("grid")


def test_diabetes() -> None:
    text = page("diabetes")
    rows = {(r["data"], r["optimizer"]): r for r in table("diabetes")}
    full, batches = "all patients in every step", "minibatches of 64"
    last = {key: short(float(r["validation loss"]), 2) for key, r in rows.items()}
    best = {key: short(float(r["best validation loss"]), 3) for key, r in rows.items()}
    assert f"loss ends at {last[full, 'LBFGS']}." in text
    way = f"a validation loss of {best[full, 'Adam']} on its way to {last[full, 'Adam']}"
    assert way in text
    assert f"the validation loss is {last[full, 'WassersteinProx']}, without" in text
    ends = f"ends at {last[batches, 'WassersteinProx']}, that of Adam at {last[batches, 'Adam']};"
    assert ends in text
    held = f"Adam would have {best[batches, 'Adam']}, a proximal run "
    assert held + f"{best[batches, 'WassersteinProx']}." in text
    jumps = f"ends at {last[batches, 'LBFGS']}, though one point on its way has "
    assert jumps + f"{best[batches, 'LBFGS']}." in text
    assert all(int(r["evaluations"]) <= 2000 * 1.01 for r in rows.values())
    for data in (full, batches):  # "Wasserstein and Frobenius coincide"
        prox = [{**rows[data, f"{name}Prox"], "optimizer": ""} for name in BOTH]
        assert prox[0] == prox[1]


def test_inner() -> None:
    rows, text = table("inner"), page("inner")
    last = {row["descent"]: row for row in rows}
    ends = [short(float(last[name]["P"]), 4) for name in ("Frobenius", "Wasserstein", "global")]
    assert "{} (Frobenius) and {} (Wasserstein)".format(*ends[:2]) in text
    assert f"one and the same global minimum: {ends[2]} (stars)" in text
    assert abs(float(last["global"]["gap"])) < 1e-8
    ways = {name: [row for row in rows if row["descent"] == name] for name in last}
    swapped = {int(r["iteration"]): r["anchor of inactive"] == "0" for r in ways["Wasserstein"]}
    assert max(t for t, yes in swapped.items() if not yes) == 20
    assert min(t for t, yes in swapped.items() if yes) == 50
    assert "between inner iterations 20 and 50" in text
    pulls = [float(row["its pull"]) for row in ways["Wasserstein"]]
    assert f"force of {short(max(pulls), 3)} or less" in text
    assert {float(row["its pull"]) for row in ways["Frobenius"]} == {0.0}


def test_initialisation() -> None:
    rows, text = table("initialisation"), page("initialisation")
    plateau = medians(rows, "run", "plateau")
    times = [f"{value:g}" for value in plateau.values()]
    assert "$t = {}$, {}, {} and {} for scales".format(*times) in text
    per_decade = plateau["scale 0.001"] - plateau["scale 0.01"]
    assert f"in the small scales costs {per_decade:g}," in text
    (x, y), growth = problems.sine_period(), 0.0
    for sign in (1.0, -1.0):
        [angle] = problems.extremal(x, y, sign)  # "here one for each sign"
        hidden = torch.relu(x * angle.cos() + angle.sin())
        growth = max(growth, sign * 2 * (y * hidden).mean().item())
    assert f"\\max G = {math.log(10) / growth:.2f}$" in text
    nearest = min(float(r["at its end"]) for r in rows if r["run"] == "scale 0.001")
    assert f"to a cosine of {int(1e3 * nearest) / 1e3:.3f}" in text
    loss = medians(rows, "run", "loss")
    assert f"at {short(loss['scale 0.001'], 3)}, where" in text
    assert loss["scale 0.01"] < 0.06


def test_sinus() -> None:
    rows, text = table("sinus"), page("sinus")
    last = {r["descent"]: float(r["loss_after"]) for r in rows}
    assert f"the loss is {last['Wasserstein']:.1e} under the Wasserstein" in text
    assert f"and {last['Frobenius']:.1e} under the Frobenius" in text
    exchanged = [float(r["permuted_fraction"]) for r in rows if r["descent"] == "Wasserstein"]
    assert f"Up to {max(exchanged):.0%}".replace("%", " %") in text
    solved = [r for r in rows if r["descent"] == "global"]
    assert last["global"] < 1e-7
    assert "go below $10^{-7}$, with fewer than 50 evaluations" in text
    assert max(int(r["evaluations"]) for r in solved) < 50
    assert max(float(r["gap"]) for r in solved) < 4e-4
    assert "below $4\\cdot10^{-4}$ in every step" in text


def test_certified() -> None:
    rows, text = table("certified"), page("certified")
    above: dict[str, list[float]] = {}
    for row in rows:
        above.setdefault(row["run"], []).append(float(row["relative_gap"]))
    assert all(row["certified"] == "True" for row in rows)  # the page says proved
    first = [f"{100 * above[name][0]:.0f} %" for name in ("Wasserstein", "Frobenius")]
    assert "begin {} (Wasserstein) and {} (Frobenius) above".format(*first) in text
    assert above["Wasserstein"][-1] < 1e-6
    assert f"stays {math.floor(100 * min(above['Frobenius']))} % or more above" in text
    assert f"within {math.ceil(1e3 * max(above['global'])) / 10:.1f} % of theirs" in text
    assert max(above["global"][3:]) < 1e-6
    adam = [row for row in rows if row["run"] == "Adam"][-1]
    assert f"{float(adam['lower_bound']):.4f}, is the minimum" in text
    assert f"ends {100 * float(adam['relative_gap']):.1f} % above it" in text


def test_sinus_gammas() -> None:
    rows, text = table("sinus_gammas"), page("sinus_gammas")
    apart = medians([r for r in rows if r["descent"] == "Wasserstein"], "gamma", "apart")
    sizes = [short(apart[gamma], 2) for gamma in apart]
    assert list(apart) == ["1e-05", "0.0001", "0.001", "0.01", "0.1", "1"]
    assert "are {}, {}, {}, {}, {} and {} of the way".format(*reversed(sizes)) in text
    exchanged = [float(r["permuted"]) for r in rows if r["gamma"] == "1e-05"]
    assert [share for share in exchanged if share] == [2 / 50]
    assert "at $10^{-5}$ one of the twelve seeds exchanges neurons, two of fifty" in text
    loss = {(r["descent"], r["gamma"], r["seed"]): float(r["loss"]) for r in rows}
    assert len([key for key in loss if key[0] == "Wasserstein"]) == 6 * 12
    for (name, gamma, seed), value in loss.items():
        if name == "Wasserstein" and float(gamma) <= 0.01:
            assert abs(value - loss["Frobenius", gamma, seed]) < 0.014
    assert "by less than 0.014 in every seed" in text
    ends = {
        name: sorted(v for (n, g, _), v in loss.items() if (n, g) == (name, "1")) for name in BOTH
    }
    middle = [median(ends[name]) for name in BOTH]
    assert f"{middle[0]:.1e} for Wasserstein and {middle[1]:.1e} for" in text
    stuck = [sum(value > 0.1 for value in ends[name]) for name in BOTH]
    assert "{} seeds of 12 (Wasserstein) and {} of 12".format(*stuck) in text
    x, y = problems.sinus()
    affine, bump = problems.least_loss(x, y, ()), problems.least_loss(x, y, (0.0, 0.25))
    assert f"within 0.02 of {short(affine, 4)}, the least loss of an affine" in text
    assert all(abs(v - affine) < 0.02 for name in BOTH for v in ends[name] if v > 0.1)
    assert f"None ends near {short(bump, 4)}, the least" in text
    for plateau in (bump, 0.4325):
        assert not any(abs(v - plateau) < 0.01 for name in BOTH for v in ends[name])
    solved = [r for r in rows if r["descent"] == "global"]
    assert all(float(r["relative gap"]) < 0.012 for r in solved)
    assert round(loss["global", "1", "0"] * 1e9) == 8


def test_two_points() -> None:
    rows, text = table("two_points"), page("two_points")
    assert max(float(row["error"]) for row in rows) < 1e-11
    assert "these formulas to $10^{-11}$" in text
    assert "$4.5/(1+g)$ against $8/(1+g)$" in text
    x, y = torch.linspace(-1, 5, 1201), torch.linspace(-1, 2, 601)[:, None]
    f = (x - 4).square() / 2
    for g in (0.2, 1.0):
        swapped = f + ((x - 1).square() + y.square()) / (2 * g)
        identity = f + (x.square() + (y - 1).square()) / (2 * g)
        # The grid of 0.005 misses a minimum of curvature 1 + 1/g by less than 1e-4.
        assert abs(swapped.min().item() - 4.5 / (1 + g)) < 1e-4
        assert abs(identity.min().item() - 8 / (1 + g)) < 1e-4
