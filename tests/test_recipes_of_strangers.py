"""Recipes whose numbers cannot be used are refused before any work, naming the recipe and its section."""

from pathlib import Path
from typing import Any

import pytest
from helpers.recipes import ENV_ID, recipe, toml
from test_cli import built, fault, tiny_zoo  # noqa: F401  a zoo for every test

from rrpolicy import zoo
from rrpolicy.data.collect import collect_point_maze
from rrpolicy.data.dataset import TrajectoryDataset
from rrpolicy.data.writers import save_minari
from rrpolicy.experiments import Task, new_agent
from rrpolicy.experiments.steps import fine_tuned

PAIR = ("--base", f"{ENV_ID}/base", "--expert", f"{ENV_ID}/expert-3-1")


@pytest.mark.parametrize(
    "entries",
    [
        {"buffer_size": 10**12},
        {"buffer_size": 2**25},
        {"learning_rate": float("inf")},
        {"weight_decay": float("nan")},
        {"weight_decay": -1},
        {"n_epochs": 0},
    ],
)
def test_extraction(entries: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "strange.toml"
    path.write_text(toml({**recipe(extraction=entries), "name": "strange"}))
    line = fault("extract", *PAIR, "--out", tmp_path / "out", "--recipe", path, "--no-progress")
    assert "recipe 'strange' section [extraction]: " in line and next(iter(entries)) in line
    assert not (tmp_path / "out" / "reward.zip").exists()


@pytest.mark.parametrize(
    ("name", "entries"),
    [
        ("agent", {"horizon": 10**8}),
        ("agent", {"stride": 10**8}),
        ("agent", {"learning_rate": float("inf")}),
        ("expert", {"learning_rate": float("inf")}),
        ("expert", {"weight_decay": float("nan")}),
        ("expert", {"max_grad_norm": float("inf")}),
        ("expert", {"batch_size": -1}),
    ],
)
def test_agents(name: str, entries: dict[str, Any]) -> None:
    task = Task.create(ENV_ID)
    values = recipe(**{name: entries}) | {"name": "strange"}
    with pytest.raises(ValueError, match=rf"recipe 'strange' section \[{name}\]: .*{next(iter(entries))}"):
        if name == "agent":
            new_agent(task, values, 0)
        else:
            fine_tuned(zoo.load_agent(f"{ENV_ID}/base"), values, 0)


@pytest.mark.parametrize(
    "metadata",
    [
        {"maze": ["#####", "#"]},
        {"maze": ["###", "#x#", "###"]},
        {"goal": [0, 0]},
        {"goal": [1e9, 1.0]},
    ],
)
def test_places_of_data_name_the_data(metadata: dict[str, Any], tmp_path: Path) -> None:
    maze = Task.create(ENV_ID).maze
    data = collect_point_maze(maze=maze, n_transitions=300, seed=0)
    changed = TrajectoryDataset.from_arrays(
        data.observations,
        data.actions,
        episode_lengths=data.episode_lengths,
        metadata={"maze": list(maze.rows), **metadata},
    )
    save_minari(changed, tmp_path / "data")
    line = fault("train", "--dataset", tmp_path / "data", "--out", tmp_path / "run", "--no-progress")
    assert f"{tmp_path / 'data'}: maze and goal of the data: " in line and not (tmp_path / "run").exists()
