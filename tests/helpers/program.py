"""The program within this process. Its commands are made once, which is most of the time of a short one."""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import typer
from typer.testing import CliRunner

from rrpolicy.cli import app

_COMMAND: Any = typer.main.get_command(app)


class Result(NamedTuple):
    """What a command printed, and how it ended."""

    exit_code: int
    stdout: str
    stderr: str
    output: str
    exception: BaseException | None


def invoke(arguments: Iterable[object], env: Mapping[str, str] | None = None) -> Result:
    """The result of ``rrpolicy ARGUMENTS``; an exception that the program lets through is code 1."""
    code, exception = 0, None
    with CliRunner().isolation(env=env) as streams:
        try:
            _COMMAND.main(args=[str(argument) for argument in arguments], prog_name="rrpolicy")
        except SystemExit as ended:
            code = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
        except Exception as error:
            code, exception = 1, error
        printed = [stream.getvalue().decode() for stream in streams]
    return Result(code, *printed, exception)
