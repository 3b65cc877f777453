"""Which room of the package may import which: only those below it, and no circle."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import torch_wprox

PACKAGE = Path(torch_wprox.__file__).parent

# From the ground floor up; rooms on one floor do not import each other.
FLOORS: tuple[tuple[str, ...], ...] = (
    ("report", "arguments"),
    ("layers", "closure"),
    ("particles", "distances"),
    ("objective", "recording", "progress"),
    ("solvers",),
    ("certified", "jko", "maps"),
    ("optim", "plotting"),
    ("lightning", "plane", ""),  # "" is torch_wprox itself: the public names
)
# The tower of certified/, the same way.
CERTIFIED = (
    ("problem",),
    ("responses",),
    ("bound",),
    ("search",),
    ("step_problem", "linear_pair"),
    ("solver",),
    ("certificate",),
)


def modules() -> dict[str, Path]:
    """Return every module of the package by its dotted name without the package's."""
    found = {}
    for path in PACKAGE.rglob("*.py"):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


MODULES = modules()


def imports(name: str, *, also_for_types: bool = True) -> set[str]:
    """Return the modules of the package that module ``name`` imports, wherever it does."""
    tree = ast.parse(MODULES[name].read_text())
    found = set()
    skipped: set[int] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            skipped |= {id(n) for n in ast.walk(node)}
    for node in ast.walk(tree):
        if id(node) in skipped and not also_for_types:
            continue
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "torch_wprox":
            base = ".".join((node.module or "").split(".")[1:])
            for alias in node.names:
                inside = f"{base}.{alias.name}".strip(".")
                found.add(inside if inside in MODULES else base)
        elif isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.split(".")[0] == "torch_wprox":
                    found.add(".".join(alias.name.split(".")[1:]))
    return found


def floor_of(name: str, floors: tuple[tuple[str, ...], ...], depth: int) -> int:
    parts = name.split(".")
    room = parts[depth] if len(parts) > depth else ""
    (floor,) = [i for i, rooms in enumerate(floors) if room in rooms]
    return floor


def test_every_module_stands_on_a_floor() -> None:
    rooms = {room for floor in FLOORS for room in floor}
    assert {name.split(".")[0] for name in MODULES} <= rooms


@pytest.mark.parametrize("name", sorted(MODULES))
def test_a_room_imports_only_rooms_below_it(name: str) -> None:
    room = name.split(".")[0]
    for other in imports(name):
        if other.split(".")[0] != room:
            assert floor_of(other, FLOORS, 0) < floor_of(name, FLOORS, 0), f"{name} -> {other}"


@pytest.mark.parametrize("name", sorted(n for n in MODULES if n.startswith("certified.")))
def test_the_tower_of_the_certified_step_imports_downwards(name: str) -> None:
    for other in imports(name):
        parts = other.split(".")
        if parts[0] != "certified" or len(parts) == 1 or parts[1] == name.split(".")[1]:
            continue
        assert floor_of(other, CERTIFIED, 1) < floor_of(name, CERTIFIED, 1), f"{name} -> {other}"


def test_no_modules_import_each_other_in_a_circle() -> None:
    graph = {name: imports(name) - {name} for name in MODULES}
    while leaves := [name for name, below in graph.items() if not below]:
        for leaf in leaves:
            del graph[leaf]
        for below in graph.values():
            below.difference_update(leaves)
    assert not graph, f"these modules form a circle or import one: {sorted(graph)}"


@pytest.mark.parametrize("name", sorted(n for n, p in MODULES.items() if p.name == "__init__.py"))
def test_a_face_is_a_charter_and_imports_and_nothing_else(name: str) -> None:
    tree = ast.parse(MODULES[name].read_text())
    assert ast.get_docstring(tree), "a room says in its docstring what it is for"
    for node in tree.body[1:]:
        is_name = isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "").startswith(
            "__"
        )
        assert is_name or isinstance(node, ast.Import | ast.ImportFrom), ast.unparse(node)
