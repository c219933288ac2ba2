"""The README's Python example runs as printed, with the shipped zoo, and the steered base beats the base."""

import re
from pathlib import Path

import pytest

README = Path(__file__).parent.parent / "README.md"


def snippet() -> str:
    """The first Python block."""
    found = re.search(r"```python\n(.+?)```", README.read_text(encoding="utf-8"), re.S)
    assert found is not None
    return found.group(1)


def test_the_snippet_is_short() -> None:
    lines = [line for line in snippet().splitlines() if line.strip()]
    assert len(lines) <= 15


def test_the_snippet_does_what_it_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    exec(compile(snippet(), "README.md", "exec"), {})
    printed = capsys.readouterr().out.splitlines()
    success = dict(line.split() for line in printed if line.startswith(("base", "steered")))
    assert float(success["steered"]) >= float(success["base"]) + 0.5
    assert (tmp_path / "steered.mp4").stat().st_size > 10_000
    assert (tmp_path / "reward.zip").is_file()
