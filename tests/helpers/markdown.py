"""The code that stands in Markdown pages: Python blocks, which run, and command lines, which are parsed."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FENCE = re.compile(r"^```(\S*)[^\n]*\n(.*?)^```\s*$", re.M | re.S)
REASON = re.compile(r"<!-- not executed: (.+?) -->\s*\Z")
INLINE = re.compile(r"(?<!`)`(rrpolicy [a-z][^`]*)`(?!`)")
SHELL_END = {"&&", "||", ";", "|", "#"}


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, its text, the line of the page that it begins at, and why it is not executed."""

    language: str
    text: str
    line: int
    reason: str | None


def blocks(page: Path) -> list[Block]:
    """The fenced blocks of a page, in order."""
    text = page.read_text(encoding="utf-8")
    found = []
    for match in FENCE.finditer(text):
        reason = REASON.search(text[: match.start()])
        line = text.count("\n", 0, match.start()) + 2
        found.append(Block(match[1], match[2], line, reason[1] if reason else None))
    return found


def python_blocks(page: Path) -> list[Block]:
    """Those that are Python and are executed."""
    return [block for block in blocks(page) if block.language == "python" and block.reason is None]


def run(page: Path, namespace: dict[str, Any] | None = None, sizes: Mapping[str, str] = {}) -> dict[str, Any]:
    """
    Execute the Python blocks of a page in one namespace; a traceback names the page and its line.

    :param sizes: other texts for some of the page's, each of which must be there
    """
    namespace = {"__name__": "__main__"} if namespace is None else namespace
    found = python_blocks(page)
    if missing := [one for one in sizes if not any(one in block.text for block in found)]:
        raise ValueError(f"{page} has no {missing}")
    for block in found:
        text = block.text
        for printed, smaller in sizes.items():
            text = text.replace(printed, smaller)
        exec(compile("\n" * (block.line - 1) + text, str(page), "exec"), namespace)
    return namespace


def command_lines(page: Path) -> list[list[str]]:
    """The arguments of every ``rrpolicy ...`` of a page, from its blocks and from inline code."""
    text = page.read_text(encoding="utf-8")
    lines = [line for block in blocks(page) for line in block.text.replace("\\\n", " ").splitlines()]
    lines += [match[1].replace("\n", " ") for match in INLINE.finditer(FENCE.sub("", text))]
    found = []
    for line in lines:
        for match in re.finditer(r"(?:^|[$;&|] )\s*rrpolicy (?=[a-z-])", line):
            lexer = shlex.shlex(line[match.end() :], posix=True, punctuation_chars=False)
            lexer.whitespace_split, lexer.commenters = True, "#"
            tokens = list(lexer)
            end = next((i for i, token in enumerate(tokens) if token in SHELL_END), len(tokens))
            found.append([token for token in tokens[:end] if token != "..."])
    return found
