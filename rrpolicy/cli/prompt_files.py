"""Prompts from untrusted files: text, tables and JSON lines; a line on stderr lists columns that are not used."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from rrpolicy.cli.program import echo
from rrpolicy.common.faults import FileFault
from rrpolicy.common.messages import printable
from rrpolicy.common.schema import from_json, read_small
from rrpolicy.common.tables import MAX_BYTES, read_table
from rrpolicy.images.stable_diffusion import TextToImage

DELIMITERS = (",", ";", "\t")
OTHER_KINDS = (".json", ".yaml", ".yml", ".xml", ".html", ".parquet", ".xlsx", ".ods")  # whose lines are no prompts
_SETTING = re.compile(r"(sd_)?(image_)?(seed|guidance(_scale)?|(num_inference_)?steps|negative_prompt|width|height)")


def read_prompts(path: Path) -> list[str]:
    """
    Prompts of a file, without empty ones.

    | suffix | prompts |
    |---|---|
    | ``.csv``, ``.tsv`` | column ``prompt``, in capitals or not; columns lie between commas, semicolons or tabs |
    | ``.jsonl`` | ``prompt`` of the object on each line, or the text on each line |
    | those of :data:`OTHER_KINDS` | refused |
    | any other | one per line |

    Settings that stand beside the prompts, such as ``sd_seed``, are not used; a line on stderr lists them.

    :param path: UTF-8, with a byte order mark or without
    :raises FileNotFoundError: when there is no such file
    :raises ValueError: for a file that is no text, too large, damaged, or without prompts, naming it
    """
    suffix = path.suffix.lower()
    if suffix in OTHER_KINDS:
        raise FileFault(path, f"holds no prompts that can be read: wanted .txt, .csv, .tsv or .jsonl, not {suffix}")
    read = {".csv": _column, ".tsv": _column, ".jsonl": _objects}.get(suffix, _lines)
    prompts = [prompt for prompt in (one.strip() for one in read(path)) if prompt]
    if not prompts:
        raise FileFault(path, "holds no prompts: wanted one per line, or CSV with a column named prompt")
    return prompts


def echo_cut(prompts: Sequence[str], pipeline: TextToImage) -> None:
    """Print on stderr how many prompts are longer than the longest input of any text encoder."""
    length, reader = max(_lengths(pipeline), key=lambda one: one[0])
    n = sum(len(tokens) > length for tokens in reader(list(prompts)).input_ids)
    if n:
        echo(f"{n} of {len(prompts)} prompts are cut after {length} tokens, all that the text encoder reads", err=True)


def _lengths(pipeline: TextToImage) -> Iterator[tuple[int, Any]]:
    """How many tokens each text encoder reads, and its tokenizer."""
    for tokenizer, encoder in zip(pipeline.tokenizers, pipeline.text_encoders, strict=True):
        positions = getattr(encoder.config, "max_position_embeddings", None)
        yield pipeline.n_tokens if positions is None else min(tokenizer.model_max_length, positions), tokenizer


def _text(path: Path, limit: int = 2**22) -> str:
    try:
        return read_small(path, limit).decode("utf-8-sig")
    except FileNotFoundError:
        raise
    except (OSError, ValueError) as error:
        raise FileFault(path, f"holds no prompts that can be read: {error}") from error


def _lines(path: Path) -> list[str]:
    return _text(path).replace("\r", "\n").split("\n")


def _column(path: Path) -> list[str]:
    first = _text(path, MAX_BYTES).partition("\n")[0]
    delimiter = "\t" if path.suffix.lower() == ".tsv" else max(DELIMITERS, key=first.count)
    heading, *lines = read_table(path, delimiter) or [[]]
    names = [name.strip().lower() for name in heading]
    if "prompt" not in names:
        there = printable(", ".join(heading), 100)
        raise FileFault(path, f"holds no prompts: no column is named prompt, there are: {there or 'none'}")
    _echo_settings(path, heading)
    index = len(names) - 1 - names[::-1].index("prompt")
    return [line[index] for line in lines if len(line) > index]


def _objects(path: Path) -> list[str]:
    found: list[str] = []
    settings: dict[str, None] = {}
    for i, line in enumerate(_text(path).split("\n")):
        if not line.strip():
            continue
        try:
            value = from_json(line)
        except ValueError as error:
            raise FileFault(path, f"line {i + 1} is no JSON: {error}") from error
        if isinstance(value, dict):
            settings.update(dict.fromkeys(value))
            value = next((text for name, text in value.items() if name.lower() == "prompt"), None)
        if not isinstance(value, str):
            raise FileFault(path, f"line {i + 1} holds no prompt, wanted an object with the text prompt")
        found.append(value)
    _echo_settings(path, settings)
    return found


def _echo_settings(path: Path, names: Iterable[str]) -> None:
    settings = [name for name in names if _SETTING.fullmatch(name.strip().lower())]
    if settings:
        echo(f"{path.name}: {', '.join(settings)} not used, one seed and guidance scale hold for all prompts", err=True)
