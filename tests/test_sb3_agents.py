"""Agents of Stable-Baselines3 act as they do there, and nothing in their files is ever run."""

import base64
import io
import json
import pickle  # to write what must not be read
import sys
import tracemalloc
import zipfile
from copy import deepcopy
from itertools import pairwise
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from helpers.stand_in_hub import stand_in
from stable_baselines3 import A2C, DDPG, PPO, SAC, TD3
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize
from torch import nn

from rrpolicy.rl.policies import Sb3Agent
from rrpolicy.rl.sb3_files import is_sb3_agent, load_sb3_agent
from rrpolicy.rl.vecnormalize import read_statistics

ENV_ID = "Pendulum-v1"  # observations (3,), actions (1,) in [-2, 2]
OBSERVATIONS = np.random.default_rng(0).uniform(-1, 1, (5, 3)).astype(np.float32)
SMALL = {"policy_kwargs": {"net_arch": [8, 4]}, "seed": 1}
OFF = {**SMALL, "buffer_size": 1}


def made(algorithm: Any, folder: Path, name: str, env: Any = ENV_ID, **arguments: Any) -> tuple[Any, Path]:
    model = algorithm("MlpPolicy", env, device="cpu", **deepcopy(arguments))  # SB3 writes into policy_kwargs
    model.save(folder / name)
    return model, folder / name


def load(path: Path | str, env_id: str = ENV_ID, algorithm: str | None = None) -> Sb3Agent:
    env = gym.make(ENV_ID)
    return load_sb3_agent(path, env_id, env.observation_space, env.action_space, algorithm)


def changed(path: Path, target: Path, **members: bytes | None) -> Path:
    """A copy of a file with other members; None leaves one out."""
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(target, "w") as new:
        for name in old.namelist():
            content = members.get(name.replace(".", "_"), old.read(name))
            if content is not None:
                new.writestr(name, content)
    return target


def packed(weights: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(weights, buffer)
    return buffer.getvalue()


def bomb(victim: Path) -> bytes:
    """A pickle that makes a file when it is run."""
    return f"cos\nsystem\n(S'touch {victim}'\ntR.".encode()


# ---------------------------------------------------------------------- acting as there


@pytest.mark.parametrize(
    ("algorithm", "name", "arguments"),
    [
        (SAC, "sac-Pendulum-v1.zip", OFF),
        (SAC, "tqc-Pendulum-v0.zip", OFF),  # TQC's actor is SAC's
        (TD3, "td3.zip", OFF),
        (DDPG, "ddpg.zip", OFF),
        (PPO, "ppo.zip", SMALL),
        (PPO, "trpo.zip", {"policy_kwargs": {"activation_fn": nn.ReLU, "net_arch": {"pi": [8], "vf": [4, 4]}}}),
        (A2C, "a2c.zip", {"seed": 2}),
    ],
)
def test_an_agent_acts_as_in_stable_baselines(tmp_path: Path, algorithm: Any, name: str, arguments: Any) -> None:
    model, path = made(algorithm, tmp_path, name, **arguments)
    agent = load(path)
    assert is_sb3_agent(path) and agent.algorithm == name.split(".")[0].split("-")[0]
    actions, state = agent.predict(OBSERVATIONS, deterministic=True)
    assert state is None and np.array_equal(actions, model.predict(OBSERVATIONS, deterministic=True)[0])
    assert agent.predict(OBSERVATIONS[0], deterministic=True)[0] == pytest.approx(actions[0], abs=1e-6)
    torch.manual_seed(0)
    drawn = agent.predict(OBSERVATIONS)[0]
    torch.manual_seed(0)
    assert np.array_equal(drawn, model.predict(OBSERVATIONS)[0])


def test_a_linear_agent_is_a_matrix_and_clips(tmp_path: Path) -> None:
    _, path = made(SAC, tmp_path, "x.zip", **OFF)
    matrix = torch.tensor([[3.0, 0.0, 1.0]])
    path = changed(path, tmp_path / "ars.zip", policy_pth=packed({"action_net.weight": matrix}), data=b"{}")
    wanted = np.clip(OBSERVATIONS @ matrix.numpy().T, -2, 2)
    assert load(path).predict(OBSERVATIONS)[0] == pytest.approx(wanted, abs=1e-6)


def searched(widths: list[int], bias: bool = True) -> dict[str, torch.Tensor]:
    """Weights in the layout of sb3-contrib's ARS since 1.6: layers and activations in turn."""
    generator = torch.Generator().manual_seed(0)
    weights = {}
    for i, (n_in, n_out) in enumerate(pairwise([3, *widths, 1])):
        weights[f"action_net.{2 * i}.weight"] = torch.randn(n_out, n_in, generator=generator)
        if bias:
            weights[f"action_net.{2 * i}.bias"] = torch.randn(n_out, generator=generator)
    return weights


def test_an_agent_of_random_search_may_have_layers(tmp_path: Path) -> None:
    _, path = made(SAC, tmp_path, "x.zip", **OFF)
    weights = searched([8, 4])
    path = changed(path, tmp_path / "ars.zip", policy_pth=packed(weights), data=b"{}")
    h = torch.tensor(OBSERVATIONS)
    for i in (0, 2, 4):
        h = h @ weights[f"action_net.{i}.weight"].T + weights[f"action_net.{i}.bias"]
        h = h.relu() if i < 4 else 2 * h.tanh()  # scaled to the bounds of the action
    assert load(path).predict(OBSERVATIONS)[0] == pytest.approx(h.numpy(), abs=1e-5)
    linear = searched([], bias=False)
    path = changed(path, tmp_path / "ars-linear.zip", policy_pth=packed(linear), data=b"{}")
    wanted = np.clip(OBSERVATIONS @ linear["action_net.0.weight"].numpy().T, -2, 2)
    assert load(path).predict(OBSERVATIONS)[0] == pytest.approx(wanted, abs=1e-6)
    path = changed(path, tmp_path / "ars-other.zip", data=b'{"policy_kwargs": {"squash_output": false}}')
    with pytest.raises(ValueError, match="other layers than its algorithm's own"):
        load(path)


def test_an_agent_without_statistics_says_so(tmp_path: Path) -> None:
    _, path = made(SAC, tmp_path, "sac.zip", **OFF)
    with pytest.warns(UserWarning, match=r"sac\.zip: no vecnormalize\.pkl lies beside it, .* plain observations"):
        load(path)


def test_the_algorithm_is_named_by_file_folder_or_caller(tmp_path: Path) -> None:
    folder = tmp_path / "PPO" / "one"
    folder.mkdir(parents=True)
    _, path = made(PPO, folder, "model.zip", **SMALL)
    assert load(path).algorithm == "ppo" and load(path, algorithm="A2C").algorithm == "a2c"


# ---------------------------------------------------------------------- normalised observations


@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_statistics_are_those_of_vecnormalize(tmp_path: Path, protocol: int) -> None:
    venv = VecNormalize(DummyVecEnv([lambda: gym.make(ENV_ID)]), clip_obs=1.5, epsilon=1e-3)
    venv.reset()
    for _ in range(20):
        venv.step(np.ones((1, 1)))
    path = tmp_path / "vec_normalize.pkl"
    path.write_bytes(pickle.dumps(venv, protocol=protocol))
    if protocol == 2:  # spells bytes as calls
        with pytest.raises(ValueError, match="no statistics of a VecNormalize that can be read"):
            read_statistics(path)
        return
    statistics = read_statistics(path)
    assert statistics is not None
    assert statistics.normalize(OBSERVATIONS) == pytest.approx(venv.normalize_obs(OBSERVATIONS), abs=1e-6)
    venv.norm_obs = False
    venv.save(str(path))
    assert read_statistics(path) is None


def test_an_agent_gets_the_statistics_beside_its_file(tmp_path: Path) -> None:
    venv = VecNormalize(DummyVecEnv([lambda: gym.make(ENV_ID)]))
    model = PPO("MlpPolicy", venv, n_steps=8, batch_size=8, n_epochs=1, device="cpu").learn(8)
    model.save(tmp_path / "ppo-Pendulum-v1.zip")
    with pytest.raises(ValueError, match=r"trained on normalised observations, wanted vecnormalize\.pkl beside it"):
        load(tmp_path / "ppo-Pendulum-v1.zip")
    (tmp_path / "ppo-Pendulum-v1").mkdir()
    venv.save(str(tmp_path / "ppo-Pendulum-v1" / "vecnormalize.pkl"))
    actions, _ = load(tmp_path / "ppo-Pendulum-v1.zip").predict(OBSERVATIONS, deterministic=True)
    wanted, _ = model.predict(venv.normalize_obs(OBSERVATIONS), deterministic=True)
    assert actions == pytest.approx(wanted, abs=1e-5)


def test_statistics_that_cannot_be_right_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, victim = tmp_path / "vecnormalize.pkl", tmp_path / "victim"
    others = [pickle.dumps({"obs_rms": 1}), pickle.dumps([1.0, (2, {})])]
    for content in (b"", b"noise", b"\x80\x04N", bomb(victim), *others):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"vecnormalize\.pkl: no statistics"):
            read_statistics(path)
    assert not victim.exists()
    venv = VecNormalize(DummyVecEnv([lambda: gym.make(ENV_ID)]))
    for mean, words in (
        (np.zeros(4), "wanted finite ones of one shape"),
        (np.full(3, np.nan), "wanted finite"),
        (np.zeros(3, dtype=int), "an array of type 'i8'"),
        ("text", "no statistics"),
        (venv.ret_rms, "wanted a numpy array"),
    ):
        venv.obs_rms.mean = mean
        venv.save(str(path))
        with pytest.raises(ValueError, match=words):
            read_statistics(path)
    venv.obs_rms.mean, venv.obs_rms.var = np.zeros(4), np.ones(4)
    venv.save(str(path))
    made(PPO, tmp_path, "ppo.zip", **SMALL)
    with pytest.raises(ValueError, match=r"has statistics of shape \(4,\), wanted \(3,\)"):
        load(tmp_path / "ppo.zip")
    monkeypatch.setattr("rrpolicy.rl.vecnormalize.MAX_BYTES", 10)
    with pytest.raises(ValueError, match="too large"):
        read_statistics(path)


# ---------------------------------------------------------------------- nothing is run, what does not fit is refused


def test_doctored_files_run_nothing(tmp_path: Path) -> None:
    model, path = made(SAC, tmp_path, "sac.zip", **OFF)
    victim = tmp_path / "victim"
    data = json.loads(zipfile.ZipFile(path).read("data"))
    for value in data.values():
        if isinstance(value, dict) and ":serialized:" in value:
            value[":serialized:"] = base64.b64encode(bomb(victim)).decode()
    agent = load(changed(path, tmp_path / "sac-data.zip", data=json.dumps(data).encode()))
    assert np.array_equal(*(one.predict(OBSERVATIONS, deterministic=True)[0] for one in (agent, model)))
    for content in (bomb(victim), packed({"weight": torch.nn.Linear(1, 1)})):
        with pytest.raises(ValueError, match=r"sac-bomb\.zip: policy\.pth is refused: "):
            load(changed(path, tmp_path / "sac-bomb.zip", policy_pth=content))
    assert not victim.exists()


def test_wide_layers_are_stored_before_they_are_made(tmp_path: Path) -> None:
    _, path = made(SAC, tmp_path, "sac.zip", **OFF)
    wide = {f"actor.latent_pi.{index}.weight": torch.zeros(12_000, 1) for index in (0, 2)}
    tracemalloc.start()
    with pytest.raises(ValueError, match=r"policy\.pth: the file has no layer of shape \(12000, 12000\)"):
        load(changed(path, tmp_path / "sac-wide.zip", policy_pth=packed(wide)))
    assert tracemalloc.get_traced_memory()[1] < 80e6
    tracemalloc.stop()


def test_numbers_that_are_infinite_in_single_precision_are_refused(tmp_path: Path) -> None:
    _, path = made(SAC, tmp_path, "sac.zip", **OFF)
    weights = torch.load(io.BytesIO(zipfile.ZipFile(path).read("policy.pth")), weights_only=True)
    weights["actor.mu.bias"] = torch.full((1,), 1e300, dtype=torch.float64)
    with pytest.raises(ValueError, match=r"NaN or infinite numbers in mu\.bias"):
        load(changed(path, tmp_path / "sac-double.zip", policy_pth=packed(weights)))


class Flagged:
    """Rebuilt as torch rebuilds a tensor, with a flag in place of its shape."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self.tensor = tensor

    def __reduce_ex__(self, protocol: Any) -> Any:
        function, (storage, offset, _, stride, *rest) = self.tensor.__reduce_ex__(protocol)
        return function, (storage, offset, True, stride, *rest)


def test_shapes_that_are_no_tuples_are_refused(tmp_path: Path) -> None:
    _, path = made(SAC, tmp_path, "sac.zip", **OFF)
    with pytest.raises(ValueError, match=r"sac-flag\.zip: policy\.pth is refused: weight has sizes"):
        load(changed(path, tmp_path / "sac-flag.zip", policy_pth=packed({"weight": Flagged(torch.ones(2))})))


def test_files_that_do_not_fit_are_one_clear_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, path = made(SAC, tmp_path, "sac-Pendulum-v1.zip", **OFF)
    weights = torch.load(io.BytesIO(zipfile.ZipFile(path).read("policy.pth")), weights_only=True)
    broken = {**weights, "actor.mu.bias": torch.tensor([float("nan")])}
    missing = {name: value for name, value in weights.items() if "log_std" not in name}
    data = {"policy_kwargs": {"activation_fn": "<class 'torch.nn.modules.activation.GELU'>"}}
    for members, words in (
        ({"policy_pth": None}, "not a file of Stable-Baselines3, .*policy.pth"),
        ({"data": None}, "not a file of Stable-Baselines3, .*data"),
        ({"data": b"{"}, "not a file of Stable-Baselines3 that can be read"),
        ({"data": b"[]"}, "data is a list, wanted a JSON object"),
        ({"policy_pth": packed([1.0])}, "refused: it holds a list, wanted named tensors"),
        ({"policy_pth": packed({"actor.mu.weight": torch.zeros(1, 1)})}, "not an agent of sac"),
        ({"policy_pth": packed({"actor.latent_pi.0.weight": torch.tensor(1.0)})}, "not an agent of sac"),
        ({"policy_pth": packed(missing)}, r"log_std.bias of shape None, wanted \(1,\): not an agent of sac"),
        ({"policy_pth": packed(broken)}, "NaN or infinite numbers in mu.bias"),
        ({"data": json.dumps(data).encode()}, "activation_fn is .*GELU"),
        ({"data": b'{"use_sde": true}'}, "state-dependent exploration"),
    ):
        with pytest.raises(ValueError, match=words):
            load(changed(path, tmp_path / "sac-changed.zip", **members))
    for arguments, words in (
        ({"env_id": "Hopper-v5"}, "by its name an agent of Pendulum, wanted one of Hopper-v5"),
        ({"algorithm": "dqn"}, "algorithm is 'dqn', wanted one of sac, tqc"),
        ({"algorithm": "ppo"}, "not an agent of ppo"),
        ({"algorithm": "td3"}, "not an agent of td3"),
    ):
        with pytest.raises(ValueError, match=words):
            load(path, **arguments)
    box, buttons = gym.spaces.Box(-1, 1, (4,)), gym.spaces.Discrete(2)
    with pytest.raises(ValueError, match=r"latent_pi.0.weight of shape \(8, 3\), wanted \(8, 4\)"):
        load_sb3_agent(path, ENV_ID, box, gym.spaces.Box(-1, 1, (1,)))
    with pytest.raises(ValueError, match="wanted an environment with flat Box spaces"):
        load_sb3_agent(path, ENV_ID, box, buttons)
    monkeypatch.setattr("rrpolicy.rl.sb3_files.MAX_MEMBER_BYTES", 10)
    with pytest.raises(ValueError, match="too large"):
        load(path)


def test_what_is_no_file_of_stable_baselines(tmp_path: Path) -> None:
    (tmp_path / "sac.zip").write_bytes(b"noise")
    assert not is_sb3_agent(tmp_path / "sac.zip") and not is_sb3_agent(tmp_path) and not is_sb3_agent("sb3/agents")
    with pytest.raises(ValueError, match="not a file of Stable-Baselines3 that can be read"):
        load(tmp_path / "sac.zip")
    (tmp_path / "model.zip").write_bytes(b"noise")
    with pytest.raises(FileNotFoundError, match="no such file, and no hub repository"):
        load(tmp_path / "gone.zip")


def test_a_name_that_does_not_tell_the_algorithm(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("rrpolicy.rl.sb3_files.Path.resolve", lambda self: Path("/model.zip"))
    (tmp_path / "model.zip").write_bytes(b"noise")
    with pytest.raises(ValueError, match="the name does not tell the algorithm"):
        load(tmp_path / "model.zip")


# ---------------------------------------------------------------------- the hub


def test_hub_repositories_are_downloaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, asked = tmp_path / "store", []
    store.mkdir()
    venv = VecNormalize(DummyVecEnv([lambda: gym.make(ENV_ID)]))
    PPO("MlpPolicy", venv, n_steps=8, batch_size=8, n_epochs=1).learn(8).save(store / "ppo-Pendulum-v1.zip")
    venv.save(str(tmp_path / "vec_normalize.pkl"))
    made(SAC, store, "tqc-Pendulum-v1.zip", **OFF)

    def download(repository: str, file: str) -> str:
        asked.append((repository, file))
        if file == "vec_normalize.pkl":  # arrives beside the agent only when it is asked for
            (store / file).write_bytes((tmp_path / file).read_bytes())
        return str(store / file)

    stand_in(monkeypatch, download)
    assert is_sb3_agent("sb3/tqc-Pendulum-v1") and not is_sb3_agent("somebody/base-Pendulum-v1")
    assert load("sb3/tqc-Pendulum-v1").statistics is None
    assert load("hub:sb3/ppo-Pendulum-v1").statistics is not None
    assert asked == [
        ("sb3/tqc-Pendulum-v1", "tqc-Pendulum-v1.zip"),
        ("sb3/ppo-Pendulum-v1", "ppo-Pendulum-v1.zip"),
        ("sb3/ppo-Pendulum-v1", "vec_normalize.pkl"),
    ]
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ValueError, match=r"rrpolicy\[hub\]"):
        load("sb3/tqc-Pendulum-v1")


@pytest.mark.parametrize("index", ["9" * 5000, "1" * 9, "\u0661", "-1"])
def test_names_of_layers_are_short_numbers(index: str, tmp_path: Path) -> None:
    weights = {f"actor.latent_pi.{index}.weight": torch.zeros(1, 1)}
    path = changed(made(SAC, tmp_path, "sac.zip", **OFF)[1], tmp_path / "sac-other.zip", policy_pth=packed(weights))
    with pytest.raises(ValueError, match=r"sac-other\.zip: policy\.pth ") as caught:
        load(path)
    assert len(str(caught.value)) <= 400 and str(caught.value).isprintable()


@pytest.mark.parametrize("text", ["x" * 10**6, "\x1b[31m.Evil"])
def test_other_activations_are_named_briefly(text: str, tmp_path: Path) -> None:
    data = json.dumps({"policy_kwargs": {"activation_fn": text}}).encode()
    path = changed(made(SAC, tmp_path, "sac.zip", **OFF)[1], tmp_path / "sac-other.zip", data=data)
    with pytest.raises(ValueError, match=r"activation_fn is .*, wanted one of") as caught:
        load(path)
    assert len(str(caught.value)) <= 400 and str(caught.value).isprintable()
