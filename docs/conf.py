"""Sphinx settings. The manual is Markdown; the reference is generated from the code."""

from __future__ import annotations

from importlib.metadata import version as _version
from typing import Any

from sphinx.application import Sphinx
from sphinx.ext.napoleon.docstring import GoogleDocstring

project = "pilot-trio"
author = "the pilot-trio developers"
copyright = "2026, the pilot-trio developers"  # noqa: A001
release = version = _version("pilot-trio")

extensions = ["myst_parser", "sphinx.ext.autodoc"]
myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3
exclude_patterns = ["_build", "examples", "spec"]
autodoc_typehints = "signature"
autodoc_member_order = "bysource"
autodoc_default_options = {"members": True, "show-inheritance": True}
autoclass_content = "class"
default_role = "literal"  # docstrings mark code with single backticks
html_theme = "furo"
html_title = "pilot-trio"


def _google_style(_app: Sphinx, what: Any, name: str, obj: object, options: Any, lines: list[str]) -> None:
    """Read the sections of docstrings.

    What the extension `sphinx.ext.napoleon` does, but for attributes: it takes their text up to a colon for a type.
    """
    if what != "attribute":
        lines[:] = GoogleDocstring(list(lines), what=what, name=name, obj=obj, options=options).lines()


def setup(app: Sphinx) -> None:
    """Connect what is our own."""
    app.connect("autodoc-process-docstring", _google_style)
