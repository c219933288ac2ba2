"""Recipes are tables of numbers: a section for each step, holding the keyword arguments of what the step builds."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from rrpolicy.common.arguments import whole
from rrpolicy.common.messages import printable

Recipe = Mapping[str, Any]
T = TypeVar("T")

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
    if total_timesteps is None:
        return recipe
    return {**recipe, name: {**section(recipe, name), "total_timesteps": total_timesteps}}


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
