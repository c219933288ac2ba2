"""Sphinx configuration: MyST pages and the API from docstrings (`pip install -e ".[docs]"; sphinx-build docs docs/_build`)."""

project = "rrpolicy"
extensions = ["myst_parser", "sphinx.ext.autodoc"]
html_theme = "furo"
exclude_patterns = ["_build"]
autodoc_member_order = "bysource"
