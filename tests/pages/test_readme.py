"""The code in README.md and in the pages of docs/ runs."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from pathlib import Path

import matplotlib as mpl
import pytest
import torch
from matplotlib import pyplot as plt

import torch_wprox
from benchmarks.table import read
from torch_wprox.distances import Sinkhorn
from torch_wprox.optim import catalog, effort
from torch_wprox.solvers import Auto

ROOT = Path(__file__).parents[2]
PAGES = ["README.md", *sorted(str(p.relative_to(ROOT)) for p in ROOT.glob("docs/**/*.md"))]
BLOCK = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)
IMAGE = re.compile(r"!\[[^\]]*\]\(([^)]+)\)")
LINK = re.compile(r"(?<!!)\[[^\]]*\]\(([^)#:]+)\)")


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    before = mpl.get_backend()
    plt.switch_backend("agg")
    state, threads = torch.random.get_rng_state(), torch.get_num_threads()
    torch.manual_seed(0)
    yield
    torch.random.set_rng_state(state)
    torch.set_num_threads(threads)
    plt.close("all")
    plt.switch_backend(before)


@pytest.mark.filterwarnings("ignore:.torch.jit.[a-z]+. is deprecated")  # ignite's, on import
@pytest.mark.parametrize("page", [p for p in PAGES if BLOCK.search((ROOT / p).read_text())])
def test_code_of_the_page_runs(page: str) -> None:
    # The blocks of one page are one program.
    namespace: dict[str, object] = {"__name__": "page"}
    for block in BLOCK.finditer((ROOT / page).read_text()):
        code = compile(block[1], f"<{page}>", "exec", dont_inherit=True)
        exec(code, namespace)


@pytest.mark.parametrize("page", PAGES)
def test_pictures_and_links_of_the_page_exist(page: str) -> None:
    text = (ROOT / page).read_text()
    for target in IMAGE.findall(text) + (LINK.findall(text) if page == "README.md" else []):
        assert (ROOT / page).parent.joinpath(target).exists(), target


def test_only_the_pages_where_a_user_decides_say_when_not_to_use_the_thing() -> None:
    deciding = {
        "docs/index.md",
        "docs/choosing.md",
        "docs/concepts/certificate.md",
        "docs/concepts/jko.md",
        "docs/howto/deeper.md",
    }
    for page in deciding:
        assert "\n## When not to use it\n" in (ROOT / page).read_text(), page
    others = {page for page in PAGES if "# When not" in (ROOT / page).read_text()} - deciding
    assert not others, "elsewhere 'Limits' says what something cannot do"


def test_the_front_pages_claim_the_same_numbers() -> None:
    table = re.compile(r"^\| (?:optimizer|`torch.optim|`WassersteinProx\(gamma=1).*$", re.MULTILINE)
    found = [line[2:-2].split(" | ") for line in table.findall((ROOT / "README.md").read_text())]
    assert found == read(ROOT / "docs" / "benchmarks" / "front_page.csv")
    assert ":file: benchmarks/front_page.csv\n" in (ROOT / "docs" / "index.md").read_text()


def test_the_commands_of_the_readme_are_targets_of_the_makefile() -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    readme = (ROOT / "README.md").read_text()
    named = set(re.findall(r"make ([a-z]+)", readme)) - {"their"}
    assert {"demo", "test"} <= named <= targets


def test_the_readme_begins_with_sentence_picture_numbers_install_and_diff() -> None:
    first = (ROOT / "README.md").read_text().splitlines()[:50]
    text = "\n".join(first)
    parts = ["PyTorch optimizers", "![", "torch.optim.LBFGS", "pip install", "```diff", "closure()"]
    assert [text.index(part) for part in parts] == sorted(text.index(part) for part in parts)


def test_the_readme_reads_well_where_there_is_no_sphinx() -> None:
    text = (ROOT / "README.md").read_text()
    assert not re.search(r"\{[a-z:]+\}`|\$\$|\$[^ ].*\$", text)


@pytest.mark.parametrize("page", ["README.md", "docs/choosing.md"])
def test_every_option_that_the_page_offers_exists(page: str) -> None:
    text = (ROOT / page).read_text()
    for name in re.findall(r'distance="(\w+)"', text):
        catalog.distance_named(name)
    for name in re.findall(r'solver="(\w+)"', text):
        catalog.solver_named(name)
    for call, arguments in re.findall(r"`(?:\w+=)?([A-Z]\w+)\(([^`]*)\)`", text):
        signature = inspect.signature(getattr(torch_wprox, call))
        for option in re.findall(r"(\w+)=", arguments):
            takes_any = any(p.kind is p.VAR_KEYWORD for p in signature.parameters.values())
            assert option in signature.parameters or takes_any, f"{call}({option}=)"


def test_the_page_on_choosing_names_every_distance_and_solver() -> None:
    text = (ROOT / "docs" / "choosing.md").read_text()
    for name in [*catalog.DISTANCES, *catalog.SOLVERS]:
        assert f'`"{name}"`' in text or f"`{name.capitalize()}Prox`" in text, name


def test_the_numbers_of_the_page_on_choosing_are_the_librarys() -> None:
    text = (ROOT / "docs" / "choosing.md").read_text()
    assert f"`max_eval` ({effort.FULL} by default, {effort.BRIEF} on minibatches)" in text
    assert f"up to {Auto().dense_up_to} numbers" in text
    assert f"above {Sinkhorn().dense_up_to} neurons" in text
