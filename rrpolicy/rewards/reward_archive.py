"""Reading rewards of any kind from archives: one, with a posterior or without, a sum, or an ensemble."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rrpolicy.common.archive import read_archive
from rrpolicy.common.device import resolve
from rrpolicy.common.spaces import Env
from rrpolicy.common.torch_mode import usual_torch
from rrpolicy.rewards.algebra import KIND, CombinedReward
from rrpolicy.rewards.ensemble import Ensemble
from rrpolicy.rewards.laplace import FORM, POSTERIOR, LaplaceReward
from rrpolicy.rewards.relative_reward import RelativeReward

AnyReward = RelativeReward | CombinedReward | Ensemble | LaplaceReward


@usual_torch()
def load_reward(path: str | Path, env: Env | str | None = None, device: torch.device | str = "auto") -> AnyReward:
    """
    Read a `RelativeReward`, a `CombinedReward`, an `Ensemble` or a `LaplaceReward`, whichever an archive holds.

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
        loaded = restored_terms(archive.config, archive.tensors)
        if env is not None:
            loaded.check_environment(env)
    return loaded.to(place)


def restored_terms(
    config: Mapping[str, Any], tensors: Mapping[str, Mapping[str, Tensor]], network: type[nn.Module] | None = None
) -> CombinedReward | Ensemble | LaplaceReward:
    """
    A sum, an ensemble or a posterior as it stands in an archive, ready to score.

    :param config: what ``archived`` returned first
    :param tensors: what it returned second, with the group ``"normalizer"`` where there is one
    :param network: class of the window heads' networks, where those are not the library's
    :raises ValueError: for weights that are not those of the configuration
    """
    rewards = [
        RelativeReward.from_archive(one, tensors, tensors[f"weights-{i}"], network)
        for i, one in enumerate(config["rewards"])
    ]
    if config["form"] == FORM:
        return LaplaceReward(rewards[0], tensors[POSTERIOR]["covariance"], config["max_uncertainty"])
    members = [
        CombinedReward([(factor, rewards[i]) for factor, i in zip(terms["factors"], terms["rewards"], strict=True)])
        for terms in config["members"]
    ]
    if config["form"] == "sum":
        return members[0]
    plain: list[Any] = [member.parts[0] if member.weights == (1.0,) else member for member in members]
    return Ensemble(plain, config["score"], config["n_deviations"], config["max_uncertainty"])
