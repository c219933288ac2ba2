"""What cannot be done is refused before any work, for every option of every command, in one printable line."""

import os
import typing
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from helpers.recipes import ENV_ID, recipe, toml
from test_cli import built, fault, run, tiny_zoo  # noqa: F401  a zoo for every test

from rrpolicy.cli import app, collect_commands, commands, program
from rrpolicy.cli.images_options import parse_levels, parse_scales
from rrpolicy.cli.program import FAULTS, LONGEST, echo

Command = tuple[str, ...]


def all_commands(typed: typer.Typer = app, path: Command = ()) -> Iterator[tuple[Command, Callable[..., Any]]]:
    """Words and functions of all commands."""
    for command in typed.registered_commands:
        assert command.callback is not None
        yield (*path, command.name or command.callback.__name__), command.callback
    for group in typed.registered_groups:
        assert group.typer_instance is not None and group.name is not None
        yield from all_commands(group.typer_instance, (*path, group.name))


def options_of(kind: type) -> list[Any]:
    """Commands with each of their options whose values are of this kind."""
    found = []
    for command, function in all_commands():
        for hint in typing.get_type_hints(function, include_extras=True).values():
            declared = getattr(hint, "__metadata__", (None,))[0]
            value = typing.get_args(hint)[0] if declared else hint
            if isinstance(declared, typer.models.OptionInfo) and kind in (value, *typing.get_args(value)):
                name = next(one for one in (declared.default, *(declared.param_decls or ())) if isinstance(one, str))
                found.append(pytest.param(command, name, id=f"{' '.join(command)} {name}"))
    return found


FLOATS, PATHS = options_of(float), options_of(Path)


def test_the_options_are_found() -> None:
    names = {(*option.values[0], option.values[1]) for option in (*FLOATS, *PATHS)}
    assert {
        ("collect", "--stop-return"),
        ("enjoy", "--scale"),
        ("train", "--out"),
        ("images", "audit", "--out"),
        ("reproduce", "maze2d", "--work"),
    } <= names


@pytest.mark.parametrize(("command", "option"), FLOATS)
@pytest.mark.parametrize("value", ["nan", "inf", "1e999"])
def test_numbers_are_finite(command: Command, option: str, value: str) -> None:
    assert f"Invalid value for '{option}'" in run(*command, option, value, code=2).stderr


@pytest.mark.parametrize(("command", "option"), PATHS)
def test_no_path_is_empty(command: Command, option: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "checkpoint.zip").write_text("mine")
    monkeypatch.chdir(tmp_path)  # which an empty path would mean
    for arguments in ([option, ""], [f"{option}="]):
        assert f"{option}: must not be empty" in run(*command, *arguments, code=2).stderr
    assert (tmp_path / "checkpoint.zip").read_text() == "mine"


def test_no_argument_is_empty() -> None:
    assert "must not be empty" in run("enjoy", "", code=2).stderr
    assert "--dataset: must not be empty" in run("train", "--dataset", "", "--out", "x", code=2).stderr


@pytest.mark.parametrize(
    ("command", "option"), [option for option in PATHS if option.values[1] in ("--out", "--work", "--policy-out")]
)
def test_results_must_have_a_place(command: Command, option: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    of_file = option == "--policy-out" or (command[0] in ("export", "reproduce", "tune") and option == "--out")
    if of_file:
        assert "is a folder, wanted a file" in fault(*command, option, tmp_path)
    else:
        assert "is a file, wanted a folder" in fault(*command, option, tmp_path / "file")
    assert "is a file, wanted a folder" in fault(*command, option, tmp_path / "file" / "below" / "x")
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize(
    ("command", "option"), [option for option in PATHS if option.values[1] in ("--out", "--work", "--policy-out")]
)
def test_and_the_right_to_write_there(
    command: Command, option: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    allowed = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != tmp_path and allowed(path, mode))
    assert f"no permission to write to {tmp_path}" in fault(*command, option, tmp_path / "new" / "x")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("date", ["tomorrow", "2026-02-30", "20260228", "2026-2-3"])
def test_a_date_is_a_date(date: str) -> None:
    assert "is no date, wanted YYYY-MM-DD" in run("zoo", "build", ENV_ID, "--date", date, code=2).stderr


def test_goals_are_looked_at_before_a_base_is_trained(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rrpolicy.cli.zoo_commands.MazeZooBuild", None)
    assert "goal" in fault("zoo", "build", ENV_ID, "--goals", "3,1;0,0", "--no-progress")


@pytest.mark.parametrize("text", ["", "a", "1,,2", "-1", "0,-1", "1.5"])
def test_levels_are_whole_numbers(text: str) -> None:
    with pytest.raises(ValueError, match="--levels is"):
        parse_levels(text)


@pytest.mark.parametrize("text", ["", "a", "nan", "0,inf", "-1"])
def test_scales_are_numbers(text: str) -> None:
    with pytest.raises(ValueError, match="--scales is"):
        parse_scales(text)
    assert parse_scales("0,1.5") == [0, 1.5]


def test_a_section_is_looked_at_before_the_work_it_is_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "odd.toml").write_text(toml(recipe(map={"colour": 1}, evaluation={"mood": 1})))
    odd = ("--recipe", tmp_path / "odd.toml", "--no-progress")
    monkeypatch.setattr(commands.experiments, "extract", None)
    monkeypatch.setattr(commands, "load_agent_for", None)
    pair = ("--base", f"{ENV_ID}/base", "--expert", f"{ENV_ID}/expert-3-1")
    assert "section [map]: got an unexpected" in fault("extract", *pair, "--out", tmp_path / "out", *odd)
    assert "section [evaluation]: got an unexpected" in fault("enjoy", f"{ENV_ID}/base", *odd)


def test_an_agent_to_start_from_is_read_before_anything_is_removed(tmp_path: Path) -> None:
    run("collect", "--n-transitions", 1000, "--out", tmp_path / "data")
    train = ("train", "--dataset", tmp_path / "data", "--out", tmp_path / "run", "--no-progress")
    run(*train)
    before = (tmp_path / "run" / "agent.zip").read_bytes()
    assert "gone" in fault(*train, "--init-from", tmp_path / "gone.zip")
    assert (tmp_path / "run" / "agent.zip").read_bytes() == before


# ---------------------------------------------------------------------- messages


@pytest.mark.parametrize("kind", FAULTS, ids=lambda kind: kind.__name__)
def test_faults_are_one_short_printable_line(kind: type[Exception], monkeypatch: pytest.MonkeyPatch) -> None:
    text = f"models/agent.zip: \x1b[31mred\x1b[0m\r\n\u202e{'x' * 10**6}\x00 in the file data/base"
    error = UnicodeDecodeError("utf-8", b"\xff", 0, 1, "bad") if kind is UnicodeDecodeError else kind(text)

    def broken(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(collect_commands, "collect_point_maze", broken)
    line = fault("collect", "--out", "never-made")
    assert line.isprintable() and len(line) <= LONGEST
    assert "models/agent.zip: ?[31mred" in line and line.endswith("in the file data/base")
    assert not Path("never-made").exists()


def test_a_fault_without_words_has_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise MemoryError

    monkeypatch.setattr(collect_commands, "collect_point_maze", broken)
    assert fault("collect", "--out", "never-made") == "rrpolicy: error: MemoryError"


def test_errors_of_the_program_itself_keep_their_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(collect_commands, "collect_point_maze", lambda *a, **k: {}["bug"])
    assert isinstance(run("collect", "--out", "never-made", code=1).exception, KeyError)


def test_names_from_files_do_not_reach_the_terminal_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    echo("ρ of \x1b]0;mine\x07.png\nsecond\rline")
    assert capsys.readouterr().out == "ρ of ?]0;mine?.png\nsecond?line\n"
    sources = [path for path in Path(program.__file__).parent.glob("*.py") if path.name != "program.py"]
    assert len(sources) > 5 and not [path.name for path in sources if "typer.echo" in path.read_text()]
