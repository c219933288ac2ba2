"""What makes an agent and what is left of it in a file: options, spaces, and the archive with all its refusals.

A loaded agent acts without dataset or environment; whatever does not fit is one `ValueError` that names the file.
"""

import zipfile
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from helpers.agents import DATASET, KINDS, Drift, agent_of_kind, make_agent
from helpers.forged import forge
from safetensors.torch import load_file, save
from stable_baselines3.common.vec_env import DummyVecEnv

from rrpolicy import DiffusionAgent
from rrpolicy.common.archive import read_archive
from rrpolicy.envs.controller import PDController

OBSERVATIONS = DATASET.observations[::17][:6]


# ---------------------------------------------------------------------- options and spaces


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"n_action_steps": 9}, r"n_action_steps is 9, it must lie in 1\.\.8"),
        ({"n_action_steps": 8, "controller": PDController(velocity_columns=(2, 3))}, r"is 8, it must lie in 1\.\.7"),
        ({"n_sampling_steps": 11}, r"n_sampling_steps is 11, it must lie in 1\.\.10"),
        ({"warm_start": 10}, r"warm_start is 10, it must be None or lie in 0\.\.9"),
        ({"sampler": "euler"}, "sampler is 'euler'"),
        ({"policy_kwargs": {"depth": 3}}, "policy_kwargs is {'depth': 3}.*depth"),
        ({"observation_columns": (0, 7)}, "observation_columns"),
        ({"horizon": 0}, "horizon=0, wanted an integer of at least 1"),
    ],
)
def test_wrong_options_are_refused(kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_agent(**kwargs)


def test_unknown_policies_and_spaces_are_refused() -> None:
    with pytest.raises(ValueError, match="policy is 'CnnPolicy', it must be one of"):
        DiffusionAgent("CnnPolicy", Drift())
    env = Drift()
    env.action_space = gym.spaces.Discrete(3)  # type: ignore[assignment]
    with pytest.raises(ValueError, match=r"the action space is Discrete\(3\), it must be a Box"):
        DiffusionAgent("MlpPolicy", env)


def test_environments_can_be_made_from_ids_and_swapped() -> None:
    agent = DiffusionAgent("MlpPolicy", "Pendulum-v1", horizon=4, policy_kwargs={"width": 32})
    assert agent.layout.observation_dim == 3 and agent.get_env().envs[0] is agent.env
    with pytest.raises(ValueError, match="the agent was made for the observation space"):
        agent.set_env(Drift())
    discrete = Drift()
    discrete.action_space = gym.spaces.MultiBinary(2)  # type: ignore[assignment]
    with pytest.raises(ValueError, match="the agent was made for the action space"):
        make_agent().set_env(discrete)
    env = DummyVecEnv([Drift])
    other = make_agent()
    other.set_env(env)
    assert other.get_env() is env


# ---------------------------------------------------------------------- contract 7: the archive


@pytest.mark.parametrize("name", KINDS)
def test_a_loaded_agent_acts_alike_without_dataset_or_environment(name: str, tmp_path: Path) -> None:
    agent = agent_of_kind(name)
    agent.save(tmp_path / "agent")
    loaded = DiffusionAgent.load(tmp_path / "agent")
    assert loaded.env is None and loaded.fingerprint() == agent.fingerprint() and loaded.planning == agent.planning
    np.testing.assert_array_equal(
        loaded.predict(OBSERVATIONS, deterministic=True)[0], agent.predict(OBSERVATIONS, deterministic=True)[0]
    )
    with zipfile.ZipFile(tmp_path / "agent.zip") as archive:
        assert all(name.endswith((".json", ".safetensors")) for name in archive.namelist())


def test_a_foreign_environment_is_refused(tmp_path: Path) -> None:
    make_agent().save(tmp_path / "agent")
    assert DiffusionAgent.load(tmp_path / "agent", env=Drift()).env is not None
    with pytest.raises(ValueError, match=r"agent\.zip: the agent was made for the observation space .* has Box"):
        DiffusionAgent.load(tmp_path / "agent", env=gym.make("Pendulum-v1"))


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (lambda config, tensors: tensors["averaged"].pop("network.leave.weight"), "not a valid agent archive: .*leave"),
        (lambda config, tensors: tensors["averaged"].update(extra=torch.zeros(1)), "not a valid agent .*extra"),
        (
            lambda config, tensors: tensors["averaged"].update({"network.leave.bias": torch.zeros(2)}),
            "not a valid agent archive: .*leave.bias",
        ),
        (lambda config, tensors: tensors.pop("normalizer"), "not a valid agent archive: .*normalizer"),
        (lambda config, tensors: config.pop("layout"), "not a valid agent archive: .*layout"),
        (lambda config, tensors: config["layout"].update(horizon=-1), "horizon: .* greater than or equal to 1, got -1"),
        (lambda config, tensors: config["planning"].update(turbo=True), "turbo"),
        (lambda config, tensors: config["policy_kwargs"].update(width="wide"), "agent.zip"),
        (lambda config, tensors: config.update(policy=["MlpPolicy"]), "agent.zip"),
        (lambda config, tensors: config["observation_space"].update(low=[0.0]), "agent.zip"),
        (lambda config, tensors: config.update(training=None), "agent.zip"),
        (lambda config, tensors: config.update(num_timesteps=None), "agent.zip"),
    ],
)
def test_archives_that_do_not_fit_are_refused_naming_file_and_fault(change: Any, fault: str, tmp_path: Path) -> None:
    make_agent().save(tmp_path / "agent", resumable=False)
    archive = read_archive(tmp_path / "agent")
    change(archive.config, archive.tensors)
    forge(archive.path, archive.kind, archive.config, archive.tensors)
    with pytest.raises(ValueError, match=fault) as caught:
        DiffusionAgent.load(archive.path)
    assert str(archive.path) in str(caught.value)


def test_archives_of_another_kind_and_missing_ones_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nothing"):
        DiffusionAgent.load(tmp_path / "nothing")
    forge(tmp_path / "other.zip", "reward", {}, {})
    with pytest.raises(ValueError, match="reward"):
        DiffusionAgent.load(tmp_path / "other")


def test_nan_weights_are_refused(tmp_path: Path) -> None:
    make_agent().save(tmp_path / "agent", resumable=False)
    with zipfile.ZipFile(tmp_path / "agent.zip") as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    (tmp_path / "w.safetensors").write_bytes(members["averaged.safetensors"])
    weights = load_file(tmp_path / "w.safetensors")
    weights["network.leave.bias"][0] = float("nan")
    members["averaged.safetensors"] = save(weights)
    with zipfile.ZipFile(tmp_path / "agent.zip", "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    with pytest.raises(ValueError, match=r"agent\.zip: .*averaged\.safetensors"):
        DiffusionAgent.load(tmp_path / "agent")
