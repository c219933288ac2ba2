"""The main job from scratch in a maze that nothing was tuned on: one recipe, no change of settings."""

from pathlib import Path

import pytest

from rrpolicy.evaluation import read_results
from rrpolicy.experiments import DEFAULT_ENV_ID, Task
from rrpolicy.experiments.demos import Demo
from rrpolicy.experiments.recipes import recipe_of

UNSEEN_MAZE = """
########
#...#..#
#.#.#.##
#.#....#
#.####.#
#...##.#
###....#
########
""".strip()


@pytest.mark.slow
def test_an_unseen_maze_from_scratch(tmp_path: Path) -> None:
    maze = tmp_path / "maze.txt"
    maze.write_text(UNSEEN_MAZE, encoding="utf-8")
    task = Task.create(DEFAULT_ENV_ID, maze, (1.0, 6.0))
    Demo(task, tmp_path / "out", recipe_of(DEFAULT_ENV_ID), seed=0).run()
    means = {(row["agent"], row["metric"]): row["mean"] for row in read_results(tmp_path / "out")}
    success = {agent: means[agent, "success_rate"] for agent in ("base", "discriminator", "steered", "expert")}
    assert success["base"] <= 0.3
    assert success["expert"] >= 0.95
    assert success["steered"] >= 0.85 * success["expert"]
    assert means["steered", "return"] > means["discriminator", "return"]
    assert means["reward", "goal_error_cells"] <= 0.5
