"""Packages whose public names are imported when they are first used.

What needs only a part of a package, such as a planner that runs without torch, then imports only that part.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any


def lazy(package: str, homes: Mapping[str, str]) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """
    A package's ``__getattr__`` and ``__dir__`` (PEP 562).

    :param package: its name
    :param homes: the module, relative to the package, of each public name
    """

    def get(name: str) -> Any:
        """A public name, or a module of the package."""
        if name in homes:
            value = getattr(import_module(f"{package}.{homes[name]}"), name)
            setattr(sys.modules[package], name, value)
            return value
        missing = f"{package}.{name}"
        if not name.startswith("_"):
            try:
                return import_module(missing)
            except ModuleNotFoundError as error:
                if error.name != missing:
                    raise
        raise AttributeError(f"module {package!r} has no attribute {name!r}")

    def names() -> list[str]:
        module = vars(sys.modules[package])
        return sorted({*module["__all__"], *(name for name in module if name.startswith("__"))})

    return get, names
