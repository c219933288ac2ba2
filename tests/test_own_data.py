"""What users bring and would not notice: actions outside the space, numbers that are none, observations in parts;
the program shows the library's warnings."""

from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.spaces import Box, Dict
from helpers.agents import DATASET, NORMALIZER, SMALL, Drift, make_agent
from test_cli import run

from rrpolicy import DiffusionAgent, TrajectoryDataset
from rrpolicy.agents.arguments import grouped
from rrpolicy.common.messages import RrpolicyWarning
from rrpolicy.data.layout import TrajectoryLayout
from rrpolicy.diffusion.score_model import check_compatible
from rrpolicy.rl.cloning import clone_behaviour
from rrpolicy.rl.finetune import FinetuneSettings, finetune
from rrpolicy.rl.replay import ReplayTraining
from rrpolicy.testing import check_agent

RECIPE = """
[agent]
horizon = 4
n_diffusion_steps = 6
batch_size = 4
policy_kwargs = {width = 8, n_blocks = 1, n_fourier_features = 2}
[base]
total_timesteps = 2
[expert]
total_timesteps = 2
"""


def rough(largest: float = 3.0, n: int = 200) -> TrajectoryDataset:
    """Actions of which a third lie outside of ±1."""
    rng = np.random.default_rng(0)
    actions = rng.uniform(-0.9, 0.9, (n, 2))
    actions[: n // 4, 1] = largest
    return TrajectoryDataset.from_arrays(
        rng.normal(size=(n, 4)), actions, rewards=np.zeros(n), terminals=np.zeros(n), timeouts=np.arange(n) % 10 == 9
    )


class Parts(gym.Env[Any, Any]):
    """Its observation is a dictionary of a grid and a vector, four numbers in all."""

    observation_space = Dict({"p": Box(-9.0, 9.0, (1, 2), np.float32), "v": Box(-9.0, 9.0, (2,), np.float32)})
    action_space = Box(-1.0, 1.0, (2,), np.float32)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[dict[str, Any], dict[str, Any]]:
        super().reset(seed=seed)
        self._at = self.np_random.uniform(-1, 1, 4).astype(np.float32)
        return self._seen(), {}

    def step(self, action: np.ndarray) -> tuple[dict[str, Any], float, bool, bool, dict[str, Any]]:
        self._at[:2] += 0.1 * np.asarray(action, np.float32)
        return self._seen(), float(action[0]), False, False, {}

    def _seen(self) -> dict[str, Any]:
        return {"p": self._at[None, :2].copy(), "v": self._at[2:].copy()}


# ---------------------------------------------------------------------- actions outside the space


def test_actions_outside_the_space_are_told_with_their_share() -> None:
    agent = DiffusionAgent("MlpPolicy", Drift(), **grouped(SMALL))
    with pytest.warns(RrpolicyWarning, match=r"actions: 25\.00% of the rows lie outside .* column 1, .* to 3$"):
        agent.learn(rough(), 1)


def test_fine_tuning_refuses_them_as_cloning_does() -> None:
    settings = FinetuneSettings(total_timesteps=0, n_cloning_steps=1, n_critic_steps=0, n_eval_episodes=1)
    for learn in (lambda data: finetune(Drift, data, None, settings=settings), lambda data: clone_behaviour(data, 1)):
        with pytest.raises(ValueError, match=r"actions \(2,\) reach from -0\.\d+ to 3, outside Box\(-1\.0, 1\.0"):
            learn(rough())
        learn(rough(largest=1.0))


# ---------------------------------------------------------------------- numbers


def test_seeds_of_numpy_are_taken_by_every_learner() -> None:
    seed = np.int64(1)
    one, other = (
        clone_behaviour(DATASET, 3, each).predict(DATASET.observations[:5], deterministic=True)[0] for each in (seed, 1)
    )
    np.testing.assert_array_equal(one, other)
    settings = FinetuneSettings(total_timesteps=0, n_cloning_steps=1, n_critic_steps=0, n_eval_episodes=1)
    finetune(Drift, rough(largest=1.0), None, seed, settings)
    assert type(ReplayTraining(Drift(), seed).seed) is int


@pytest.mark.parametrize("seed", [-1, 1.5, True, "1"])
def test_what_is_no_seed_is_refused(seed: Any) -> None:
    data = rough(largest=1.0)
    for make in (
        lambda: make_agent(seed=seed),
        lambda: ReplayTraining(Drift(), seed),
        lambda: clone_behaviour(data, 1, seed),
        lambda: finetune(Drift, data, None, seed),
    ):
        with pytest.raises(ValueError, match=f"seed is {seed!r}, it must be a whole number of at least 0"):
            make()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("log_interval", -1),
        ("log_interval", 1.5),
        ("checkpoint_freq", 0),
        ("checkpoint_freq", 2.5),
        ("eval_freq", 0),
    ],
)
def test_numbers_of_learn_are_looked_at_whether_they_are_used_or_not(name: str, value: Any) -> None:
    agent = make_agent()
    with pytest.raises(ValueError, match=f"{name} is {value}, it must be a whole number"):
        agent.learn(DATASET, 1, **{name: value})
    assert agent.num_timesteps == 0


def test_columns_are_whole_numbers() -> None:
    with pytest.raises(ValueError, match=r"observation_columns is 0\.5, it must be a whole number"):
        TrajectoryLayout(4, 2, 3, observation_columns=(0.5, 1.9))  # type: ignore[arg-type]
    assert TrajectoryLayout(4, 2, 3, observation_columns=tuple(np.arange(2))).columns == (0, 1)


# ---------------------------------------------------------------------- environments of dictionaries


def test_dictionaries_are_flattened_wherever_an_environment_is_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(gym.registry, "Parts-v0", gym.envs.registration.EnvSpec("Parts-v0", Parts, None, False, 10))
    (tmp_path / "r.toml").write_text(RECIPE)
    data = rough(largest=1.0)
    flags = {"terminals": np.zeros(200), "timeouts": np.arange(200) % 10 == 9}
    np.savez(tmp_path / "d.npz", observations=data.observations, actions=data.actions, rewards=np.zeros(200), **flags)
    run(
        "train",
        "--dataset",
        tmp_path / "d.npz",
        "--env",
        "Parts-v0",
        "--out",
        tmp_path / "run",
        "--recipe",
        tmp_path / "r.toml",
        "--no-progress",
    )
    agent = DiffusionAgent.load(tmp_path / "run" / "agent.zip")
    assert agent.layout.observation_dim == 4 and check_agent(agent, Parts())
    settings = FinetuneSettings(total_timesteps=4, eval_freq=4, n_cloning_steps=1, n_critic_steps=1, n_eval_episodes=1)
    tuned = finetune(lambda: gym.make("Parts-v0"), data, None, settings=settings)
    assert [look.timesteps for look in tuned.curve] == [0, 4]


# ---------------------------------------------------------------------- what the program shows


def test_the_program_shows_the_librarys_warnings_once(tmp_path: Path) -> None:
    """The expert's data, of which two fifths lie beyond what the base can plan."""
    (tmp_path / "r.toml").write_text(RECIPE)
    rng = np.random.default_rng(0)
    for name, actions in (("base", rng.normal(0.3, 0.05, 400)), ("expert", np.where(np.arange(400) % 5 < 2, 1.9, 0.3))):
        np.savez(
            tmp_path / f"{name}.npz",
            observations=rng.uniform(-1, 1, (400, 3)),
            actions=actions[:, None],
            episode_lengths=np.full(4, 100),
        )
    common = ("--env", "Pendulum-v1", "--recipe", tmp_path / "r.toml", "--no-progress")
    first = run("train", "--dataset", tmp_path / "base.npz", "--out", tmp_path / "b", *common)
    assert "lie beyond" not in first.stderr
    second = run(
        "train", "--dataset", tmp_path / "expert.npz", "--init-from", tmp_path / "b", "--out", tmp_path / "e", *common
    )
    lines = [line for line in second.stderr.splitlines() if "40.00% of action 0 of the data lie beyond" in line]
    assert len(lines) == 1 and lines[0].startswith("rrpolicy: warning: ")


# ---------------------------------------------------------------------- what differs


def test_fields_of_fingerprints_are_compared_by_name() -> None:
    one, other = make_agent(), make_agent(n_observation_rows=2)
    with pytest.raises(ValueError, match=r"fingerprints: no n_observation_rows against n_observation_rows=2$"):
        check_compatible(one, other)
    assert one.normalizer is NORMALIZER
