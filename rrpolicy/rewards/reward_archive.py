"""Reading rewards of any kind from archives: one, a sum, or an ensemble."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from rrpolicy.common.archive import read_archive
from rrpolicy.common.device import resolve
from rrpolicy.common.spaces import Env
from rrpolicy.common.torch_mode import usual_torch
from rrpolicy.rewards.algebra import KIND, CombinedReward
from rrpolicy.rewards.ensemble import Ensemble
from rrpolicy.rewards.relative_reward import RelativeReward

AnyReward = RelativeReward | CombinedReward | Ensemble


@usual_torch()
def load_reward(path: str | Path, env: Env | str | None = None, device: torch.device | str = "auto") -> AnyReward:
    """
    Read a `RelativeReward`, a `CombinedReward` or an `Ensemble`, whichever an archive holds.

    :param path: file, with or without ``.zip``
    :param env: an environment or its id, whose spaces must be those that the reward was made for; it is not kept
    :param device: of the reward, see `common.device.resolve`
    :raises FileNotFoundError: when there is no such file
    :raises ValueError: when the archive is damaged, foreign, unsafe or of another kind, naming file and fault, and for
        another environment, naming both spaces
    """
    archive = read_archive(path, (RelativeReward.kind, KIND))
    if archive.kind == RelativeReward.kind:
        return RelativeReward.load(path, env, device)
    place = resolve(device)
    with archive.rebuilding():
        config: dict[str, Any] = archive.config
        rewards = [
            RelativeReward.from_archive(one, archive.tensors, archive.tensors[f"weights-{i}"])
            for i, one in enumerate(config["rewards"])
        ]
        members = [
            CombinedReward([(factor, rewards[i]) for factor, i in zip(terms["factors"], terms["rewards"], strict=True)])
            for terms in config["members"]
        ]
        plain: list[Any] = [member.parts[0] if member.weights == (1.0,) else member for member in members]
        loaded: Any = members[0]
        if config["form"] == "ensemble":
            loaded = Ensemble(plain, config["score"], config["n_deviations"], config["max_uncertainty"])
        if env is not None:
            loaded.check_environment(env)
    return loaded.to(place)
