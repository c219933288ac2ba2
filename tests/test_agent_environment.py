"""The environment of an agent: ids are made, spaces made flat, normalised observations and faults refused by name."""

from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from helpers.agents import NARROW, Drift, make_agent
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

from rrpolicy import DiffusionAgent, GuidedPlanner, Normalizer, RewardExtractor, evaluate, zoo
from rrpolicy.common.spaces import FlatSpaces
from rrpolicy.data.collect import collect
from rrpolicy.diffusion.process import DiffusionProcess
from rrpolicy.rewards.discriminator import DiscriminatorReward

UNITS = Normalizer.from_bounds((-np.ones(3), np.ones(3)), (-np.ones(1), np.ones(1)))


def pendulum_agent(env: Any = "Pendulum-v1") -> DiffusionAgent:
    process = DiffusionProcess(5)
    return DiffusionAgent("MlpPolicy", env, horizon=4, process=process, policy_kwargs=NARROW, normalizer=UNITS)


class Reshaped(gym.ObservationWrapper):
    """`Drift` with observations and actions of another form."""

    def __init__(self, form: str) -> None:
        super().__init__(Drift())
        self._form = form
        flat = self.observation_space
        parts = {"position": spaces.Box(-np.inf, np.inf, (2,)), "rest": spaces.Box(-np.inf, np.inf, (2,))}
        self.observation_space: Any = {
            "2-D": spaces.Box(-np.inf, np.inf, (2, 2), np.float64),
            "Dict": spaces.Dict(parts),
            "Tuple": spaces.Tuple(tuple(parts.values())),
            "action": flat,
            "Discrete": spaces.Discrete(4),
            "image": spaces.Box(0, 255, (8, 8, 3), np.uint8),
        }[form]
        if form == "action":
            self.action_space = spaces.Box(-1.0, 1.0, (1, 2), np.float32)

    def step(self, action: np.ndarray) -> Any:
        return super().step(np.reshape(action, 2))

    def observation(self, vector: Any) -> Any:
        parts = {"position": vector[:2].astype(np.float32), "rest": vector[2:].astype(np.float32)}
        return {"2-D": vector.reshape(2, 2), "Dict": parts, "Tuple": tuple(parts.values())}.get(self._form, vector)


# ---------------------------------------------------------------------- loading


def test_an_id_is_taken_where_environments_are(tmp_path: Path) -> None:
    agent = pendulum_agent()
    agent.save(tmp_path / "agent")
    for env in ("Pendulum-v1", gym.make("Pendulum-v1")):
        loaded = DiffusionAgent.load(tmp_path / "agent", env=env)
        assert loaded.env is not None and loaded.env.observation_space.shape == (3,)
    agent.set_env("Pendulum-v1")
    assert isinstance(agent.env, gym.Env) and agent.env.spec is not None and agent.env.spec.id == "Pendulum-v1"


@pytest.mark.parametrize(
    ("env", "noted"),
    [
        (lambda: "Pendulum-v1", {"environment": "Pendulum-v1"}),
        (lambda: gym.make("Pendulum-v1", g=1.0), {}),  # under this id another environment would be made
        (lambda: DummyVecEnv([lambda: gym.make("Pendulum-v1")]), {}),
    ],
)
def test_the_card_tells_the_environment_where_an_id_makes_it_again(tmp_path: Path, env: Any, noted: dict) -> None:
    agent = pendulum_agent(env())
    agent.save(tmp_path / "agent", card={"author": "me"})
    assert zoo.card(tmp_path / "agent.zip") == {**noted, "author": "me"}
    agent.save(tmp_path / "agent", card={"environment": "Told-v0"})
    assert zoo.card(tmp_path / "agent.zip") == {"environment": "Told-v0"}
    planner = GuidedPlanner(agent, RewardExtractor(agent, agent, heads=("window",), window_kwargs=NARROW).reward)
    planner.save(tmp_path / "planner")
    assert zoo.card(tmp_path / "planner.zip") == noted
    loaded = DiffusionAgent.load(tmp_path / "agent")
    loaded.save(tmp_path / "again")  # without an environment
    assert zoo.card(tmp_path / "again.zip") == {}


@pytest.mark.parametrize(
    ("env", "fault"),
    [
        ("MountainCarContinuous-v0", "agent.zip: the agent was made for the observation space"),
        ("CartPole-v1", "agent.zip: the agent was made for the observation space"),
        ("Nowhere-v0", "env 'Nowhere-v0' cannot be made"),
        (3, "env is a int, wanted a gymnasium.Env"),
        (gym.make_vec("Pendulum-v1", 2), "env is a SyncVectorEnv, wanted"),
    ],
)
def test_an_environment_at_fault_does_not_make_the_archive_invalid(tmp_path: Path, env: Any, fault: str) -> None:
    agent = pendulum_agent()
    agent.save(tmp_path / "agent")
    with pytest.raises(ValueError, match=fault) as told:
        DiffusionAgent.load(tmp_path / "agent", env=env)
    assert "not a valid" not in str(told.value)


def test_a_keyword_that_load_does_not_take_is_named(tmp_path: Path) -> None:
    agent = make_agent()
    agent.save(tmp_path / "agent")
    with pytest.raises(
        TypeError, match=r"of DiffusionAgent takes no 'seed', wanted some of \['env', 'device', 'policy'\]"
    ):
        DiffusionAgent.load(tmp_path / "agent", seed=3)
    for cls in (RewardExtractor, DiscriminatorReward):
        learner: Any = cls(agent, agent, window_kwargs=NARROW)
        learner.save(tmp_path / "learner")
        with pytest.raises(TypeError, match=r"takes no 'seed', wanted some of .*'base', 'expert'"):
            cls.load(tmp_path / "learner", base=agent, expert=agent, seed=3)
        with pytest.raises(ValueError, match=r"learner\.zip: expert is a str, wanted a ScoreModel") as told:
            cls.load(tmp_path / "learner", base=agent, expert="agent.zip")
        assert "not a valid" not in str(told.value)
        with pytest.raises(ValueError, match="base is a PosixPath, wanted a ScoreModel"):
            cls(tmp_path, agent)


# ---------------------------------------------------------------------- units


@pytest.mark.parametrize(
    "normalised",
    [
        lambda: VecNormalize(DummyVecEnv([lambda: gym.make("Pendulum-v1")])),
        lambda: DummyVecEnv([lambda: gym.wrappers.NormalizeObservation(gym.make("Pendulum-v1"))]),
        lambda: gym.wrappers.TimeLimit(gym.wrappers.NormalizeObservation(gym.make("Pendulum-v1")), 10),
    ],
)
def test_an_environment_that_normalises_is_refused(tmp_path: Path, normalised: Any) -> None:
    refused = pytest.raises(ValueError, match=r"normalises observations by itself, and env is wrapped in .*Norm")
    with refused:
        pendulum_agent(normalised())
    agent = pendulum_agent()
    with refused:
        agent.set_env(normalised())
    agent.save(tmp_path / "agent")
    with refused:
        DiffusionAgent.load(tmp_path / "agent", env=normalised())
    rewards_alone = VecNormalize(DummyVecEnv([lambda: gym.make("Pendulum-v1")]), norm_obs=False)
    assert pendulum_agent(rewards_alone).get_env() is rewards_alone


# ---------------------------------------------------------------------- spaces


@pytest.mark.parametrize("form", ["2-D", "Dict", "Tuple", "action"])
def test_boxes_of_every_form_are_made_flat(form: str, tmp_path: Path) -> None:
    agent = make_agent(env=Reshaped(form))
    assert isinstance(agent.env, FlatSpaces)
    assert agent.observation_space.shape == (4,) and agent.action_space.shape == (2,)
    wanted = evaluate(make_agent(), Drift, 2).returns
    np.testing.assert_allclose(evaluate(agent, lambda: Reshaped(form), 2).returns, wanted, atol=1e-4)
    venv = agent.get_env()
    assert venv is not None
    np.testing.assert_allclose(evaluate(agent, venv, 1).returns, wanted[:1], atol=1e-4)
    data = collect(agent, DummyVecEnv([lambda: FlatSpaces(Reshaped(form))]), 20)
    agent.learn(data, 1).save(tmp_path / "agent")
    assert DiffusionAgent.load(tmp_path / "agent", env=Reshaped(form)).observation_space.shape == (4,)


@pytest.mark.parametrize(("form", "advice"), [("Discrete", "one-hot"), ("image", "images are not supported, encode")])
def test_other_spaces_are_refused_with_what_would_help(form: str, advice: str) -> None:
    with pytest.raises(ValueError, match=f"the observation space is .*{advice}"):
        make_agent(env=Reshaped(form))
    with pytest.raises(ValueError, match="the agent was made for the observation space"):
        make_agent().set_env(Reshaped(form))


def test_a_vectorised_environment_is_to_be_flattened_inside() -> None:
    with pytest.raises(ValueError, match=r"wrap the environment in .*FlatSpaces"):
        make_agent(env=DummyVecEnv([lambda: Reshaped("Dict")]))
    assert make_agent(env=DummyVecEnv([lambda: FlatSpaces(Reshaped("Dict"))])).observation_space.shape == (4,)


@pytest.mark.parametrize("form", ["Dict", "Tuple"])
def test_predict_says_what_to_do_with_other_observations(form: str) -> None:
    observation, _ = Reshaped(form).reset(seed=0)
    with pytest.raises(ValueError, match=r"observation is a (dict|tuple), wanted a vector .*FlatSpaces"):
        make_agent().predict(observation)
    with pytest.raises(ValueError, match=r"shape \(3, 2, 2\), wanted .*FlatSpaces"):
        make_agent().predict(np.zeros((3, 2, 2)))
