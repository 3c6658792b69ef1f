"""Sphinx settings. The manual is Markdown; the reference is generated from the code."""

from __future__ import annotations

from importlib.metadata import version as _version

project = "pilot-trio"
author = "the pilot-trio developers"
copyright = "2026, the pilot-trio developers"  # noqa: A001
release = version = _version("pilot-trio")

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.intersphinx"]
myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3
exclude_patterns = ["_build", "examples", "spec"]
# Builds must not depend on other people's servers: no inventories are fetched, foreign names stay plain text.
intersphinx_mapping: dict[str, tuple[str, None]] = {}
autodoc_typehints = "signature"
autodoc_member_order = "bysource"
autodoc_default_options = {"members": True, "show-inheritance": True}
autoclass_content = "class"
html_theme = "furo"
html_title = "pilot-trio"
html_static_path = ["_static"]
