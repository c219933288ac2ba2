"""The README's Python example runs as printed, with the shipped zoo; its tables hold rows that are committed."""

import re
from pathlib import Path

import pytest
from helpers import markdown
from helpers.agents import few_own_samples

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"


def test_the_readme_is_short_and_shows_python_early() -> None:
    text = README.read_text(encoding="utf-8")
    lines = re.sub(r"<!--.*?-->\n?", "", text, flags=re.S).splitlines()  # keys of numbers are not shown
    (block,) = markdown.python_blocks(README)
    code = [line for line in block.text.splitlines() if line.strip()]
    assert len(lines) <= 140 and block.line <= 40 and len(code) <= 14


SMALLER = {
    "total_timesteps=128": "total_timesteps=4",
    "buffer_size=4096": "buffer_size=256",
    "n_eval_episodes=8": "n_eval_episodes=1",
    "n_steps=150": "n_steps=10",
}


def test_the_snippet_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    few_own_samples(monkeypatch)
    markdown.run(README, sizes=SMALLER)
    assert {"base", "steered"} <= {line.split()[0] for line in capsys.readouterr().out.splitlines()}
    assert (tmp_path / "steered.mp4").is_file() and (tmp_path / "reward.zip").is_file()


@pytest.mark.slow
def test_the_snippet_does_what_it_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    markdown.run(README)
    printed = capsys.readouterr().out.splitlines()
    success = dict(line.split() for line in printed if line.startswith(("base", "steered")))
    assert float(success["steered"]) >= float(success["base"]) + 0.5
    assert (tmp_path / "steered.mp4").stat().st_size > 10_000
    assert (tmp_path / "reward.zip").is_file()


def numbers(text: str) -> list[str]:
    """The decimal numbers of a text, without leading zeros."""
    return [number.lstrip("0") for number in re.findall(r"\d*\.\d+", text)]


@pytest.mark.parametrize(
    ("heading", "experiment"), [("Mazes", "maze2d"), ("Robots", "locomotion"), ("Images", "images")]
)
def test_tables_hold_committed_numbers(heading: str, experiment: str) -> None:
    text = README.read_text(encoding="utf-8").split(f"**{heading}.**")[1]
    table = re.search(r"^\|.*?(?=^[^|])", text, re.M | re.S)
    assert table is not None
    summary = (ROOT / "docs" / "results" / experiment / "summary.md").read_text(encoding="utf-8")
    known = {number.rstrip("0") for number in numbers(summary)}
    shown = numbers(table[0])
    assert len(shown) >= 16 and {number for number in shown if number.rstrip("0") not in known} == set()


def test_links_lead_to_files() -> None:
    links = re.findall(r"\]\(([^)#:]+)\)", README.read_text(encoding="utf-8").replace("\n", " "))
    assert len(links) > 10 and [link for link in links if not (ROOT / link).exists()] == []
