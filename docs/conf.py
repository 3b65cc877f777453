"""Sphinx settings. The build needs no network and runs no example."""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT), str(Path(__file__).parent / "_ext")]

from torch_wprox import __version__  # noqa: E402

project = "torch_wprox"
author = "The torch_wprox developers"
copyright = "the torch_wprox developers"
release = version = __version__

extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "myst_parser",
    "mathml",
    "plain_formulas",
]
exclude_patterns = ["_build"]
default_role = "code"
root_doc = "index"

# Markdown
myst_enable_extensions = ["dollarmath", "amsmath", "colon_fence", "deflist", "fieldlist"]
myst_heading_anchors = 3

# API pages from docstrings
autodoc_default_options = {"members": True, "show-inheritance": True}
autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
autodoc_preserve_defaults = False
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_rtype = False
napoleon_use_ivar = True
napoleon_custom_sections = ["Shape"]

# Pages
html_theme = "furo"
html_title = "torch_wprox"
html_show_sourcelink = False
html_copy_source = False
html_static_path = ["_static"]
html_css_files = ["narrow.css"]
math_numfig = False
html_math_renderer = "mathml"
