"""The outermost part of the program: every fault becomes one printable line on stderr and an exit code."""

from __future__ import annotations

import csv
import lzma
import re
import struct
import sys
import warnings
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import copy_context
from typing import Any

import safetensors
import torch
import typer
from PIL import Image
from typer.core import TyperGroup

from rrpolicy.common import processes
from rrpolicy.common.interruption import raised_signals, stop_line
from rrpolicy.common.messages import LONGEST, RrpolicyWarning, printable, shown

FAULTS = (  # of input, of the machine, and of what a file may have in it
    ValueError,
    OSError,
    FloatingPointError,
    MemoryError,
    torch.OutOfMemoryError,
    OverflowError,
    RecursionError,
    EOFError,
    NotImplementedError,
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
    struct.error,
    csv.Error,
    safetensors.SafetensorError,
    Image.DecompressionBombError,
)
SHARED = (("train",), ("extract",), ("images", "record"), ("images", "extract"))  # by processes of `accelerate launch`
_EMPTY = re.compile(r"(--[\w-]+)=")


class Program(TyperGroup):
    """Command group that turns faults and signals into one line on stderr and an exit code."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """
        Look at all arguments, those of the commands included: an empty one comes from a variable that is not set, and
        as a path it would be the current folder.
        """
        for before, argument in zip(["", *args], args, strict=False):
            empty = _EMPTY.fullmatch(argument)
            if not argument or empty:
                name = empty.group(1) if empty else before if before.startswith("-") else "an argument"
                raise typer.BadParameter("must not be empty.", ctx=ctx, param_hint=name)
        self._command = tuple(one for one in args if not one.startswith("-"))
        return super().parse_args(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        received: list[int] = []
        try:
            with raised_signals() as received, own_warnings():
                processes.join()
                if processes.current().n > 1 and not any(self._command[: len(one)] == one for one in SHARED):
                    names = ", ".join(" ".join(one) for one in SHARED)
                    raise ValueError(f"{' '.join(self._command[:2])} runs in one process; several share {names}")
                return copy_context().run(super().invoke, ctx)  # --device is said in a context that ends here
        except BrokenPipeError:
            raise
        except KeyboardInterrupt as error:
            _leave(error, [getattr(error, "signal_number", 2), *received])
        except FAULTS as error:
            _leave(error, received)
        except Exception as error:
            if received:  # what a signal breaks off may end with anything
                _leave(error, received)
            raise


@contextmanager
def own_warnings() -> Iterator[None]:
    """
    This library's warnings as lines on stderr, each once; those of other libraries, which are about code, are left out
    unless Python is configured how to treat warnings (``-W``, ``PYTHONWARNINGS``).
    """
    with warnings.catch_warnings():
        if not sys.warnoptions:
            warnings.simplefilter("ignore")
        warnings.simplefilter("always", RrpolicyWarning)
        usual, seen = warnings.showwarning, set()

        def show(message: Warning | str, category: type[Warning], *place: Any, **rest: Any) -> None:
            if not issubclass(category, RrpolicyWarning):
                usual(message, category, *place, **rest)
            elif (line := printable(str(message), LONGEST)) not in seen:
                seen.add(line)
                echo(f"rrpolicy: warning: {line}", err=True)

        warnings.showwarning = show
        yield


def _leave(error: BaseException, received: list[int]) -> None:
    """
    Print what went wrong, or which signal stopped the program, and exit.

    :raises typer.Exit: always
    """
    if received:
        typer.echo(stop_line(received[0]), err=True)
        raise typer.Exit(128 + received[0]) from error
    typer.echo(f"rrpolicy: error: {one_line(error)}", err=True)
    raise typer.Exit(1) from error


def one_line(error: BaseException) -> str:
    """The message of an exception, shortened in the middle and free of control characters."""
    text, room = str(error) or type(error).__name__, LONGEST - len("rrpolicy: error: ")
    text = text if len(text) < 20 * room else f"{text[: 10 * room]} ... {text[-10 * room :]}"
    text = printable(text, 30 * room)
    return text if len(text) <= room else f"{text[: room - 105]} ... {text[-100:]}"


def echo(text: str = "", nl: bool = True, err: bool = False) -> None:
    """Print lines with control characters escaped, since text from files may hold them, in the first process."""
    if err or processes.current().is_main:
        typer.echo("\n".join(map(shown, text.split("\n"))), nl=nl, err=err)
