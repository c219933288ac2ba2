"""Agents in the zip files of Stable-Baselines3 and sb3-contrib, used without unpickling anything.
Such a file runs code when it is doctored and loaded the usual way. Here only weights are taken from it
(`common.torch_files`), into a policy that is built from our own description and the environment's own spaces."""

from __future__ import annotations

import json
import os
import re
import warnings
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from gymnasium import spaces
from stable_baselines3.common.policies import BasePolicy
from torch import nn

from rrpolicy.common import hub
from rrpolicy.common.device import resolve
from rrpolicy.common.messages import RrpolicyWarning, at, printable
from rrpolicy.common.schema import check_containers
from rrpolicy.common.torch_files import read_weights
from rrpolicy.common.zips import member_names, read_members
from rrpolicy.rl.networks import ACTIVATIONS, NETWORKS, Weights, actor_weights
from rrpolicy.rl.policies import Sb3Agent
from rrpolicy.rl.vecnormalize import ObservationStatistics, read_statistics

MAX_MEMBER_BYTES = 2**28
MAX_MEMBERS = 64
STATISTICS_FILES = ("vecnormalize.pkl", "vec_normalize.pkl")
_WEIGHTS, _DATA = "policy.pth", "data"
_HUB_ID = re.compile(r"(?:hub:)?([\w.-]+/((\w+)-[A-Z][\w-]*-v\d+))")
_ENV_ID = re.compile(r"([A-Z][A-Za-z0-9]*)-v\d+")
ALGORITHMS: Mapping[str, str] = {  # and the networks of their policies
    "sac": "squashed-gaussian",
    "tqc": "squashed-gaussian",  # differs from SAC in its critics alone
    "td3": "deterministic",
    "ddpg": "deterministic",
    "ppo": "actor-critic",
    "a2c": "actor-critic",
    "trpo": "actor-critic",
    "ars": "search",
}
_ON_POLICY = ("ppo", "a2c", "trpo", "ars")


def is_sb3_agent(source: str | os.PathLike[str]) -> bool:
    """Whether a file is one of Stable-Baselines3's, or a name one of its hub repositories (``sb3/tqc-Hopper-v3``)."""
    path, found = Path(source), _HUB_ID.fullmatch(os.fspath(source))
    try:
        if path.is_file():
            with open(path, "rb") as file:
                return _WEIGHTS in member_names(file, MAX_MEMBERS)
        return not path.exists() and found is not None and found[3] in ALGORITHMS
    except (OSError, ValueError):  # a name that no file can have, a file that cannot be read
        return False


def load_sb3_agent(
    source: str | os.PathLike[str],
    env_id: str,
    observation_space: spaces.Space,
    action_space: spaces.Space,
    algorithm: str | None = None,
    device: torch.device | str = "auto",
) -> Sb3Agent:
    """
    Read an agent of SAC, TQC, TD3, DDPG, PPO, A2C, TRPO or ARS with plain layers; sb3-contrib is not needed.

    :param source: a zip file; or a hub repository, ``"sb3/tqc-Hopper-v3"``, with or without ``hub:`` in front
    :param env_id: where it shall act; another version than it was trained in will do, another robot will not
    :param observation_space: a flat Box, the environment's
    :param action_space: a flat Box, the environment's
    :param algorithm: which trained it; None: read from the names of file and folders
    :param device: of the policy's weights
    :return: the agent, with the statistics of its observations when a ``vecnormalize.pkl`` lies beside it
    :raises FileNotFoundError: when there is no such file
    :raises ValueError: naming file and fault: a download that failed, an unknown algorithm, another robot, missing
        members, weights that do not fit, anything in ``policy.pth`` but weights, missing statistics
    """
    place, path = resolve(device), _find(source)
    if not (isinstance(observation_space, spaces.Box) and isinstance(action_space, spaces.Box)):
        raise ValueError(f"{path}: wanted an environment with flat Box spaces, {env_id} has {observation_space}")
    chosen = (algorithm or _guess(path)).lower()
    if chosen not in ALGORITHMS:
        raise ValueError(f"{path}: algorithm is {chosen!r}, wanted one of {', '.join(ALGORITHMS)}")
    robots = [match[1] for name in (path.stem, path.parent.name) if (match := _ENV_ID.search(name))]
    if robots and robots[0] != env_id.split("-")[0]:
        raise ValueError(f"{path}: by its name an agent of {robots[0]}, wanted one of {env_id}")
    data, weights = _read(path)
    if data.get("use_sde") is True:
        raise ValueError(f"{path}: was trained with state-dependent exploration (use_sde), wanted an agent without")
    arguments = data.get("policy_kwargs")
    if chosen == "ars" and isinstance(arguments, dict) and {"squash_output", "with_bias"} & set(arguments):
        raise ValueError(f"{path}: was trained with other layers than its algorithm's own, which cannot be told apart")
    activation = _activation(path, data)
    try:
        own = weights if chosen in _ON_POLICY else actor_weights(weights)
        policy = NETWORKS[ALGORITHMS[chosen]](observation_space, action_space, own, activation)
    except RuntimeError as error:
        raise ValueError(at(path, f"{_WEIGHTS}: {error}: not an agent of {chosen}")) from error
    _fill(path, chosen, policy, own)
    policy.to(place)
    return Sb3Agent(policy, chosen, _statistics(path, os.fspath(source), data, chosen, observation_space))


# ---------------------------------------------------------------------- the file


def _find(source: str | os.PathLike[str]) -> Path:
    path, text = Path(source), os.fspath(source)
    found = _HUB_ID.fullmatch(text)
    if not path.exists() and found is not None:
        return hub.download(f"{hub.PREFIX}{found[1]}/{found[2]}.zip")
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file, and no hub repository such as sb3/tqc-Hopper-v3")
    return path


def _guess(path: Path) -> str:
    """The algorithm in the name of the file, or of a folder around it, the nearest first."""
    for name in (path.stem, *(folder.name for folder in path.resolve().parents)):
        for word in re.split(r"[^a-z0-9]+", name.lower()):
            if word in ALGORITHMS:
                return word
    raise ValueError(f"{path}: the name does not tell the algorithm, wanted one of {', '.join(ALGORITHMS)}")


def _read(path: Path) -> tuple[dict[str, Any], Weights]:
    """The plain JSON values and the weights; nothing else in the file is looked at."""
    try:
        with open(path, "rb") as file:
            members = read_members(file, MAX_MEMBERS, lambda name: name in (_DATA, _WEIGHTS), _too_large)
        content, packed = members[_DATA], members[_WEIGHTS]
        text = content.decode()
        check_containers(text)
        data = json.loads(text)  # not strictly: it may hold NaN
    except KeyError as error:
        raise ValueError(at(path, f"not a file of Stable-Baselines3, it has no {error.args[0]}")) from error
    except (ValueError, RecursionError) as error:
        raise ValueError(at(path, f"not a file of Stable-Baselines3 that can be read: {error}")) from error
    try:
        weights = read_weights(packed)
    except ValueError as error:
        raise ValueError(at(path, f"{_WEIGHTS} is refused: {error}")) from error
    if not isinstance(data, dict):
        raise ValueError(at(path, f"{_DATA} is a {type(data).__name__}, wanted a JSON object"))
    return data, weights


def _too_large(infos: Sequence[zipfile.ZipInfo]) -> str | None:
    large = [info.filename for info in infos if info.file_size > MAX_MEMBER_BYTES]
    return f"{printable(large[0])} is too large, at most {MAX_MEMBER_BYTES} bytes are read" if large else None


def _activation(path: Path, data: Mapping[str, Any]) -> type[nn.Module] | None:
    """The activation that ``data`` names in plain text, None where it leaves the algorithm's own."""
    arguments = data.get("policy_kwargs")
    text = arguments.get("activation_fn") if isinstance(arguments, dict) else None
    if not isinstance(text, str):
        return None
    name = text.rstrip("'>").rpartition(".")[2]
    if name not in ACTIVATIONS:
        raise ValueError(f"{path}: activation_fn is {printable(text)!r}, wanted one of {', '.join(ACTIVATIONS)}")
    return ACTIVATIONS[name]


def _fill(path: Path, algorithm: str, policy: BasePolicy, weights: Weights) -> None:
    """Give the policy its weights, which must be exactly those that it has."""
    wanted = policy.state_dict()
    for name in sorted(set(wanted) | set(weights)):
        shapes = [tuple(part[name].shape) if name in part else None for part in (weights, wanted)]
        if shapes[0] != shapes[1]:
            raise ValueError(
                f"{path}: {_WEIGHTS} has {printable(name)} of shape {shapes[0]}, wanted {shapes[1]}: "
                f"not an agent of {algorithm} for observations {policy.observation_space.shape} and actions "
                f"{policy.action_space.shape}"
            )
        if not bool(torch.isfinite(weights[name].to(wanted[name].dtype)).all()):
            raise ValueError(f"{path}: {_WEIGHTS} has NaN or infinite numbers in {printable(name)}, wanted finite ones")
    policy.load_state_dict(dict(weights))
    policy.set_training_mode(False)


def _statistics(
    path: Path, source: str, data: Mapping[str, Any], algorithm: str, space: spaces.Box
) -> ObservationStatistics | None:
    beside = [folder / name for folder in (path.parent, path.with_suffix("")) for name in STATISTICS_FILES]
    found = next((place for place in beside if place.is_file()), None)
    # on-policy algorithms keep the plain observation only beside a normalised one
    needed = algorithm in _ON_POLICY and data.get("_last_original_obs") is not None
    if found is None and needed and (match := _HUB_ID.fullmatch(source)) and not Path(source).exists():
        found = hub.download(f"{hub.PREFIX}{match[1]}/{STATISTICS_FILES[1]}")
    if found is None:
        if needed:
            raise ValueError(f"{path}: was trained on normalised observations, wanted {STATISTICS_FILES[0]} beside it")
        if algorithm not in _ON_POLICY:  # whose files do not hold it
            what = f"no {STATISTICS_FILES[0]} lies beside it, so it acts on plain observations"
            warnings.warn(f"{path}: {what}", category=RrpolicyWarning, stacklevel=3)
        return None
    statistics = read_statistics(found)
    if statistics is not None and statistics.mean.shape != space.shape:
        raise ValueError(f"{found}: has statistics of shape {statistics.mean.shape}, wanted {space.shape}")
    return statistics
