"""The shared skeleton of an experiment: units of work, variants of them, and what is measured of a unit.

An experiment of one's own is a folder with a ``spec.py`` that subclasses :class:`Unit` and :class:`Experiment`; the
runner does the rest: processes, resuming, and the CSV.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

from rrpolicy.experiments.recipes import Recipe
from rrpolicy.experiments.results import Log, Recorder, Result, read_csv

OneVariant = TypeVar("OneVariant", bound="Variant")


class Unit(ABC):
    """The smallest piece of an experiment that is kept when a run is stopped."""

    @property
    @abstractmethod
    def key(self) -> tuple[str, str, int]:
        """Task, case and seed as they stand in the CSV."""

    @property
    def name(self) -> str:
        """Fit for a file."""
        task, case, seed = self.key
        words = "_".join([*(word for word in (task, case) if word), f"seed-{seed}"])
        return words.replace("+", "-").replace(" ", "-")

    def __str__(self) -> str:
        task, case, seed = self.key
        return f"{task} {case or 'base'} seed {seed}"


@dataclass(frozen=True)
class Variant:
    """
    An ablation or control of an experiment: it changes one thing and goes through the same code.

    :param name: in the CSV; empty for the experiment itself
    :param about: what it shows, one line
    :param recipe: entries of the recipe's sections that are changed
    """

    name: str = ""
    about: str = "the experiment itself"
    recipe: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def applied(self, recipe: Recipe) -> Recipe:
        """The recipe with this variant's changes."""
        return {**recipe, **{name: {**recipe.get(name, {}), **changes} for name, changes in self.recipe.items()}}


OneUnit = TypeVar("OneUnit", bound=Unit)


class Experiment(ABC, Generic[OneUnit]):
    """
    What is measured of a unit.

    ``names`` are what task and case are called in the CSV.

    :param variant: name of the ablation or control; empty for the experiment itself
    """

    names: ClassVar[tuple[str, str]] = ("task", "case")

    def __init__(self, variant: str = "") -> None:
        self.variant = variant

    @abstractmethod
    def digest(self, unit: OneUnit) -> str:
        """The digest of the recipe that the unit is made with; see `store.digest`."""

    def shared(self, unit: OneUnit) -> Mapping[str, Callable[[], object]]:
        """
        What a unit shares with others: names, and what makes each and keeps it in the work folder. With several
        processes it is made once, before the units; a unit that finds nothing makes it itself.
        """
        return {}

    @abstractmethod
    def measure(self, unit: OneUnit, log: Log) -> Recorder:
        """The unit's rows; the recorder is done."""

    @classmethod
    def read_results(cls, path: Path) -> list[Result]:
        """What the CSV of the experiment holds; raises as :func:`results.read_csv` does."""
        return read_csv(path, cls.names)


def check_names(what: str, given: Sequence[str] | None, known: Iterable[str]) -> None:
    """
    Compare names that a user gives with those that there are.

    :param what: is named
    :param given: names; None for none
    :param known: all that there are
    :raises ValueError: for the first that is not known
    """
    names = list(known)
    if unknown := [name for name in given or () if name not in names]:
        raise ValueError(f"{what} must be one of {', '.join(names)}, got {unknown[0]!r}")


def variant_of(variants: Mapping[str, OneVariant], main: OneVariant, name: str | None) -> OneVariant:
    """
    A variant by its name.

    :param variants: by name
    :param main: the experiment itself
    :param name: of one of the variants; None for ``main``
    :raises ValueError: for another name
    """
    check_names("variant", None if name is None else [name], variants)
    return main if name is None else variants[name]
