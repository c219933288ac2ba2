"""Sphinx configuration: MyST pages with equations, and the API from docstrings; `tox -e docs` makes them.

One API page for each package is written to `docs/api/` before the pages are read: what its ``__all__`` names, then
what its modules add. Nothing there is edited by hand, and nothing is committed.
"""

import inspect
import pkgutil
import re
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

project = "rrpolicy"
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.mathjax"]
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3
html_theme = "furo"
exclude_patterns = ["_build", "results/*/summary.md"]  # tables without a heading, which the pages quote
autodoc_member_order = "bysource"

PACKAGES = ("agents", "common", "data", "diffusion", "envs", "evaluation", "experiments", "images", "models")
PACKAGES += ("rewards", "rl", "testing", "zoo")
API = Path(__file__).parent / "api"


def _keep_marks(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Shapes such as (B, *event_shape) are no emphasis, and norms such as |x| no substitution."""
    lines[:] = [re.sub(r"``[^`]*``|(\*)(?=[a-z_]+[,)])|(\|)", _literal, line) for line in lines]


def _literal(match: re.Match[str]) -> str:
    return f"\\{match[0]}" if match[1] or match[2] else match[0]


def own_names(module: ModuleType) -> list[str]:
    """The public classes and functions that a module defines itself, in its order."""
    return [
        name
        for name, value in vars(module).items()
        if not name.startswith("_")
        and (inspect.isclass(value) or inspect.isfunction(value))
        and value.__module__ == module.__name__
    ]


def automodule(name: str, members: list[str], imported: bool = False) -> str:
    """The directive that describes some members of a module."""
    options = f"   :members: {', '.join(members)}\n" + ("   :imported-members:\n" if imported else "")
    return f"```{{eval-rst}}\n.. automodule:: {name}\n{options}```\n"


def api_page(package: str) -> str:
    """Markdown of a package's page: the names of its ``__all__``, then the modules with public names beyond these."""
    name = f"rrpolicy.{package}"
    root = import_module(name)
    exported = [member for member in getattr(root, "__all__", []) if callable(getattr(root, member))]
    parts = [f"# {name}\n", automodule(name, exported, imported=True)]
    for found in pkgutil.iter_modules(root.__path__, f"{name}."):
        module = import_module(found.name)
        left = [member for member in own_names(module) if getattr(root, member, None) is not vars(module)[member]]
        if left and not found.ispkg and not found.name.split(".")[-1].startswith("_"):
            parts += [f"## {found.name}\n", automodule(found.name, left)]
    return "\n".join(parts)


def write_api_pages() -> None:
    """One page for each package; those that are the same are left alone, so that they are not read again."""
    API.mkdir(exist_ok=True)
    for package in PACKAGES:
        page, text = API / f"{package}.md", api_page(package)
        if not page.exists() or page.read_text(encoding="utf-8") != text:
            page.write_text(text, encoding="utf-8")


def setup(app: Any) -> None:
    write_api_pages()
    app.connect("autodoc-process-docstring", _keep_marks)
