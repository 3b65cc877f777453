"""The pages on the note's sections 6 to 11 say what their tables say."""

from __future__ import annotations

import math
from statistics import median

import pytest
import torch
from test_gallery_flow import medians, page, short, table

from lightning_examples import experiment, mean_field, problems
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
    x, y = problems.sinus()

    def end(steps: int) -> torch.Tensor:
        layer = problems.note_layer(4, seed=1, scale=1.0)
        loss = lambda: problems.mean_squared_error(layer, x, y)  # noqa: E731
        return gradient_flow(layer, loss, 0.002, steps)[-1]

    exact = end(256)
    coarse, fine = ((end(n) - exact).norm().item() for n in (4, 8))
    assert 12 < coarse / fine < 20


def test_radial_is_joint_under_proximal_steps_only() -> None:
    said, rows = page("parameterisations"), table("parameterisations")
    apart: dict[tuple[str, str], list[float]] = {}
    for row in rows:
        key = row["descent"], row["parameterisation"]
        apart.setdefault(key, []).append(float(row["function apart from joint"]))
    proximal = ("Frobenius prox", "Wasserstein prox")
    most = max(max(apart[prox, "radial"]) for prox in proximal)
    assert f"differ by at most ${1e4 * most:.1f}\\cdot10^{{-4}}$" in said
    for prox in proximal:
        for form in ("signed", "clouds", "sphere"):
            assert min(apart[prox, form]) > 0.03
    assert min(apart["gradient descent", "radial"]) > 0.05
    drift = [float(r["balance drift"]) for r in rows if r["parameterisation"] == "joint"]
    assert f"drifts by {short(min(drift), 3)} to {short(max(drift), 3)}" in said
    loss = {tuple(r[k] for k in list(r)[:3]): float(r["loss"]) for r in rows}
    for (descent, *which), value in loss.items():
        if descent == "Frobenius prox":
            assert abs(value - loss["Wasserstein prox", *which]) < 0.0002


def test_the_sinkhorn_divergence_is_near_the_true_distance_and_the_sliced_one_about_half() -> None:
    rows, said = table("distances"), page("distances")
    moved = [row for row in rows if row["own / W2^2"]]
    ratios: dict[str, list[float]] = {}
    for row in moved:
        ratios.setdefault(row["distance"], []).append(float(row["own / W2^2"]))
    least = min(ratios["Sinkhorn, blur 0.01"])
    assert f"({math.floor(100 * least) / 100} or more in every step)" in said
    assert max(ratios["Sinkhorn, blur 0.01"]) < 1.001
    assert all(r == 1 for r in ratios["EMD"])
    first = medians([r for r in moved if r["step"] == "1"], "distance", "own / W2^2")
    assert f"of the first move ({short(first['Sinkhorn, blur 1'], 2)})" in said
    assert 0.4 < median(ratios["sliced, 50 projections"]) < 0.6
    few = ratios["sliced, 5 projections"]
    assert f"varies from {short(min(few), 2)} to {short(max(few), 2)}" in said


def test_sinkhorn_steps_cost_most_and_end_highest() -> None:
    rows, said = table("distances"), page("distances")
    last = [row for row in rows if row["step"] == "10"]
    loss = medians(last, "distance", "loss")
    ends = [float(r["loss"]) for r in last if r["distance"] == "EMD, solved globally"]
    assert max(ends) < 1e-8
    assert f"end at {loss['EMD']:.1e}, under sliced" in said
    assert f"are longer, at {loss['sliced, 50 projections']:.1e}." in said
    blurred = [name for name in loss if "Sinkhorn" in name]
    assert "{:.1e}, {:.1e} and {:.1e} (blur".format(*(loss[name] for name in blurred)) in said
    stuck = sum("Sinkhorn" in r["distance"] and float(r["loss"]) > 0.2 for r in last)
    assert f"and {stuck} of these 15 runs stay above 0.2" in said
    cost = medians(rows, "distance", "ms per evaluation")
    assert f"costs {cost['Sinkhorn, blur 0.1'] / cost['EMD']:.0f} times one" in said
    assert f"costs {short(cost['sliced, 50 projections'] / cost['EMD'], 1)} times as much" in said


def test_with_weight_decay_every_descent_ends_near_the_proved_minimum() -> None:
    said, rows = page("weight_decay"), table("weight_decay")
    gaps = {
        name: max(float(row["gap %"]) for row in rows if row["descent"] == name)
        for name in ("explicit", "Frobenius", "Wasserstein", "solved globally")
    }
    assert all(row["proved"] == "True" for row in rows)
    assert {short(float(row["bound"]), 4) for row in rows} == {"0.5001"}
    assert "0.5001, proved" in said
    assert short(math.ceil(100 * max(gaps.values())) / 100, 2) + " %" in said
    assert short(gaps["solved globally"], 2) + " %" in said
    # Explicit Euler: (1 - lambda lr)^(T/lr) of the size at the start, .44 in the median.
    shrunk = median(float(row["size of the dead"]) for row in rows if row["descent"] == "explicit")
    assert 0.35 < shrunk / (1 - 0.03 * 0.05) ** 4000 < 0.55


def test_clouds_converge_with_their_width_to_what_the_first_law_can_reach() -> None:
    said, rows = page("mean_field"), table("mean_field")

    def middle(law: str, m: int, column: str) -> float:
        return median(float(r[column]) for r in rows if (r["law"], r["m"]) == (law, str(m)))

    widths = sorted({int(row["m"]) for row in rows})
    assert (widths[0], widths[-1]) == (10, 10_000)
    for column, words in (
        ("W2 before", "from {} at $m = 10$ to {} at $10^4$"),
        ("W2 after", "{} to {} after it"),
    ):
        far = [middle("wide", m, column) for m in widths]
        assert far == sorted(far, reverse=True)
        shown = [f"{value:.2g}" for value in (far[0], far[-1])]
        assert words.format(*shown) in said
    for m in widths[:5]:
        flow, prox = middle("wide", m, "W2 after"), middle("wide, Wasserstein prox", m, "W2 after")
        assert abs(prox / flow - 1) < 0.2
    assert "within a fifth of those of the flow" in said
    further, flow = (middle(law, 1000, "loss") for law in ("wide, Wasserstein prox", "wide"))
    assert f"(a loss of {further:.5f} instead of {flow:.5f})" in said
    assert "stand at 0.0028 for every large $m$" in said
    for m in widths[4:]:
        assert short(middle("wide", m, "loss"), 4) in ("0.0028", "0.0029")  # .00285 is both
    for law, words in (("one sign", "one sign stop at {}"), ("one cone", "nearly so, at {}")):
        ends = [float(row["loss"]) for row in rows if row["law"] == law]
        assert max(ends) / min(ends) < 1.001
        assert words.format(short(ends[0], 3)) in said


@pytest.mark.nightly
def test_a_wide_student_goes_on_to_the_global_minimum_and_a_narrow_one_does_not() -> None:
    flags = ["--steps", "4000", "--no-progress"]
    args = experiment.parser("", "", n=40, gamma=0.1, steps=400, cone=0.1).parse_args(flags)
    ends = {law: mean_field.student(args, law, 100, 0).losses[-1] for law in ("wide", "one cone")}
    assert ends["wide"] < 1.5e-4
    assert ends["one cone"] > 0.076
