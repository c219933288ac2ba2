"""What a fuzzer needs to know of a loader: a valid input, how to damage it, how to load it and use what it gave."""

from __future__ import annotations

import tempfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fuzz.hostile import pick
from fuzz.mutate import Mutator


@dataclass(frozen=True)
class Target:
    """
    A loader.

    :param name: of the target
    :param files: a valid input: name under the case's folder -> content
    :param mutators: of those files that are changed, one in each case
    :param load: reads the folder; only promised exceptions, which name the folder, may come out of it
    :param use: does a little with what was loaded, gives the numbers that must be finite, and may raise ``ValueError``
    :param in_use: what else ``use`` may raise, by the docstring of what it calls
    :param temporary: whether files may be made in the folder for temporary ones, as MuJoCo's mazes are
    """

    name: str
    files: Mapping[str, bytes]
    mutators: Mapping[str, Mutator]
    load: Callable[[Path], Any]
    use: Callable[[Any], Any]
    in_use: tuple[type[Exception], ...] = ()
    temporary: bool = False

    def case(self, seed: int, number: int) -> tuple[Mapping[str, bytes], str]:
        """Changed files, and what was done: a function of name, seed and number."""
        rng = np.random.default_rng([seed, zlib.crc32(self.name.encode()), number])
        name = pick(rng, list(self.mutators))
        content, words = self.mutators[name](self.files[name], rng)
        return {name: content}, words if len(self.mutators) == 1 else f"{name}: {words}"


@dataclass(frozen=True)
class ByHand(Target):
    """
    A target with cases made by hand.

    :param cases: changed files
    """

    cases: Sequence[Mapping[str, bytes]] = ()

    def case(self, seed: int, number: int) -> tuple[Mapping[str, bytes], str]:
        """The files of that number."""
        return self.cases[number], f"by hand, {number}"


def files_of(write: Callable[[Path], Any]) -> dict[str, bytes]:
    """Everything that a function writes into a folder."""
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder))
        return {
            path.relative_to(folder).as_posix(): path.read_bytes()
            for path in sorted(Path(folder).rglob("*"))
            if path.is_file()
        }
