"""Cards of the zoo that others have written: their text stays text on the zoo's page."""

import json
from pathlib import Path
from typing import Any

import pytest

from rrpolicy import zoo

ROW = {"agent": "agent", "metric": "success_rate", "mean": 1.0, "ci_low": 0.0, "ci_high": 1.0, "n": 1}
CARD: dict[str, Any] = {"name": "E/a", "kind": "image-reward", "environment": "Hopper-v5", "results": [], "bytes": 1}


def page(folder: Path, **values: Any) -> str:
    place = folder / "agents" / "E" / "a"
    place.mkdir(parents=True)
    (place / zoo.CARD).write_text(json.dumps({**CARD, **values}))
    return zoo.table(folder)


@pytest.mark.parametrize(
    "values",
    [
        {"unwanted": None},
        {"picture": None},
        {"video": None},
        {"case": None, "kind": "agent", "results": [{**ROW, "metric": zoo.SCORE}]},
    ],
)
def test_what_is_not_told_stays_empty(values: dict[str, Any], tmp_path: Path) -> None:
    text = page(tmp_path, **values)
    assert "None" not in text and text.splitlines()[-1].startswith("| `E/a` |  |")


@pytest.mark.parametrize(
    "text",
    [
        "<script>alert(1)</script>",
        "a | b",
        "`x`\n# H",
        "# H",
        "[a](b)",
        "\x1b[31m",
        "a&lt;",
        "\\|",
    ],
)
def test_text_is_no_markup(text: str, tmp_path: Path) -> None:
    for name, values in (
        ("image", {"unwanted": ["x", text]}),
        ("first", {"unwanted": [text]}),
        ("maze", {"kind": "agent", "results": [{**ROW, "agent": f"base-{text}"}]}),
    ):
        plain = page(tmp_path / f"{name}-plain", **json.loads(json.dumps(values).replace(json.dumps(text)[1:-1], "y")))
        written = page(tmp_path / name, **values)
        assert len(written.splitlines()) == len(plain.splitlines())
        line = written.splitlines()[-1].replace("<br>", "")
        assert line.replace("\\|", "").count("|") == plain.splitlines()[-1].count("|")
        assert "<" not in line and ">" not in line and line.isprintable() and "| #" not in line
        assert "](b" not in line.replace("\\](b", "")


def test_plain_text_is_as_it_was(tmp_path: Path) -> None:
    assert "| `E/a` | Ankle boot, T-shirt/top |" in page(tmp_path, unwanted=["Ankle boot", "T-shirt/top"])
