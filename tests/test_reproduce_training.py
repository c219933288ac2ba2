"""Training on ρ as a part of the maze experiment: nothing that is finished is trained twice, and tables tell ratios."""

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.pictures import small_pictures
from helpers.recipes import RECIPE, quick_training, recipe
from helpers.rows import short_key
from stable_baselines3 import PPO, SAC

from rrpolicy.experiments.maze2d import (
    VARIANTS,
    MazeStore,
    MazeUnit,
    draw,
    read_results,
    reproduction,
    select,
    summary,
)
from rrpolicy.experiments.maze2d import (
    measure_training as training,
)
from rrpolicy.experiments.maze2d.artifacts import CURVE_COLUMNS, curve_path, read_curves, read_progress, write_curves
from rrpolicy.experiments.maze2d.figures import retraining
from rrpolicy.experiments.maze2d.measure_training import measure_training
from rrpolicy.experiments.report import paired_ratio
from rrpolicy.experiments.results import Result
from rrpolicy.rl.on_reward import Settings

VARIANT, UNIT = VARIANTS["training"], MazeUnit("umaze", 0, (1.0, 1.0))
AGENTS = ("PPO-reward", "PPO-true", "SAC-reward", "SAC-true")
TINY = {
    "PPO": Settings(PPO, 4, 4 * 64, {"n_steps": 64, "batch_size": 64, "n_epochs": 1}),
    "SAC": Settings(SAC, 4, 4 * 64, {"learning_starts": 200, "policy_kwargs": {"net_arch": [8]}}),
}


@pytest.fixture(scope="module", autouse=True)
def small() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        quick_training(patch, TINY, 2_000)
        small_pictures(patch)
        yield


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of one unit."""
    folder = tmp_path_factory.mktemp("done")
    reproduction([UNIT], RECIPE, folder / "maze2d.csv", folder / "work", VARIANT).run()
    return folder


def numbers(entries: Any) -> dict[tuple[str, str], float]:
    """Everything but times."""
    return {short_key(row): row["mean"] for row in entries if row["metric"] != "cpu_seconds"}


# ---------------------------------------------------------------------- ratios


def test_a_ratio_of_proportional_samples_is_exact_and_one_of_others_has_an_interval() -> None:
    second = np.array([1.0, 2.0, 5.0])
    assert paired_ratio(0.9 * second, second) == pytest.approx({"mean": 0.9, "ci_low": 0.9, "ci_high": 0.9, "n": 3})
    number = paired_ratio(np.array([1.0, 1.0, 0.0, 1.0]), np.array([1, 1, 1, 0]))  # many resamples have no success
    assert number["mean"] == 1.0 and 0.0 <= number["ci_low"] < 1.0 < number["ci_high"]
    nothing = paired_ratio(second, np.zeros(3))
    assert nothing["n"] == 3 and np.isnan([nothing[key] for key in ("mean", "ci_low", "ci_high")]).all()
    assert np.isnan(paired_ratio(np.zeros(0), np.zeros(0))["mean"])


# ---------------------------------------------------------------------- curves


def test_curves_are_kept_and_other_files_refused(tmp_path: Path) -> None:
    curves = {("PPO", "true"): np.array([[10.0, 1.5, 0.0], [20.0, 123.456, 1.0]]), ("SAC", "true"): np.ones((1, 3))}
    path = curve_path(tmp_path / "new", UNIT)
    write_curves(path, curves)
    again = read_curves(path)
    assert set(again) == set(curves) and all(np.array_equal(again[names], curves[names]) for names in curves)
    assert [one.name for one in path.parent.iterdir()] == ["umaze_1-1_seed-0.csv"]
    (tmp_path / "other.csv").write_text("a,b\n1,2\n")
    (tmp_path / "cut.csv").write_text(",".join(CURVE_COLUMNS) + "\nPPO,true\n")
    for name in ("other.csv", "cut.csv", "nothing.csv"):
        with pytest.raises(ValueError, match=f"{name}: holds no learning curves"):
            read_curves(tmp_path / name)


def test_the_log_before_the_first_episodes_end_is_left_out(tmp_path: Path) -> None:
    columns = "rollout/success_rate,time/fps,time/total_timesteps,rollout/ep_rew_mean"
    (tmp_path / "progress.csv").write_text(f"{columns}\n,9,64,\n0.5,9,128,7.25\n")
    assert read_progress(tmp_path / "progress.csv").tolist() == [[128.0, 7.25, 0.5]]
    (tmp_path / "progress.csv").write_text("time/total_timesteps\n64\n")
    assert read_progress(tmp_path / "progress.csv").shape == (0, 3)


# ---------------------------------------------------------------------- the run


def test_every_agent_has_its_rows_and_curve(done: Path) -> None:
    results = read_results(done / "maze2d.csv")
    values = {short_key(one): one for one in results}
    for agent in AGENTS:
        assert values[agent, "decisions"].value == 256 and values[agent, "cpu_seconds"].value > 0
        assert values[agent, "success_rate"].n == RECIPE["evaluation"]["n_eval_episodes"]
        assert 0 < values[agent, "return"].value < 300
    for algorithm in ("PPO", "SAC"):
        ratio = values[f"{algorithm}-reward-{algorithm}-true", "return_ratio"]
        ours, true = (values[f"{algorithm}-{pay}", "return"].value for pay in ("reward", "true"))
        assert ratio.value == pytest.approx(ours / true, rel=1e-4) and ratio.ci_low <= ratio.value <= ratio.ci_high
    curves = read_curves(curve_path(done / "maze2d" / "curves", UNIT))
    assert set(curves) == {(algorithm, pay) for algorithm in ("PPO", "SAC") for pay in ("reward", "true")}
    assert all((curve[:, 0] <= 256).all() and (curve[:, 1] > 0).all() for curve in curves.values())
    logs = [path.parent.name for path in done.glob("work/umaze_1-1_seed-0/training/*/progress.csv")]
    assert sorted(name.rpartition("-")[0] for name in logs) == sorted(AGENTS)


def test_what_was_trained_is_not_trained_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, done: Path) -> None:
    class Killed(BaseException):
        pass

    def log(text: str) -> None:
        if text == "training PPO-true":
            raise Killed

    shutil.copytree(done / "work", tmp_path / "work", ignore=shutil.ignore_patterns("training"))  # the reward is there
    store = MazeStore(tmp_path / "work", RECIPE, VARIANT)
    with pytest.raises(Killed):
        measure_training(store, UNIT, tmp_path / "curves", log)
    assert not (tmp_path / "curves").exists()
    trained: list[tuple[str, bool]] = []
    train = training.train_on_reward

    def noted(reward: Any, maze: Any, goal: Any, algorithm: str, **arguments: Any) -> Any:
        trained.append((algorithm, reward is not None))
        return train(reward, maze, goal, algorithm, **arguments)

    monkeypatch.setattr(training, "train_on_reward", noted)
    recorder = measure_training(store, UNIT, tmp_path / "curves")
    assert trained == [("PPO", False), ("SAC", True), ("SAC", False)]
    whole = {short_key(one): one.value for one in read_results(done / "maze2d.csv")}
    resumed = numbers(row for row, _ in recorder.entries)
    assert resumed == pytest.approx({key: whole[key] for key in resumed}, rel=1e-5)
    curves = (read_curves(curve_path(folder, UNIT)) for folder in (tmp_path / "curves", done / "maze2d" / "curves"))
    assert [names for one in curves for names in one] == 2 * [(name[:3], name[4:]) for name in AGENTS]
    # another recipe makes another reward, but the true one stays what it was
    trained.clear()
    other = MazeStore(tmp_path / "work", recipe(extraction={"total_timesteps": 11}), VARIANT)
    measure_training(other, UNIT, tmp_path / "curves")
    assert trained == [("PPO", True), ("SAC", True)]


def test_two_goals_of_each_maze_are_trained_for() -> None:
    units = select(["umaze", "large"], seeds=[0], indices=VARIANT.goals)
    assert [unit.goal for unit in units] == [None, (1, 1), (1.3, 2.7), None, (1, 1), (3, 8)]


# ---------------------------------------------------------------------- what is shown


def result(variant: str, agent: str, metric: str, value: float, seed: int = 1, maze: str = "umaze") -> Result:
    return Result(maze, "1-1", seed, variant, agent, metric, value, value, value, 1, 1.0, "0", "abc")


def test_the_training_table_holds_means_and_their_ratio() -> None:
    results = [
        result("training", agent, metric, value, seed)
        for seed, ours, true in ((1, 0.5, 1.0), (2, 0.25, 0.5))
        for agent, share in (("PPO-reward", ours), ("PPO-true", true))
        for metric, value in (("success_rate", share), ("return", 100 * share), ("cpu_seconds", 12.0))
    ]
    results.append(replace(result("training", "PPO-reward", "return_ratio", 0.5), reference="PPO-true"))
    lines = summary(results).splitlines()
    assert lines[2] == (
        "| umaze | PPO | 2 | 0.375 | 0.750 | 0.500 [0.500, 0.500] | 37.5 | 75.0 | 0.500 [0.500, 0.500] | 12 | 12 |"
    )
    assert lines[3] == lines[2].replace("umaze", "all") and len(lines) == 4
    failed = [result("training", agent, "success_rate", 0.0) for agent in ("SAC-reward", "SAC-true")]
    assert "| umaze | SAC | 0 | 0.000 | 0.000 | – | – | – | – | – | – |" in summary(failed)


def test_peers_stand_beside_ours_on_the_same_units_and_not_among_the_variants() -> None:
    peers = [
        result("peers", "airl", "goal_own_cell", 0.0),
        result("peers", "airl", "environment_steps", 3e5),
        result("peers", "airl", "cpu_seconds", 400.0),
        result("peers", "cloning", "success_rate", 0.5),
        result("peers", "unit", "cpu_seconds", 500.0),
    ]
    main = [
        result("", "reward", "goal_own_cell", 1.0),
        result("", "reward", "cpu_seconds", 20.0),
        result("", "expert", "cpu_seconds", 15.0),
        result("", "steered", "success_rate", 0.75),
        result("", "reward", "goal_own_cell", 0.0, seed=2),
    ]
    mazes, others = summary(main + peers).split("\n\n")
    assert "| umaze | 1/2 (1, 0 by seed) |" in mazes and "unchanged" not in mazes + others
    lines = others.splitlines()
    assert lines[0].startswith("| maze | method | own cell |") and len(lines) == 2 + 2 * 3
    assert lines[2] == "| umaze | ρ, steered | 1.00 | – | – | – | – | – | – | 0.750 | – | 35 | 0 |"
    assert lines[3] == "| umaze | airl | 0.00 | – | – | – | – | – | – | – | – | 400 | 300000 |"
    assert lines[4] == "| umaze | cloning | – | – | – | – | – | – | – | 0.500 | – | – | – |"
    alone = summary(peers)
    assert "ρ, steered" not in alone and "| all | airl |" in alone


def test_learning_curves_are_drawn_as_far_as_all_of_them_go(tmp_path: Path) -> None:
    ends = [result("training", "unit", "cpu_seconds", 1.0, seed) for seed in range(3)]
    steps = np.arange(1.0, 6.0) * 1000
    for seed, (slope, last) in enumerate(((1.0, 5), (2.0, 5), (4.0, 4))):
        curve = np.stack([steps, slope * steps, np.zeros(5)], axis=1)[:last]
        unit = MazeUnit("umaze", seed, UNIT.goal)
        write_curves(curve_path(tmp_path, unit), {("PPO", pay): curve for pay in ("reward", "true")})
    axes = retraining(ends, tmp_path).axes[0]
    assert [line.get_label() for line in axes.lines] == ["trained on ρ", "trained on the true reward"]
    assert axes.lines[0].get_xdata().tolist() == [1, 2, 3, 4]
    assert axes.lines[0].get_ydata().tolist() == [2000, 4000, 6000, 8000]  # the median's slope is 2
    assert axes.collections[0].get_paths()[0].get_extents().bounds == pytest.approx((1, 1000, 3, 15000))


def test_the_picture_comes_from_the_csv_and_the_curves(done: Path, tmp_path: Path) -> None:
    results = read_results(done / "maze2d.csv")
    assert [path.name for path in draw(results, done / "maze2d.csv")] == ["retraining.png"]
    with pytest.raises(ValueError, match="holds no learning curves"):
        draw(results, tmp_path / "elsewhere.csv")
