"""Docstrings write formulas as plain text, |V - W|^2 / (2 gamma): keep Sphinx from reading them.

An indented block after a sentence is a formula and becomes a literal block. Bars in running text,
which reStructuredText takes for substitutions, are escaped.
"""

from __future__ import annotations

import re
from typing import Any

from sphinx.application import Sphinx

_SECTION = re.compile(r"^(Args|Returns|Raises|Attributes|Example|Examples|Shape|Yields):$")
_LITERAL = re.compile(r"(``.+?``|`.+?`)")


def _escaped(line: str) -> str:
    parts = _LITERAL.split(line)
    return "".join(p if p.startswith("`") else p.replace("|", r"\|") for p in parts)


def _indent(line: str) -> int:
    return len(line) - len(line.lstrip())


def plain_formulas(lines: list[str]) -> list[str]:
    """Return the lines of a docstring with its formulas protected."""
    done: list[str] = []
    in_prose = True  # before the first section, where indentation means a formula
    verbatim_from: int | None = None  # indentation of a directive or literal block, or a doctest
    doctest = False
    for line in lines:
        text = line.strip()
        blank = not text
        if _SECTION.match(line):
            in_prose = False
        if doctest and blank:
            doctest = False
        if verbatim_from is not None and not blank and _indent(line) < verbatim_from:
            verbatim_from = None
        if text.startswith(">>>"):
            doctest = True
        previous = next((x for x in reversed(done) if x.strip()), "")
        after_blank = not done or not done[-1].strip()
        if verbatim_from is None and not doctest and not blank:
            if text.startswith(".. ") or previous.endswith("::"):
                verbatim_from = _indent(line) + (1 if text.startswith(".. ") else 0)
            elif in_prose and _indent(line) >= 4 and after_blank and not _is_list(previous):
                done += ["::", ""]
                verbatim_from = _indent(line)
        verbatim = verbatim_from is not None or doctest
        done.append(line if verbatim else _escaped(line))
    return done


def _is_list(line: str) -> bool:
    return line.lstrip().startswith(("- ", "* ", ".. "))


def _process(app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    lines[:] = plain_formulas(lines)


def setup(app: Sphinx) -> dict[str, Any]:
    """Run before napoleon, whose priority is 500."""
    app.connect("autodoc-process-docstring", _process, priority=400)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
