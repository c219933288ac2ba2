"""Cases made by hand, which are to be refused at next to no cost."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from functools import cache
from typing import Any

from torch import Tensor

from fuzz.harness import REFUSED, Outcome, run
from fuzz.target import ByHand, Target
from fuzz.targets import made
from fuzz.tensors import edited

Change = Callable[[dict[str, Any], dict[str, dict[str, Tensor]]], Any]
CPU_SECONDS, MEMORY = 0.5, 100 * 2**20
target = cache(made)


def judged(one: Target, *contents: bytes, file: str | None = None) -> list[Outcome]:
    """What becomes of a target whose file, the first that is fuzzed if none is named, holds each of these."""
    name = file or next(iter(one.mutators))
    given = {field.name: getattr(one, field.name) for field in fields(Target)}
    cases = ByHand(**given, cases=[{name: content} for content in contents])
    return run(cases, range(len(contents)), again_above=CPU_SECONDS).outcomes


def refused(one: Target, *contents: bytes, file: str | None = None) -> None:
    """All are refused, at next to no cost."""
    found = judged(one, *contents, file=file)
    wrong = [one for one in found if one.verdict != REFUSED or one.cpu_seconds > CPU_SECONDS or one.memory > MEMORY]
    assert not wrong, f"{len(wrong)} of {len(contents)}:\n" + "\n".join(str(one)[:400] for one in wrong)


def changed(name: str, change: Change, **parts: Any) -> bytes:
    """The archive of a target with other values."""
    return edited(target(name).files["a.zip"], change, **parts)


def at(path: str, value: Any) -> Change:
    """Sets one value of a config, ``"layout.horizon"``."""

    def change(config: dict[str, Any], tensors: Any) -> None:
        *holders, last = path.split(".")
        for key in holders:
            config = config[key]
        config[last] = value

    return change
