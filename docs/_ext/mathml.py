"""Formulas as MathML, which browsers draw themselves: nothing is fetched when a page is read."""

from __future__ import annotations

from typing import Any

from docutils import nodes
from docutils.utils.math import latex2mathml
from sphinx.application import Sphinx
from sphinx.util import logging

logger = logging.getLogger(__name__)


def _rendered(node: nodes.Element, block: bool) -> str:
    tex = node.astext()
    if block and ("\\\\" in tex or "&" in tex) and "\\begin" not in tex:
        tex = f"\\begin{{aligned}}{tex}\\end{{aligned}}"
    try:
        return str(latex2mathml.tex2mathml(tex, as_block=block))
    except Exception as error:  # the page says what the formula was, the log which one failed
        logger.warning("formula %r: %s", tex, error, location=node)
        return f"<code>{tex}</code>"


def inline(self: Any, node: nodes.Element) -> None:
    """Write an inline formula."""
    self.body.append(_rendered(node, block=False))
    raise nodes.SkipNode


def display(self: Any, node: nodes.Element) -> None:
    """Write a displayed formula; it scrolls where the page is narrow."""
    self.body.append(f'<div class="formula">{_rendered(node, block=True)}</div>')
    raise nodes.SkipNode


def setup(app: Sphinx) -> dict[str, Any]:
    """Register the renderer under the name "mathml"."""
    app.add_html_math_renderer("mathml", (inline, None), (display, None))
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
