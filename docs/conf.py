"""Sphinx settings. The build needs no network and runs no example."""

from __future__ import annotations

import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parent), str(HERE / "_ext")]

from inventories import write_inventories  # noqa: E402

from torch_wprox import __version__  # noqa: E402

# The address of the repository, also to be set under [project.urls] of pyproject.toml. While it is
# empty no page links to its source.
REPOSITORY = ""

project = "torch_wprox"
author = "The torch_wprox developers"
copyright = "the torch_wprox developers"
release = version = __version__

extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.intersphinx",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "myst_nb",
    "sphinx_copybutton",
    "sphinx_design",
    "katex_math",
    "plain_formulas",
]
exclude_patterns = ["_build", "_inventories"]
default_role = "code"
root_doc = "index"
templates_path = ["_templates"]

# Markdown and notebooks. Notebooks are committed with their outputs: `make notebooks` runs them.
myst_enable_extensions = ["dollarmath", "amsmath", "colon_fence", "deflist", "fieldlist"]
myst_heading_anchors = 3
nb_execution_mode = "off"

# API pages from docstrings, one page per object
autosummary_generate = True
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

# Links to other projects, from lists in _inventories: nothing is fetched
intersphinx_mapping = write_inventories(HERE / "_inventories", HERE / "_build" / "inventories")

# Copy buttons leave prompts and outputs out
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True

# Pages
html_theme = "furo"
html_title = "torch_wprox"
html_logo = "_static/logo.svg"
html_favicon = "_static/favicon.svg"
html_show_sourcelink = False
html_copy_source = False
html_static_path = ["_static"]
html_css_files = ["pages.css"]
html_math_renderer = "katex"
math_numfig = False
if REPOSITORY:
    html_theme_options = {
        "source_repository": REPOSITORY,
        "source_branch": "main",
        "source_directory": "docs/",
    }
