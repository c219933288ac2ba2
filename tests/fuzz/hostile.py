"""Values that a stranger's file may hold where a number, a name or a path is expected, as raw JSON text.

Raw text, since much of it is beyond what ``json.dumps`` would write: ``1e999``, NaN, a hundred thousand brackets.
"""

from __future__ import annotations

import atexit
import shutil
import tempfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import TypeVar

import numpy as np

Rng = np.random.Generator
T = TypeVar("T")

SECRET_MAZE = "#####\n#...#\n#####\n"
EVIL_MODULE = "evil_mod"
ADDED_KEYS = (
    "tensorboard_log",
    "verbose",
    "device",
    "callback",
    "env",
    "base",
    "expert",
    "module",
    "__class__",
    "kind",
    "maze",
    "network",
    "policy",
    "n_clean_levels",
    "unet_config",
    "learning_rate",
    "schedule",
    "controller",
    "seed",
    "path",
)
NUMBERS = (
    "-1",
    "0",
    "1",
    "2",
    "3",
    "7",
    "64",
    "-0.0",
    "0.5",
    "1.9",
    "1e-320",
    "2147483648",
    "4611686018427387904",
    "9223372036854775808",
    "1000000000",
    "10000000",
    "100000",
    "20000",
    "1e20",
    "1e308",
    "1e999",
    "-1e999",
    "NaN",
    "Infinity",
    "1" * 400,
    "1" * 5000,
)
CONTAINERS = (
    "null",
    "true",
    "false",
    "[]",
    "{}",
    "[[]]",
    "[0]",
    "[1, 2, 3]",
    "[-1]",
    "[1e9]",
    "[null]",
    '["a"]',
    '{"a": {}}',
    "[" * 300 + "]" * 300,
    "[" * 100_000,
    '{"a":' * 100_000,
    "[" + "0," * 100_000 + "0]",
    "[[1, 2], [3]]",
)
WORDS = (
    "cosine",
    "linear",
    "x0",
    "eps",
    "v",
    "mlp",
    "unet",
    "conv",
    "unet-encoder",
    "table",
    "ddim",
    "ddpm",
    "dpm++",
    "window",
    "step",
    "MlpPolicy",
    "UnetPolicy",
    "TransformerPolicy",
    "inverse-dynamics",
    "pixels",
    "latents",
    "limits",
    "float32",
    "False",
    "5",
    "cpu",
    "cuda",
    "meta",
    "PointMaze_UMaze-v3",
    "FrankaKitchen-v1",
    "Pendulum-v1",
)
ODD_STRINGS = (
    '""',
    '"\\u0000"',
    '"\\ud800"',
    '"\\u001b[31mred\\u001b[0m\\n\\r\\u0007"',
    '"\\u202e\\u200b"',
    f'"{EVIL_MODULE}:Env-v0"',
    '"../../etc/passwd"',
    '"/dev/zero"',
    '"/etc/passwd"',
    "\"__import__('os')\"",
    '"%s%n{0}"',
    '"' + "x" * 100_000 + '"',
)


@cache
def outside() -> Path:
    """A folder that no file may lead to: texts, a module and data that would be taken for an answer."""
    folder = Path(tempfile.mkdtemp(prefix="rrout-"))
    (folder / "secret.txt").write_text(SECRET_MAZE, encoding="utf-8")
    (folder / f"{EVIL_MODULE}.py").write_text("raise RuntimeError('a module that a file named was imported')\n")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def pick(rng: Rng, values: Sequence[T]) -> T:
    """One of some values."""
    return values[int(rng.integers(len(values)))]


def raw_value(rng: Rng) -> str:
    """JSON text of something that nobody expects."""
    kind = rng.random()
    if kind < 0.45:
        return pick(rng, NUMBERS)
    if kind < 0.65:
        return pick(rng, CONTAINERS)
    if kind < 0.8:
        return f'"{pick(rng, WORDS)}"'
    return pick(rng, (*ODD_STRINGS, f'"{outside() / "secret.txt"}"', f'"{outside() / "new" / "folder"}"'))
