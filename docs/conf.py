"""Sphinx configuration: MyST pages and the API from docstrings; `tox -e docs` makes them."""

import re
from typing import Any

project = "rrpolicy"
extensions = ["myst_parser", "sphinx.ext.autodoc"]
html_theme = "furo"
exclude_patterns = ["_build"]
autodoc_member_order = "bysource"


def _keep_stars(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Shapes such as (B, *event_shape) are no emphasis."""
    lines[:] = [re.sub(r"\*(?=[a-z_]+[,)])", r"\\*", line) for line in lines]


def setup(app: Any) -> None:
    app.connect("autodoc-process-docstring", _keep_stars)
