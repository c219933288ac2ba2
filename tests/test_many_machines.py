"""The commands of the page "Many machines" leave what one process leaves."""

import csv
from pathlib import Path

import pytest
from helpers.cluster import cluster
from helpers.commands import commands, prepare, run

from rrpolicy.experiments.recipes import read_recipe

pytest.importorskip("distributed", reason="the extra scale is not installed")
pytestmark = pytest.mark.slow  # each process imports torch
PAGE = "guides/many_machines.md"
SECONDS = "cpu_seconds"


def rows(path: Path) -> list[dict[str, str]]:
    """A CSV without what is measured in seconds."""
    with open(path, newline="", encoding="utf-8") as file:
        found = list(csv.DictReader(file))
    return [{**row, SECONDS: "", "value": "" if row["metric"] == SECONDS else row["value"]} for row in found]


def check_same(one: Path, two: Path) -> None:
    """Everything that the two commands of a kind have left is the same."""
    assert len(list(one.rglob("*.csv"))) == 1
    for path in one.rglob("*"):
        other = two / path.relative_to(one)
        if path.suffix == ".csv":
            drop = ("ci_low", "ci_high")
            mine, others = (
                [{k: v for k, v in row.items() if k not in drop or row["metric"] != SECONDS} for row in rows(file)]
                for file in (path, other)
            )
            assert mine == others and len(mine) > 50
        elif path.suffix in (".npz", ".safetensors", ".json"):
            assert path.read_bytes().replace(str(one).encode(), str(two).encode()) == other.read_bytes()


def test_two_processes_of_this_machine(tmp_path: Path) -> None:
    lines = [one for one in commands(PAGE, "rrpolicy") if "--jobs 2" in one]
    assert len(lines) == 2
    for name, change in (("one", " --jobs 1"), ("two", "")):
        prepare(tmp_path / name)
        run(tmp_path / name, [line + change for line in lines])
    check_same(tmp_path / "one" / "runs", tmp_path / "two" / "runs")


def test_a_cluster(tmp_path: Path) -> None:
    lines = [one for one in commands(PAGE, "rrpolicy") if "--scheduler" in one]
    assert len(lines) == 2
    with cluster(tmp_path) as address:
        for name in ("one", "two"):
            shared = tmp_path / name
            prepare(shared)
            here = [line.replace("/shared", str(shared)) for line in lines]
            scheduler = f"--scheduler {address}" if name == "two" else ""
            run(shared, [line.replace("--scheduler tcp://10.0.0.1:8786", scheduler) for line in here])
    check_same(tmp_path / "one", tmp_path / "two")


def test_tuning(tmp_path: Path) -> None:
    lines = [one for one in commands(PAGE, "rrpolicy") if one.startswith(("tune", "train"))]
    prepare(tmp_path)
    run(tmp_path, [lines[0], lines[0], lines[1].replace("--recipe recipe.toml", "")])
    assert read_recipe(tmp_path / "found.toml")["tuned"]["trials"] == 2
    assert (tmp_path / "runs" / "tuned" / "agent.zip").is_file()
