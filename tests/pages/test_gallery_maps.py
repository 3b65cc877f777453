"""The pages on convex maps say what their tables say."""

from __future__ import annotations

import csv
from pathlib import Path
from statistics import mean

HELD = Path(__file__).parents[2] / "docs" / "gallery"


def table(name: str) -> list[dict[str, str]]:
    with (HELD / f"{name}.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def page(name: str) -> str:
    return (HELD / f"{name}.md").read_text()


def two(text: str) -> str:
    """Two significant digits, as the pages print them."""
    number = float(text)
    shown = f"{number:.2g}"
    digits = shown.replace("0.", "").lstrip("0")
    return shown + "0" if number >= 1e-2 and len(digits) == 1 and "e" not in shown else shown


def test_the_page_of_learned_energies_says_what_its_table_says() -> None:
    said, rows = page("learn_energy"), table("learn_energy")
    lines = {
        "styblinski_tang": "Styblinski-Tang",
        "rosenbrock": "Rosenbrock / 1000",
        "oakley_ohagan": "Oakley-O'Hagan",
        "wavy_plateau": "wavy plateau",
        "flowers": "flowers",
        "double_exp": "double exponential",
    }
    for name, title in lines.items():
        own = [r for r in rows if r["potential"] == name and r["steps"] == "implicit"]
        (line,) = [text for text in said.splitlines() if text.startswith(f"| {title} |")]
        shown = [float(cell) for cell in line.strip("|").split("|")[1:]]
        expected = [float(r["relative error"]) for r in own]
        expected.append(min(float(r["W2 of the prediction"]) for r in own))
        expected.append(float(own[0]["W2 to the next cloud"]))
        assert [float(two(str(number))) for number in expected] == shown, title
    explicit = [float(r["relative error"]) for r in rows if r["steps"] == "explicit"]
    assert f"{two(str(min(explicit)))} to {two(str(max(explicit)))}" in said
    learned = [float(r["relative error"]) for r in rows if r["family"] == "ridges"]
    assert "{:.1f} %, {:.0f} % and {:.1f} %".format(*(100 * e for e in learned)) in said


def test_the_page_of_the_fokker_planck_equation_says_what_its_table_says() -> None:
    said, rows = page("fokker_planck"), table("fokker_planck")
    for row in rows:
        start, end = float(row["KL to the end, maps"]), float(row["KL to the end, Langevin"])
        digits = 3 if start < 0.1 else 2
        line = f"| {float(row['time']):g} | {start:.{digits}f} | {end:.{digits}f} |"
        assert f"{line} {float(row['total variation']):.3f} |" in said
    assert float(rows[-1]["KL to the end, maps"]) < float(rows[-1]["KL to the end, Langevin"])


def test_the_page_of_mean_field_langevin_says_what_its_table_says() -> None:
    said, rows = page("mean_field_langevin"), table("mean_field_langevin")
    shown = [row for row in rows if row["KL to the minimum, maps"]]
    assert len(shown) == 4
    for row in shown:
        numbers = [float(value) for value in list(row.values())[2:]]
        line = " | ".join([f"{float(row['time']):g}", *(f"{number:.3f}" for number in numbers)])
        assert f"| {line} |" in said
    above = [float(row["E above its minimum, maps"]) for row in rows]
    assert above == sorted(above, reverse=True)
    assert above[-1] > 0


def test_the_page_of_colours_says_what_its_table_says() -> None:
    said, rows = page("colours"), table("colours")
    methods = {row["method"] for row in rows}
    found = {}
    for method in methods:
        there, back = (row for row in rows if row["method"] == method)
        cells = [f"{float(r['W2 to the target']):.3f}" for r in (there, back)]
        cells += [f"{float(r['variance explained']):.2f}" for r in (there, back)]
        assert f"| {method} | {' | '.join(cells)} |" in said
        found[method] = [float(r["W2 to the target"]) for r in (there, back)]
        found[method] += [float(r["cost over W2^2 of the move"]) for r in (there, back)]
    assert max(found["convex maps"][2:]) < 1.0025
    floor = found["other pixels of the target"]
    assert all(ours < 1.05 * other for ours, other in zip(found["convex maps"], floor, strict=True))


def test_the_page_of_predicted_transport_says_what_its_table_says() -> None:
    said, rows = page("meta_ot"), table("meta_ot")
    found = {}
    for problem, start in dict.fromkeys((row["problem"], row["start"]) for row in rows):
        own = [row for row in rows if (row["problem"], row["start"]) == (problem, start)]
        found[problem, start] = mean(float(row["work"]) for row in own)
        milliseconds = mean(float(row["milliseconds"]) for row in own)
        cells = f"{found[problem, start]:.3g} | {milliseconds:.3g} |"
        assert any(line.endswith(cells) for line in said.splitlines()), (problem, start, cells)
    for problem in ("assignment", "Sinkhorn"):
        assert found[problem, "warm"] == min(v for (p, _), v in found.items() if p == problem)
