"""What `import torch_wprox` loads and offers, and that every docstring's example holds."""

from __future__ import annotations

import doctest
import importlib
import pkgutil
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
import torch

import torch_wprox

MODULES = sorted(info.name for info in pkgutil.walk_packages(torch_wprox.__path__, "torch_wprox."))
HEAVY = ["matplotlib", "pytorch_lightning", "lightning", "geomloss", "ot", "sklearn", "pandas"]


def python(code: str, *flags: str) -> str:
    run = subprocess.run(
        [sys.executable, *flags, "-c", code], capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    return run.stdout


@pytest.mark.slow
def test_import_loads_nothing_heavy_and_warns_of_nothing() -> None:
    code = f"""
import sys, time
import torch
began = time.process_time()  # not the wall's: a busy machine would fail
import torch_wprox
print(time.process_time() - began)
print([name for name in {HEAVY} if name in sys.modules])
"""
    seconds, loaded = python(code, "-W", "error").splitlines()
    assert loaded == "[]"
    assert float(seconds) < 2  # beyond torch's own import


@pytest.mark.slow
def test_only_lightning_py_imports_lightning_and_plotting_waits_for_its_first_figure() -> None:
    modules = [name for name in MODULES if name != "torch_wprox.lightning"]
    code = f"""
import importlib, sys
for name in {modules}:
    importlib.import_module(name)
print([name for name in {HEAVY} if name in sys.modules])
"""
    assert python(code, "-W", "error").strip() == "[]"


def test_every_public_name_exists_and_has_a_docstring() -> None:
    for name in torch_wprox.__all__:
        assert getattr(torch_wprox, name).__doc__, name
    assert sorted(torch_wprox.__all__) == sorted(set(torch_wprox.__all__))


def test_every_public_name_is_on_the_api_page() -> None:
    page = (Path(__file__).parents[2] / "docs" / "api.md").read_text()
    documented = set(re.findall(r"^   ([A-Za-z_]\w*)$", page, re.MULTILINE))
    assert not set(torch_wprox.__all__) - documented, "add them to docs/api.md"


def named_on_the_api_page() -> list[str]:
    """Return the full names of what the API page lists."""
    page = (Path(__file__).parents[2] / "docs" / "api.md").read_text()
    names, module = [], ""
    for current, name in re.findall(r"^(?:\.\. currentmodule:: (\S+)|   (\w[\w.]*))$", page, re.M):
        module = current or module
        if name:
            names.append(f"{module}.{name}")
    return names


@pytest.mark.parametrize("name", named_on_the_api_page())
def test_everything_on_the_api_page_exists_and_has_an_example(name: str) -> None:
    found = pkgutil.resolve_name(name)
    examples = doctest.DocTestFinder(recurse=False).find(found, module=False)
    assert any(test.examples for test in examples), f"{name} has no doctest"


def test_version_is_that_of_the_distribution() -> None:
    try:
        installed = metadata.version("torch-wprox")
    except metadata.PackageNotFoundError:
        pytest.skip("the package is not installed, only on the path")
    assert torch_wprox.__version__ == installed


def test_import_leaves_the_global_seed_alone() -> None:
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    importlib.reload(torch_wprox)
    assert torch.equal(torch.rand(1), expected)


@pytest.mark.parametrize("name", MODULES)
def test_examples_in_docstrings_hold(name: str) -> None:
    module = importlib.import_module(name)
    torch.manual_seed(0)
    failed, _ = doctest.testmod(module, optionflags=doctest.NORMALIZE_WHITESPACE)
    assert failed == 0
