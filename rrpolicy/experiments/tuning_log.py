"""The tuning log: which seeds found a recipe, which were seen meanwhile, which report, and the digests of the freeze.

A reporting seed is measured with the frozen recipe alone, so that no number of the headline can have chosen it. A
variant is covered by the recipe that it changes: at a reporting seed it may change the frozen one. Recipes of users,
seeds of tuning and experiments that the log does not name are free.
"""

from __future__ import annotations

import datetime
import tomllib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rrpolicy.common.faults import FileFault
from rrpolicy.common.files import write_text
from rrpolicy.experiments.spec import OneUnit

LOG = Path(__file__).with_name("tuning_log.toml")
COMMAND = "python -m rrpolicy.experiments.freeze"
ANY = "*"  # task and case of a digest that all units share


@dataclass(frozen=True)
class Frozen:
    """
    A freeze of an experiment's recipes.

    :param date: when
    :param seeds: that report with these digests
    :param digests: of the recipes, by ``"TASK CASE"``, or ``"*"`` for one that all units share
    """

    date: datetime.date
    seeds: tuple[int, ...]
    digests: Mapping[str, str]

    def digest_of(self, task: str, case: str) -> str | None:
        """The digest of a task and case; None for one that was not frozen."""
        return self.digests.get(f"{task} {case}", self.digests.get(ANY))


@dataclass(frozen=True)
class Tuning:
    """
    What the log says of an experiment.

    :param tuning: seeds on which recipes were found
    :param seen: seeds whose results had been seen while recipes changed
    :param reporting: seeds that report, of the next freeze before there is one
    :param history: what was seen, in words
    :param frozen: the freezes, the last one counts
    """

    tuning: tuple[int, ...] = ()
    seen: tuple[int, ...] = ()
    reporting: tuple[int, ...] = ()
    history: str = ""
    frozen: tuple[Frozen, ...] = field(default=())

    @property
    def headline(self) -> tuple[int, ...]:
        """Seeds of the last freeze, or those that are to report."""
        return self.frozen[-1].seeds if self.frozen else self.reporting

    def freeze_of(self, seed: int) -> Frozen | None:
        """The freeze that a seed reports with; None for another seed, and before it is frozen."""
        return next((one for one in reversed(self.frozen) if seed in one.seeds), None)

    def role(self, seed: int) -> str:
        """``tuning``, ``seen``, ``reporting``, or an empty text for a seed that the log does not name."""
        if seed in self.headline or self.freeze_of(seed) is not None:
            return "reporting" if seed in self.headline else "seen"  # a later freeze may have known an earlier one's
        return next((role for role in ("tuning", "seen") if seed in getattr(self, role)), "")


def read_log(path: Path = LOG) -> dict[str, Tuning]:
    """
    The log of every experiment that has one.

    :param path: TOML file
    :raises ValueError: when the file is something else, naming it
    """
    try:
        return {name: _parsed(values) for name, values in tomllib.loads(path.read_text(encoding="utf-8")).items()}
    except (OSError, AttributeError, KeyError, TypeError, ValueError) as error:
        raise FileFault(path, f"is no tuning log: {error}") from error


def _parsed(values: Mapping[str, Any]) -> Tuning:
    frozen = [
        Frozen(datetime.date.fromisoformat(str(one["date"])), tuple(map(int, one["seeds"])), dict(one["digests"]))
        for one in values.get("frozen", ())
    ]
    seeds = {name: tuple(map(int, values.get(name, ()))) for name in ("tuning", "seen", "reporting")}
    return Tuning(**seeds, history=str(values.get("history", "")).strip(), frozen=tuple(frozen))


def check_frozen(
    experiment: str, units: Iterable[OneUnit], digest_of: Callable[[OneUnit], str], log: Mapping[str, Tuning]
) -> None:
    """
    Refuse units of reporting seeds whose recipe is not the frozen one.

    :param experiment: its name in the log; one that the log does not have is free
    :param units: to be measured
    :param digest_of: the digest of the experiment's own recipe for a unit, without the changes of a variant
    :param log: as :func:`read_log` gives it
    :raises ValueError: for the first such unit, naming both digests and how recipes are frozen
    """
    tuning = log.get(experiment, Tuning())
    for unit in units:
        task, case, seed = unit.key
        frozen = tuning.freeze_of(seed)
        if frozen is None and seed in tuning.reporting:
            raise ValueError(
                f"{unit}: seed {seed} of {experiment} is for reporting, and its recipes are not frozen yet: "
                f"{COMMAND} {experiment}"
            )
        wanted = None if frozen is None else frozen.digest_of(task, case)
        if frozen is not None and wanted is not None and (found := digest_of(unit)) != wanted:
            raise ValueError(
                f"{unit}: seed {seed} of {experiment} reports with the recipe that was frozen on {frozen.date}, digest "
                f"{wanted}, and this recipe has digest {found}; try it with another seed, or freeze it with new "
                f"reporting seeds: {COMMAND} {experiment} --seed N"
            )


def freeze(
    experiment: str, digests: Mapping[str, str], seeds: Sequence[int], date: datetime.date, path: Path = LOG
) -> Frozen:
    """
    Enter the digests of an experiment's recipes into the log.

    :param experiment: its name in the log
    :param digests: as in :class:`Frozen`
    :param seeds: that are to report; empty for those that the log plans
    :param date: of today
    :param path: the log
    :return: the entry; the last one when it has the same digests and seeds
    :raises ValueError: for an experiment that is not in the log, or seeds that had been seen or reported before
    """
    log = read_log(path)
    if experiment not in log:
        raise ValueError(f"experiment must be one of {', '.join(log)}, got {experiment!r}")
    tuning = log[experiment]
    last = tuning.frozen[-1] if tuning.frozen else None
    new = Frozen(date, tuple(seeds) or (last.seeds if last else tuning.reporting), dict(digests))
    if last is not None and (last.seeds, last.digests) == (new.seeds, new.digests):
        return last
    used = {*tuning.tuning, *tuning.seen, *(seed for one in tuning.frozen for seed in one.seeds)}
    if known := sorted(used & set(new.seeds)):
        raise ValueError(
            f"seed {known[0]} of {experiment} may have been seen before: recipes that differ from those frozen on "
            f"{last.date if last else 'no day'} report with new seeds: {COMMAND} {experiment} --seed N"
        )
    lines = [f"\n[[{experiment}.frozen]]", f"date = {new.date}", f"seeds = {list(new.seeds)}"]
    lines += [f"\n[{experiment}.frozen.digests]", *(f'"{name}" = "{value}"' for name, value in new.digests.items())]
    write_text(path, path.read_text(encoding="utf-8") + "\n".join(lines) + "\n")
    return new
