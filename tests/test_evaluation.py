"""Evaluation of scripted agents in a scripted environment, where every return can be computed by hand."""

import json
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch

import rrpolicy
from rrpolicy.evaluation import (
    Evaluation,
    bootstrap_interval,
    compare,
    evaluate,
    evaluate_policy,
    make_env,
    paired_difference,
    read_results,
    result_row,
    table,
    write_results,
)


class Scripted(gym.Env):
    """Episodes of 3 + seed % 4 steps; the reward is the action, success comes and goes."""

    def __init__(self, success_key: str | None = "success", dictionary: bool = False) -> None:
        box = gym.spaces.Box(-100.0, 100.0, (2,), np.float64)
        self.observation_space = gym.spaces.Dict({"state": box}) if dictionary else box
        self.action_space = gym.spaces.Box(-100.0, 100.0, (1,), np.float32)
        self.success_key = success_key
        self.closed = False

    def observation(self) -> Any:
        state = np.array([self.seed, self.step_number], dtype=np.float64)
        return {"state": state} if isinstance(self.observation_space, gym.spaces.Dict) else state

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[Any, dict]:
        assert seed is not None
        self.seed, self.step_number = seed, 0
        return self.observation(), {}

    def step(self, action: np.ndarray) -> tuple[Any, float, bool, bool, dict]:
        self.step_number += 1
        length = 3 + self.seed % 4
        over = self.step_number == length
        info = {self.success_key: self.step_number % 2 == 0} if self.success_key else {}
        return self.observation(), float(action[0]), over and self.seed % 2 == 0, over and self.seed % 2 == 1, info

    def close(self) -> None:
        self.closed = True


class Counter:
    """Acts by what it remembers: the number of steps since the episode began, on the given axis of its state."""

    def __init__(self, axis: int = 0, n_layers: int = 50) -> None:
        self.axis, self.n_layers = axis, n_layers
        self.batches: list[int] = []

    def predict(
        self, observation: Any, state: Any = None, episode_start: Any = None, deterministic: bool = False
    ) -> tuple[np.ndarray, Any]:
        assert deterministic and episode_start is not None and episode_start.dtype == bool
        seen = observation["state"] if isinstance(observation, dict) else observation
        self.batches.append(len(seen))
        assert (episode_start == (seen[:, 1] == 0)).all()
        count = np.zeros(len(seen)) if state is None else (state[0] if self.axis == 0 else state[0][0, :, 0])
        count = np.where(episode_start, 0.0, count)
        assert (count == seen[:, 1]).all()  # the memory belongs to the environment that it is handed back for
        following = count + 1 if self.axis == 0 else np.stack([count + 1] * self.n_layers)[..., None]
        return count[:, None], (following,)


LENGTHS = np.array([3 + seed % 4 for seed in range(10, 21)])
RETURNS = LENGTHS * (LENGTHS - 1) / 2


@pytest.mark.parametrize("n_envs", [1, 3, 11, 64, None])
def test_returns_lengths_and_successes_do_not_depend_on_the_number_of_environments(n_envs: int | None) -> None:
    result = evaluate(Counter(), Scripted, n_eval_episodes=11, seed=10, n_envs=n_envs)
    np.testing.assert_array_equal(result.seeds, np.arange(10, 21))
    np.testing.assert_array_equal(result.lengths, LENGTHS)
    np.testing.assert_array_equal(result.returns, RETURNS)
    np.testing.assert_array_equal(result.successes, LENGTHS % 2 == 0)  # of the last step, not of any
    assert result.success_rate == pytest.approx((LENGTHS % 2 == 0).mean())


def test_all_environments_are_planned_for_in_one_call() -> None:
    agent = Counter()
    evaluate(agent, Scripted, n_eval_episodes=11, seed=10)
    assert agent.batches == [int((step < LENGTHS).sum()) for step in range(LENGTHS.max())]


def test_one_environment_and_lists_are_used_and_stay_open() -> None:
    envs = [Scripted(), Scripted("is_success")]
    for source in (envs[0], envs):
        result = evaluate(Counter(), source, n_eval_episodes=11, seed=10)
        np.testing.assert_array_equal(result.returns, RETURNS)
        np.testing.assert_array_equal(result.successes, LENGTHS % 2 == 0)
    assert not envs[0].closed and not envs[1].closed


def test_environments_made_here_are_closed_even_when_the_agent_fails() -> None:
    made: list[Scripted] = []

    def make() -> Scripted:
        made.append(Scripted())
        return made[-1]

    class Failing(Counter):
        def predict(self, *args: Any, **kwargs: Any) -> Any:
            raise RuntimeError("no plan")

    with pytest.raises(RuntimeError, match="no plan"):
        evaluate(Failing(), make, n_eval_episodes=3)
    assert len(made) == 3 and all(env.closed for env in made)


def test_memory_on_the_second_axis_and_dictionaries() -> None:
    result = evaluate(Counter(axis=1), lambda: Scripted(dictionary=True), n_eval_episodes=11, seed=10, n_envs=4)
    np.testing.assert_array_equal(result.returns, RETURNS)


@pytest.mark.parametrize("n_envs", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("n_layers", [1, 2, 3])
def test_memory_of_recurrent_layers_belongs_to_its_environment(n_layers: int, n_envs: int) -> None:
    """(n_layers, n_envs, width), as sb3-contrib's policies keep it, also where two of the sizes are equal."""
    agent = Counter(1, n_layers)
    result = evaluate(agent, Scripted, n_eval_episodes=11, seed=10, n_envs=n_envs)
    np.testing.assert_array_equal(result.returns, RETURNS)
    assert agent.batches[0] == n_envs and (n_envs == 1 or (agent.batches[-1] < n_envs) == (n_layers != n_envs))


def test_a_row_of_the_memory_tells_along_which_axis_a_square_one_lies() -> None:
    class Square(Counter):
        def predict(self, observation: Any, state: Any = None, *arguments: Any) -> tuple[np.ndarray, Any]:
            if state is not None:
                assert (state[1] == state[0][:, None]).all()
            actions, (count,) = super().predict(observation, state, *arguments)
            return actions, (count, np.repeat(count[:, None], 3, axis=1))

    agent = Square()
    result = evaluate(agent, Scripted, n_eval_episodes=11, seed=10, n_envs=3)
    np.testing.assert_array_equal(result.returns, RETURNS)
    assert agent.batches[0] == 3 > agent.batches[-1]


class Whim:
    """Draws its actions from torch's global generator, as policies of Stable-Baselines3 do."""

    def predict(
        self, observation: Any, state: Any = None, episode_start: Any = None, deterministic: bool = False
    ) -> tuple[np.ndarray, Any]:
        return torch.randn(len(observation), 1).numpy(), None


def test_what_is_drawn_depends_on_the_seed_and_on_nothing_before() -> None:
    first = evaluate(Whim(), Scripted, n_eval_episodes=5, seed=3)
    before = torch.get_rng_state()
    again = evaluate(Whim(), Scripted, n_eval_episodes=5, seed=3)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(7)
    assert evaluate(Whim(), Scripted, n_eval_episodes=5, seed=3).returns.tolist() == first.returns.tolist()
    assert again.returns.tolist() == first.returns.tolist() and np.ptp(first.returns) > 0
    other = evaluate(Whim(), Scripted, n_eval_episodes=5, seed=4)
    assert other.returns[:4].tolist() != first.returns[1:].tolist()


def test_observations_are_recorded_when_asked_for() -> None:
    result = evaluate(Counter(), Scripted, 5, seed=10, n_envs=2, record_observations=True)
    assert result.observations is not None and evaluate(Counter(), Scripted, 1).observations is None
    for seed, length, seen in zip(result.seeds, result.lengths, result.observations, strict=True):
        np.testing.assert_array_equal(seen, [(seed, step) for step in range(length + 1)])


def test_without_success_there_is_no_success_rate(capsys: pytest.CaptureFixture) -> None:
    result = evaluate(Counter(), lambda: Scripted(None), n_eval_episodes=4, progress_bar=True)
    assert "step" in capsys.readouterr().err
    assert result.successes is None and result.success_rate is None
    assert [row["metric"] for row in result.rows("a")] == ["return"]
    with pytest.raises(ValueError, match=r"one of \['return', 'length'\], got 'success_rate'"):
        result.values("success_rate")


def test_ids_make_environments_and_point_mazes_are_flat() -> None:
    class Right:
        def predict(self, observation: np.ndarray, *_: Any, **__: Any) -> tuple[np.ndarray, None]:
            return np.ones(len(observation), dtype=int), None

    result = evaluate(Right(), "CartPole-v1", n_eval_episodes=3)
    assert (result.returns == result.lengths).all() and (result.lengths < 20).all()
    env = make_env("PointMaze_UMaze-v3", "rgb_array")
    assert env.observation_space.shape == (4,) and env.render_mode == "rgb_array"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"n_eval_episodes": 0}, "n_eval_episodes is 0"),
        ({"n_eval_episodes": 1.5}, "n_eval_episodes is 1.5, it must be a whole number"),
        ({"n_envs": True}, "n_envs is True, it must be a whole number"),
        ({"max_episode_steps": float("nan")}, "max_episode_steps is nan, it must be a whole number"),
        ({"n_envs": 0}, "n_envs is 0"),
        ({"seed": 1.5}, "seed is 1.5, it must be a whole number of at least 0"),
        ({"seed": True}, "seed is True, it must be a whole number"),
        ({"seed": -1}, "seed is -1, it must be a whole number of at least 0"),
        ({"seed": 2**70}, r"seed is 1180591620717411303424, it must be at most 4611686018427387904"),
        ({"seed": None}, "seed is None, it must be a whole number"),
        ({"deterministic": "False"}, "deterministic is 'False', it must be True or False"),
        ({"record_observations": "False"}, "record_observations is 'False', it must be True or False"),
        ({"progress_bar": 2}, "progress_bar is 2, it must be True or False"),
        ({"env": []}, "env must be"),
        ({"env": 7}, "env must be"),
    ],
)
def test_bad_arguments_are_named(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        evaluate(Counter(), **{"env": Scripted, **arguments})


# ---------------------------------------------------------------------- intervals


def test_the_bootstrap_agrees_with_the_normal_interval() -> None:
    values = np.random.default_rng(0).normal(3.0, 2.0, size=400)
    low, high = bootstrap_interval(values)
    half = 1.96 * values.std() / 20
    assert low == pytest.approx(values.mean() - half, abs=0.15 * half)
    assert high == pytest.approx(values.mean() + half, abs=0.15 * half)
    assert (low, high) == bootstrap_interval(values) != bootstrap_interval(values, seed=1)


def test_certain_rates_have_wilsons_interval() -> None:
    z2 = 1.959964**2
    assert bootstrap_interval([True] * 48) == (pytest.approx(48 / (48 + z2)), 1.0)
    assert bootstrap_interval(np.zeros(48)) == (0.0, pytest.approx(z2 / (48 + z2)))
    assert bootstrap_interval(np.zeros(48), rate=False) == (0.0, 0.0)
    low, high = bootstrap_interval([1, 0] * 24)
    assert 0.3 < low < 0.5 < high < 0.7


@pytest.mark.parametrize("values", [[], [[1.0]], [1.0, np.nan], 3.0])
def test_values_without_an_interval_are_refused(values: Any) -> None:
    with pytest.raises(ValueError, match="values must be finite numbers"):
        bootstrap_interval(values)


def evaluation(returns: Any, successes: Any = None, seed: int = 0) -> Evaluation:
    n = len(returns)
    known = None if successes is None else np.array(successes, dtype=bool)
    return Evaluation(np.array(returns, dtype=float), known, np.full(n, 5), seed + np.arange(n))


def test_pairs_are_compared_episode_by_episode() -> None:
    noise = 100.0 * np.random.default_rng(0).normal(size=30)  # shared by both: it cancels
    a, b = evaluation(noise + 2.0, [True] * 30), evaluation(noise + np.tile([0.5, 1.5], 15), [False] * 30)
    difference = paired_difference(a, b, "return")
    assert difference["mean"] == pytest.approx(1.0) and 0.7 < difference["ci_low"] < 1 < difference["ci_high"] < 1.3
    assert difference["n"] == 30
    certain = paired_difference(a, b)
    assert certain["mean"] == 1.0 == certain["ci_high"] and 0.8 < certain["ci_low"] < 0.95
    equal = paired_difference(a, a)
    assert equal["mean"] == 0.0 and equal["ci_low"] == -equal["ci_high"] < 0
    with pytest.raises(ValueError, match="same seeds"):
        paired_difference(a, evaluation(noise, seed=1), "return")


# ---------------------------------------------------------------------- results


def test_rows_have_the_promised_keys() -> None:
    rows = evaluation([1.0, 3.0], [True, True]).rows("expert")
    assert [(row["metric"], row["mean"], row["n"]) for row in rows] == [("success_rate", 1.0, 2), ("return", 2.0, 2)]
    assert list(rows[0]) == ["agent", "metric", "mean", "ci_low", "ci_high", "n"]
    assert rows[0]["ci_low"] < 1.0 == rows[0]["ci_high"]
    assert result_row("reward", "goal_error_cells", [0.0])["ci_high"] == 0.0  # no rate


def test_results_of_other_agents_are_kept(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "folder"
    base, expert = result_row("base", "return", [1.0, 2.0]), result_row("expert", "return", [5.0])
    assert write_results([base, expert], folder) == folder / "results.json"
    again = [result_row("base", "return", [3.0]), result_row("base", "success_rate", [0, 1])]
    write_results(again, folder)
    assert read_results(folder) == [expert, *again] == json.loads((folder / "results.json").read_text())
    assert [file.name for file in folder.iterdir()] == ["results.json"]


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "{}",
        '[{"agent": "a"}]',
        "[3]",
        '[{"agent": "a", "metric": "m", "mean": NaN, "ci_low": 0, "ci_high": 0, "n": 1}]',
    ],
)
def test_foreign_results_are_not_overwritten(tmp_path: Path, text: str) -> None:
    (tmp_path / "results.json").write_text(text)
    with pytest.raises(ValueError, match=r"results\.json: is no results file"):
        write_results([result_row("a", "return", [1.0])], tmp_path)
    assert (tmp_path / "results.json").read_text() == text
    with pytest.raises(ValueError, match="is no results file"):
        read_results(tmp_path / "nowhere")


def test_bad_rows_are_not_written(tmp_path: Path) -> None:
    row = result_row("a", "return", [1.0])
    for bad in ({**row, "more": 1}, {**row, "mean": np.inf}):
        with pytest.raises(ValueError, match="a row must"):
            write_results([bad], tmp_path)
    assert not (tmp_path / "results.json").exists()


def test_the_table_is_aligned() -> None:
    rows = [result_row("base", "success_rate", [0, 0, 1, 0]), result_row("a longer name", "return", [120.0, 140.0])]
    lines = table(rows).splitlines()
    assert len(lines) == 4 and len({len(line) for line in lines}) == 1
    assert lines[0].split() == ["agent", "metric", "mean", "95", "%", "interval", "n"]
    assert "0.250" in lines[2] and "130.0" in lines[3] and lines[3].endswith(" 2")


def test_the_former_name_warns_and_gives_the_same() -> None:
    wanted = evaluate(Counter(), Scripted, 3, seed=4)
    for former in (evaluate_policy, rrpolicy.evaluate_policy):
        with pytest.warns(DeprecationWarning, match="evaluate_policy is deprecated, call evaluate"):
            found = former(Counter(), Scripted, 3, 4)
        assert np.array_equal(found.returns, wanted.returns) and np.array_equal(found.seeds, wanted.seeds)
    with pytest.raises(TypeError, match="positional"):
        evaluate(Counter(), Scripted, 3, 4)  # type: ignore[misc]
    with pytest.warns(DeprecationWarning), pytest.raises(TypeError, match="positional"):
        evaluate_policy(Counter(), Scripted, 3, 4, True, 1, False, False, 9)
    with (
        pytest.warns(DeprecationWarning),
        pytest.raises(TypeError, match=r"multiple values .* 'seed'"),
    ):
        evaluate_policy(Counter(), Scripted, 3, 4, seed=4)


# ---------------------------------------------------------------------- several agents


def test_agents_are_compared_in_the_same_episodes_of_environments_made_once() -> None:
    made: list[Scripted] = []

    def make() -> Scripted:
        made.append(Scripted())
        return made[-1]

    seen: list[Any] = []
    agents = {"one": Counter(), "other": Counter()}
    results = compare(agents, make, 5, 3, n_envs=2, before=seen.append, after=lambda *given: seen.append(given))
    alone = evaluate(Counter(), Scripted, 5, seed=3, n_envs=2)
    assert list(results) == ["one", "other"] and [env.closed for env in made] == [True, True]
    for result in results.values():
        assert np.array_equal(result.returns, alone.returns) and np.array_equal(result.seeds, alone.seeds)
    assert seen == ["one", ("one", results["one"]), "other", ("other", results["other"])]
    assert paired_difference(results["one"], results["other"], "return")["mean"] == 0


def test_each_of_the_compared_agents_may_act_in_its_own_mode() -> None:
    modes: dict[str, set[bool]] = {"mean": set(), "drawn": set()}

    class Noting(Counter):
        def __init__(self, name: str) -> None:
            super().__init__()
            self.name = name

        def predict(self, observation: Any, state: Any = None, starts: Any = None, deterministic: bool = False) -> Any:
            modes[self.name].add(deterministic)
            return super().predict(observation, state, starts, True)

    agents = {name: Noting(name) for name in modes}
    compare(agents, [Scripted()], 2, deterministic={"mean": True, "drawn": False})
    assert modes == {"mean": {True}, "drawn": {False}}
    with pytest.raises(ValueError, match="deterministic does not name 'drawn'"):
        compare(agents, [Scripted()], 2, deterministic={"mean": True})
    with pytest.raises(ValueError, match="agents is empty"):
        compare({}, Scripted)
    with pytest.raises(ValueError, match="n_episodes is 0"):
        compare(agents, Scripted, 0)
