"""Formulas drawn by KaTeX, which lies in _static/katex: nothing is fetched when a page is read."""

from __future__ import annotations

from html import escape
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx


def inline(self: Any, node: nodes.Element) -> None:
    """Write an inline formula as TeX; formulas.js replaces it."""
    self.body.append(f'<span class="tex">{escape(node.astext())}</span>')
    raise nodes.SkipNode


def display(self: Any, node: nodes.Element) -> None:
    """Write a displayed formula as TeX; it scrolls where the page is narrow."""
    tex = node.astext()
    if ("\\\\" in tex or "&" in tex) and "\\begin" not in tex:
        tex = f"\\begin{{aligned}}{tex}\\end{{aligned}}"
    self.body.append(f'<div class="tex display">{escape(tex)}</div>')
    raise nodes.SkipNode


def setup(app: Sphinx) -> dict[str, Any]:
    """Register the renderer "katex" and the files that it needs."""
    app.add_html_math_renderer("katex", (inline, None), (display, None))
    app.add_css_file("katex/katex.min.css")
    app.add_js_file("katex/katex.min.js")
    app.add_js_file("formulas.js")
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
