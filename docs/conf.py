"""Sphinx configuration: MyST pages and the API from docstrings; `sphinx-build docs docs/_build` makes them."""

project = "rrpolicy"
extensions = ["myst_parser", "sphinx.ext.autodoc"]
html_theme = "furo"
exclude_patterns = ["_build"]
autodoc_member_order = "bysource"
