"""Recipes: TOML files with a section for each step, which holds the keyword arguments of what the step builds."""

from __future__ import annotations

import inspect
import os
import tomllib
from collections.abc import Callable, Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, TypeVar

import gymnasium as gym

from rrpolicy.common.arguments import whole
from rrpolicy.common.messages import at, printable
from rrpolicy.common.schema import check_depth, read_small

Recipe = Mapping[str, Any]
T = TypeVar("T")

FOLDER_VARIABLE = "RRPOLICY_RECIPES"
MAX_RECIPE_BYTES = 2**14  # keys of many parts take memory that grows with the square of their number

DEFAULT_RECIPE: Recipe = {  # for environments without one of their own
    "name": "default",
    "agent": {},
    "base": {"total_timesteps": 20_000},
    "expert": {"total_timesteps": 10_000},
    "extraction": {"total_timesteps": 4_000},
    "discriminator": {"total_timesteps": 4_000},
    "map": {},
    "steering": {},
    "evaluation": {"n_eval_episodes": 48},
}


PACKAGED = Path(__file__).resolve().parents[1] / "recipes"  # folder of the package's recipes


def folders() -> list[Path]:
    """Folders that are searched for recipes: ``$RRPOLICY_RECIPES`` first, then those of the package."""
    own = os.environ.get(FOLDER_VARIABLE)
    return [*([Path(own)] if own else []), PACKAGED]


def packaged_recipe(name: str) -> Recipe:
    """The package's recipe of this name, whatever the user's folder holds; raises as :func:`read_recipe` does."""
    return read_recipe(PACKAGED / f"{name}.toml")


def is_packaged(recipe: Recipe) -> bool:
    """Whether a recipe is as the package has it, and no user's own or changed one."""
    name = str(recipe.get("name"))
    return any(path.stem == name and read_recipe(path) == recipe for path in PACKAGED.glob("*.toml"))


def all_recipes() -> dict[str, Recipe]:
    """Every recipe by its name; of equal names that of the user's folder."""
    paths = [path for folder in reversed(folders()) for path in sorted(folder.glob("*.toml"))]
    return {path.stem: read_recipe(path) for path in paths}


def environment_of(recipe: Recipe) -> str:
    """
    The environment that a recipe is for: the first of its ``environments``, of a pattern the newest that is registered.

    :raises ValueError: when it names none, or none that is registered
    """
    patterns = recipe.get("environments") or []
    for pattern in patterns:
        found = [name for name in gym.registry if fnmatchcase(name, pattern)]
        if found:
            return max(found, key=lambda name: gym.registry[name].version or 0)
        if not any(letter in pattern for letter in "*?["):
            return str(pattern)  # of a package that is still to be imported, "my_package:MyEnv-v0"
    raise ValueError(f"recipe{_of(recipe)}: environments are {patterns}, none of them is registered")


def cases_of(recipe: Recipe) -> list[str]:
    """Kinds of demonstrations that a recipe can make: tables of its section ``[data]`` with base and expert."""
    data = recipe.get("data", {})
    tables = data.items() if isinstance(data, Mapping) else ()
    return [name for name, case in tables if isinstance(case, Mapping) and {"base", "expert"} <= set(case)]


def recipe_of(name: str, default: Recipe | None = None) -> Recipe:
    """
    The recipe of an environment, or of a name.

    :param name: environment id, or the recipe's own name
    :param default: where there is none
    :raises ValueError: when there is none, and no default
    """
    known = [path for folder in folders() for path in sorted(folder.glob("*.toml"))]
    for path in known:
        values = read_recipe(path)
        if name == path.stem or any(fnmatchcase(name, pattern) for pattern in values.get("environments", [])):
            return values
    if default is not None:
        return default
    names = ", ".join(sorted({path.stem for path in known}))
    raise ValueError(f"no recipe for {printable(name)!r}, there are {names or 'none'}")


def read_recipe(path: str | os.PathLike[str]) -> dict[str, Any]:
    """
    Read a recipe file; its name goes into the entry ``"name"``.

    :param path: TOML file
    :raises FileNotFoundError: when there is no such file
    :raises ValueError: when it is not TOML, naming file and place
    """
    source = Path(path)
    if not source.exists():
        raise FileNotFoundError(f"{source}: no such recipe")
    try:
        values = tomllib.loads(read_small(source, MAX_RECIPE_BYTES).decode())
        check_depth(values, "it")
        names = values.get("environments", [])
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise ValueError(f"environments is {printable(names)}, wanted a list of texts")
    except (OSError, RecursionError, ValueError) as error:
        raise ValueError(at(source, f"not a TOML file: {error}")) from error
    return {"name": source.stem, **values}


def section(recipe: Recipe, name: str) -> dict[str, Any]:
    """
    A section of a recipe.

    :raises ValueError: when the recipe lacks it
    """
    values = recipe.get(name)
    if not isinstance(values, Mapping):
        raise ValueError(f"recipe {recipe.get('name', '')!r} lacks the section [{name}]")
    return dict(values)


def check_section(recipe: Recipe, name: str, function: Callable[..., Any]) -> None:
    """
    Look at a section before the work whose result it is for.

    :param function: takes its entries
    :raises ValueError: when the recipe lacks it, or it has an entry that the function does not take
    """
    try:
        inspect.signature(function).bind_partial(**section(recipe, name))
    except TypeError as error:
        raise ValueError(f"recipe{_of(recipe)} section [{name}]: {printable(error, 200)}") from error


def total_timesteps(recipe: Recipe, name: str) -> int:
    """``total_timesteps`` of a section."""
    value = section(recipe, name).get("total_timesteps")
    try:
        return whole("total_timesteps", value, 0)
    except ValueError as error:
        raise ValueError(f"recipe{_of(recipe)} section [{name}]: {error}") from error


def with_steps(recipe: Recipe, name: str, total_timesteps: int | None) -> Recipe:
    """The recipe with another number of gradient steps in a section; None leaves it as it is."""
    return with_entries(recipe, name, total_timesteps=total_timesteps)


def with_entries(recipe: Recipe, name: str, **entries: Any) -> Recipe:
    """The recipe with other entries in a section; those that are None leave it as it is."""
    given = {key: value for key, value in entries.items() if value is not None}
    return {**recipe, name: {**section(recipe, name), **given}} if given else recipe


def build(cls: Callable[..., T], name: str, recipe: Recipe | None = None, /, **arguments: Any) -> T:
    """
    Call a constructor; what it does not take is a fault of the recipe's section.

    :param cls: the constructor
    :param name: of the section
    :param recipe: which has it, for errors
    :param arguments: of the constructor
    :raises ValueError: naming the section and the recipe
    """
    try:
        return cls(**arguments)
    except (ArithmeticError, AttributeError, LookupError, MemoryError, RuntimeError, TypeError, ValueError) as error:
        raise ValueError(f"recipe{_of(recipe)} section [{name}]: {printable(error, 200)}") from error


def _of(recipe: Recipe | None) -> str:
    """Which recipe it is, in an error: the name of its file."""
    name = (recipe or {}).get("name")
    return f" {printable(name, 60)!r}" if isinstance(name, str) else ""


def without_steps(values: Mapping[str, Any]) -> dict[str, Any]:
    """A section's keyword arguments."""
    return {key: value for key, value in values.items() if key != "total_timesteps"}
