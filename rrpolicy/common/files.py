"""Files that appear whole or not at all: written beside their target, then renamed over it in one step."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any


@contextmanager
def appearing(target: str | Path) -> Iterator[Path]:
    """
    A path beside ``target`` to write to; it takes the target's name if all goes well and vanishes otherwise, Ctrl-C
    included. Missing parent folders are made.
    """
    target = Path(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    unfinished = target.with_name(f".{target.stem}.{os.getpid()}{target.suffix}")
    try:
        yield unfinished
        with open(unfinished, "rb") as file:
            os.fsync(file.fileno())
        os.replace(unfinished, target)
    finally:
        with suppress(FileNotFoundError):
            unfinished.unlink()


def write_text(path: str | Path, text: str) -> None:
    """Replace a text file in one step."""
    with appearing(path) as unfinished:
        unfinished.write_text(text, encoding="utf-8")


def write_json(path: str | Path, values: Any) -> None:
    """
    Replace a JSON file in one step.

    :raises ValueError: for NaN or infinity, which JSON does not have
    """
    write_text(path, json.dumps(values, indent=1, allow_nan=False) + "\n")
