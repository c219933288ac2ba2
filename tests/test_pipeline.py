"""Tasks, recipes and steps; training runs that are stopped, killed and resumed; data sets on disk."""

import csv
import itertools
import signal
from pathlib import Path
from typing import Any

import minari
import numpy as np
import pytest
import torch
from helpers.recipes import ENV_ID, GOAL, RECIPE, recipe

from rrpolicy import DiffusionAgent, experiments
from rrpolicy.common.learner import TrainingInterrupted
from rrpolicy.data.dataset import TrajectoryDataset
from rrpolicy.data.readers import load_dataset
from rrpolicy.envs.maze import MazeGeometry
from rrpolicy.experiments import Task
from rrpolicy.experiments.runs import TrainingRun, write_dataset

TASK = Task.create(ENV_ID, goal=GOAL)
DATA = experiments.collect_base(TASK, RECIPE, seed=0)
EXPERT_DATA = experiments.collect_expert(TASK, RECIPE, seed=0)


@pytest.fixture(scope="module")
def base() -> DiffusionAgent:
    return experiments.train_base(TASK, RECIPE, DATA)


def weights(agent: DiffusionAgent) -> torch.Tensor:
    return torch.cat([value.flatten() for value in agent.averaged.parameters()])


# ---------------------------------------------------------------------- tasks


def test_a_task_goes_into_a_card_and_back() -> None:
    task = Task.create(ENV_ID, ["#####", "#..g#", "#####"], (1, 1.2))
    assert Task.from_card(task.to_card()) == task
    assert task.maze.rows == ("#####", "#..g#", "#####") and task.goal == (1.0, 1.2)
    assert Task.from_card({"environment": None}) is None
    assert TASK.maze == MazeGeometry(("#####", "#...#", "###.#", "#...#", "#####"))


def test_a_task_makes_the_real_environment() -> None:
    env = TASK.make()
    env.reset(seed=0)
    np.testing.assert_allclose(env.get_wrapper_attr("goal_cell"), GOAL)
    env.close()
    pendulum = Task.create("Pendulum-v1")
    assert not pendulum.is_maze and pendulum.make().spec.id == "Pendulum-v1"  # type: ignore[union-attr]
    with pytest.raises(ValueError, match="env must be a PointMaze, got 'Pendulum-v1'"):
        _ = pendulum.maze


@pytest.mark.parametrize(
    ("arguments", "fault"),
    [
        (("PointMaze_None-v3",), "env_id must be one of"),
        (("None-v3",), "env 'None-v3' cannot be made"),
        (("Pendulum-v1", None, (1, 1)), "goal is for PointMaze environments"),
        (("Pendulum-v1", ["###", "#.#", "###"]), "maze_map is for PointMaze environments"),
        ((ENV_ID, None, (2, 2)), "lies in a wall"),
        ((ENV_ID, None, (9, 2)), "lies outside"),
        ((ENV_ID, ["####", "#..#", "###"]), "row 2 has 3 columns"),
    ],
)
def test_bad_tasks_are_refused(arguments: tuple[Any, ...], fault: str) -> None:
    with pytest.raises(ValueError, match=fault):
        Task.create(*arguments)


# ---------------------------------------------------------------------- recipes


@pytest.mark.parametrize(
    ("values", "fault"),
    [
        (recipe(agent={"horizont": 8}), r"section \[agent\].*horizont"),
        (recipe(base={"total_timesteps": 0.5}), r"section \[base\]: total_timesteps is 0.5"),
        (recipe(data={"base_transitions": None}), r"section \[data\]: base_transitions is None"),
        (recipe(data={"jitters": 1}), r"section \[data\].*jitters"),
        ({"name": "empty"}, r"recipe 'empty' lacks the section \[data\]"),
    ],
)
def test_faults_of_a_recipe_name_the_section(values: dict[str, Any], fault: str) -> None:
    with pytest.raises(ValueError, match=fault):
        experiments.train_base(TASK, values, experiments.collect_base(TASK, values, 0))


def test_faults_of_later_sections(base: DiffusionAgent) -> None:
    for name, step in (
        ("expert", lambda values: experiments.train_expert(base, values, EXPERT_DATA)),
        ("extraction", lambda values: experiments.extract(base, base, [DATA], values)),
        ("discriminator", lambda values: experiments.discriminate(base, base, [DATA, DATA], values)),
    ):
        with pytest.raises(ValueError, match=rf"section \[{name}\].*wrong_key"):
            step(recipe(**{name: {"wrong_key": 1}}))


# ---------------------------------------------------------------------- steps


def test_the_normaliser_comes_from_the_maze_and_keeps_proportions() -> None:
    maze = MazeGeometry.parse(["#########", "#.......#", "#########"])
    normalizer = experiments.maze_normalizer(maze)
    corners = maze.cell_to_xy([(-0.5, -0.5), (2.5, 8.5)])
    packed = normalizer.observations.normalize(np.hstack([corners, np.zeros((2, 2))]).astype(np.float32))
    np.testing.assert_allclose(packed[:, 0], [-1, 1])
    np.testing.assert_allclose(packed[:, 1], [1 / 3, -1 / 3], rtol=1e-6)


def test_the_expert_starts_from_the_base_and_leaves_it_alone(base: DiffusionAgent) -> None:
    before = weights(base).clone()
    follower = experiments.fine_tuned(base, RECIPE, seed=3)
    assert torch.equal(weights(follower), before) and follower.fingerprint() == base.fingerprint()
    assert follower.learning_rate == RECIPE["expert"]["learning_rate"] and follower.seed == 3
    expert = experiments.train_expert(base, RECIPE, EXPERT_DATA)
    assert torch.equal(weights(base), before) and not torch.equal(weights(expert), before)
    with pytest.raises(ValueError, match="an expert needs a goal"):
        experiments.collect_expert(TASK.with_goal(None), RECIPE, 0)


def test_identical_agents_give_a_constant_map_and_leave_nothing_unexplained(base: DiffusionAgent) -> None:
    reward = experiments.extract(base, base, [DATA], RECIPE).reward
    assert np.ptp(experiments.map_reward(reward, TASK.maze, RECIPE).values) == 0
    rows = experiments.explained_rows(reward, base, base, [DATA], RECIPE)
    assert {row["metric"].rsplit("_t", 1)[0] for row in rows} == {"r2_window_noised", "r2_step_noised", "r2_guided"}
    assert all(row["mean"] == 1.0 for row in rows)
    observations = experiments.observations_for_plans(TASK.maze, 3)
    steered = experiments.steer(base, reward, RECIPE, scale=2.0, n_candidates=None)
    assert steered.scale == 2.0
    np.testing.assert_array_equal(steered.plan(observations), base.plan(observations))


def test_a_discriminator_may_be_steered_with_in_its_own_way(base: DiffusionAgent) -> None:
    recipe = {**RECIPE, "discriminator_steering": {"scale": 3.0, "max_shift": 0.1}}
    other = experiments.discriminate(base, base, [DATA, EXPERT_DATA], RECIPE)
    assert experiments.steer(base, other, RECIPE).scale == 1.0
    steered = experiments.steer(base, other, recipe)
    assert (steered.scale, steered.max_shift) == (3.0, 0.1)
    assert experiments.steer(base, experiments.extract(base, base, [DATA], RECIPE).reward, recipe).scale == 1.0


def test_a_recipe_that_names_no_bound_keeps_the_one_of_its_published_numbers(base: DiffusionAgent) -> None:
    reward = experiments.extract(base, base, [DATA], RECIPE).reward
    assert "max_shift" not in RECIPE["steering"]
    assert experiments.steer(base, reward, RECIPE).max_shift == 0.5
    assert experiments.steer(base, reward, {**RECIPE, "steering": {"max_shift": 10.0}}).max_shift == 10.0
    assert experiments.steer(base, reward, RECIPE, max_shift=2.0).max_shift == 2.0


def test_on_policy_rounds_go_on_from_the_extraction(base: DiffusionAgent) -> None:
    data, expert = [DATA, EXPERT_DATA], experiments.train_expert(base, RECIPE, EXPERT_DATA)
    none, two = (experiments.extract_on_policy(base, expert, data, RECIPE, 0, n_rounds) for n_rounds in (0, 2))
    alone = experiments.extract(base, expert, data, RECIPE, 0)
    assert none.num_timesteps == 10 and two.num_timesteps == 10 + 2 * (10 // 3)
    x_t, t = torch.randn(4, *base.event_shape), torch.arange(4)
    assert torch.equal(none.reward(x_t, t), alone.reward(x_t, t))
    assert not torch.equal(two.reward(x_t, t), alone.reward(x_t, t))


def test_rewards_are_scored_on_episodes_that_were_not_learned() -> None:
    train, held_out = experiments.split_data([DATA, EXPERT_DATA], seed=0)
    for whole, part, rest in zip((DATA, EXPERT_DATA), train, held_out, strict=True):
        assert part.n_episodes + rest.n_episodes == whole.n_episodes
    one = TrajectoryDataset.from_arrays(DATA.observations[:100], DATA.actions[:100], episode_lengths=[100])
    assert experiments.split_data([one], seed=0) == ([one], [one])


# ---------------------------------------------------------------------- runs


def run(out: Path, **arguments: Any) -> TrainingRun:
    values = {"data": [DATA], "total_timesteps": 24, "checkpoint_freq": 10, **arguments}
    return TrainingRun(TASK, out=out, recipe=RECIPE, **values)


def fail_at(step: int, monkeypatch: pytest.MonkeyPatch, fault: Any) -> None:
    """Let ``fault`` happen in the middle of a gradient step."""
    clip, calls = torch.nn.utils.clip_grad_norm_, itertools.count()

    def clipped(*arguments: Any) -> Any:
        if next(calls) == step:
            fault()
        return clip(*arguments)

    monkeypatch.setattr("torch.nn.utils.clip_grad_norm_", clipped)


def killed() -> None:
    raise MemoryError("as good as kill -9")


@pytest.mark.parametrize(
    ("fault", "error"), [(lambda: signal.raise_signal(signal.SIGTERM), TrainingInterrupted), (killed, MemoryError)]
)
def test_stopped_and_resumed_equals_uninterrupted(tmp_path: Path, fault: Any, error: type[BaseException]) -> None:
    run(tmp_path / "whole").run()
    with pytest.MonkeyPatch.context() as patch:
        fail_at(17, patch, fault)
        with pytest.raises(error):
            run(tmp_path / "parts").run()
    assert not (tmp_path / "parts" / "agent.zip").exists()
    run(tmp_path / "parts").run(resume=True)
    whole, parts = ((tmp_path / name / "agent.zip").read_bytes() for name in ("whole", "parts"))
    assert whole == parts
    logs = []
    for name in ("whole", "parts"):
        with open(tmp_path / name / "progress.csv", newline="") as file:
            logs.append([(row["time/total_timesteps"], row["train/loss"]) for row in csv.DictReader(file)])
    assert len(logs[0]) == 12 and logs[0] == logs[1]


def test_a_finished_run_resumes_to_itself_and_a_new_one_replaces_it(tmp_path: Path) -> None:
    run(tmp_path).run()
    before = (tmp_path / "agent.zip").read_bytes()
    assert run(tmp_path).run(resume=True).num_timesteps == 24
    assert (tmp_path / "agent.zip").read_bytes() == before
    longer = run(tmp_path, total_timesteps=30).run(resume=True)
    assert longer.num_timesteps == 30
    run(tmp_path, total_timesteps=4, seed=1).run()
    assert DiffusionAgent.load(tmp_path / "checkpoint.zip").num_timesteps == 4
    card = (tmp_path / "run.json").read_text()
    assert '"seed": 1' in card and not list(tmp_path.glob(".*"))


def test_resuming_without_a_checkpoint_begins(tmp_path: Path) -> None:
    assert run(tmp_path, total_timesteps=2).run(resume=True).num_timesteps == 2


def test_a_run_is_resumed_only_with_what_it_began_with(tmp_path: Path) -> None:
    run(tmp_path, total_timesteps=2).run()
    with pytest.raises(ValueError, match=r"cannot resume .*: it began with data"):
        run(tmp_path, data=[EXPERT_DATA]).run(resume=True)
    with pytest.raises(ValueError, match="it began with seed 0, now it is 5"):
        run(tmp_path, seed=5).run(resume=True)
    (tmp_path / "run.json").write_text("{")
    with pytest.raises(ValueError, match=r"run\.json: cannot be read"):
        run(tmp_path).run(resume=True)


def test_fine_tuning_starts_from_an_archive(tmp_path: Path, base: DiffusionAgent) -> None:
    experiments.save_agent(base, tmp_path / "base.zip", {})
    run(tmp_path / "expert", init_from=str(tmp_path / "base.zip"), total_timesteps=0).run()
    expert = DiffusionAgent.load(tmp_path / "expert" / "agent.zip")
    assert torch.equal(weights(expert), weights(base))
    assert expert.learning_rate == RECIPE["expert"]["learning_rate"]


def test_data_of_another_environment_or_maze_are_refused(tmp_path: Path, base: DiffusionAgent) -> None:
    wide = TrajectoryDataset.from_arrays(np.zeros((9, 3)), np.zeros((9, 1)), episode_lengths=[9])
    with pytest.raises(ValueError, match=r"widths \(3, 1\), PointMaze_UMaze-v3 has \(4, 2\)"):
        run(tmp_path, data=[wide]).run()
    other = TrainingRun(Task.create("PointMaze_Medium-v3"), [DATA], tmp_path, RECIPE)
    with pytest.raises(ValueError, match="was collected in the maze"):
        other.run()
    cheetah = TrajectoryDataset.from_arrays(
        np.zeros((9, 17)), np.zeros((9, 6)), episode_lengths=[9], metadata={"env_id": "HalfCheetah-v5"}
    )
    walker = TrainingRun(Task.create("Walker2d-v5"), [cheetah], tmp_path, experiments.DEFAULT_RECIPE)
    with pytest.raises(ValueError, match="was recorded in HalfCheetah-v5, env is Walker2d-v5"):
        walker.run()
    experiments.save_agent(base, tmp_path / "base.zip", {})
    pendulum = TrainingRun(
        Task.create("Pendulum-v1"), [wide], tmp_path, experiments.DEFAULT_RECIPE, init_from=str(tmp_path / "base.zip")
    )
    with pytest.raises(ValueError, match="made for the observation space"):
        pendulum.run()


# ---------------------------------------------------------------------- data sets


def test_data_sets_are_written_over_each_other(tmp_path: Path) -> None:
    for data in (EXPERT_DATA, DATA):
        write_dataset(data, tmp_path, TASK)
        back = load_dataset(tmp_path)
        np.testing.assert_array_equal(back.observations, data.observations)
        assert back.metadata["goal"] == data.metadata["goal"]
        assert minari.MinariDataset(tmp_path).total_steps == data.n_transitions
    assert sorted(path.name for path in tmp_path.iterdir()) == ["main_data.hdf5", "metadata.json", "results.json"]
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="is a file, wanted a folder"):
        write_dataset(DATA, tmp_path / "file", TASK)


@pytest.mark.parametrize(
    ("section", "values", "fault"),
    [
        ("rounds", {"n_plans": 0}, r"recipe 'tiny' section \[rounds\]: n_plans is 0"),
        ("rounds", {"n_walks": 3}, r"recipe 'tiny' section \[rounds\]: .*n_walks"),
        ("scores", {"n_sets": 3}, r"recipe 'tiny' section \[scores\]: .*n_sets"),
    ],
)
def test_sizes_of_rounds_and_scores_are_checked(
    base: DiffusionAgent, section: str, values: dict[str, Any], fault: str
) -> None:
    changed = {**RECIPE, section: values}
    reward = experiments.new_extractor(base, base, RECIPE).reward
    with pytest.raises(ValueError, match=fault):
        if section == "rounds":
            experiments.extract_on_policy(base, base, [DATA, DATA], changed)
        else:
            experiments.explained_rows(reward, base, base, [DATA], changed)
