"""Writing ONNX files: the graphs of a planner or a reward, and beside them the description that they are used by."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stable_baselines3.common.policies import BasePolicy

from rrpolicy.agents.inverse_dynamics import LearnedController
from rrpolicy.common.arguments import flag
from rrpolicy.common.boxes import box_to_dict
from rrpolicy.common.files import atomic_write
from rrpolicy.common.version import __version__
from rrpolicy.data.normalizer import Normalizer
from rrpolicy.envs.controller import PDController
from rrpolicy.export.plans import plan_model
from rrpolicy.export.policy_graphs import policy_model
from rrpolicy.export.quantised import quantised
from rrpolicy.export.reward_graphs import reward_model
from rrpolicy.export.session import FORMAT, KEY, SUFFIX
from rrpolicy.rewards.relative_reward import RelativeReward

if TYPE_CHECKING:
    from onnx import ModelProto

NOISE = "torch's CPU generator (MT19937), seeded for each plan as rrpolicy.agents.memory says"


def export_onnx(
    source: Any,
    path: str | os.PathLike[str],
    card: Mapping[str, Any] | None = None,
    *,
    int8: bool = False,
    scale_input: bool = False,
) -> Path:
    """
    Write an agent, a planner or a reward as one ONNX file, which needs no torch.

    :param source: a `DiffusionAgent`, `GuidedPlanner` or any other `Planner`, to be read by `OnnxPolicy`; or a
        `RelativeReward`, to be read by `OnnxReward`; or an `Sb3Agent`, to be read by `OnnxActor`; on the CPU
    :param path: file; ``.onnx`` is added when missing
    :param card: facts about it, JSON values
    :param int8: store the weights of matrix products in 8 bits; the error stands in the description as ``int8_error``
    :param scale_input: of a `GuidedPlanner`: the scale is an input ``scale`` (rows,) of its graph, and an attribute of
        the `OnnxPolicy`; False: it is a constant
    :return: the path written
    :raises ValueError: without the extra ``fast``, or for something that cannot be exported, naming it
    """
    target = Path(path) if os.fspath(path).endswith(SUFFIX) else Path(f"{os.fspath(path)}{SUFFIX}")
    if flag("scale_input", scale_input) and not hasattr(source, "sampled"):
        raise ValueError(f"scale_input is True, and a {type(source).__name__} has no scale of guidance")
    if isinstance(source, RelativeReward):
        content = _content(reward_model(source), _about_reward(source), card)
    elif hasattr(source, "sampled"):
        content = planner_file(source, card, scale_input)
    elif isinstance(getattr(source, "policy", None), BasePolicy):
        content = _content(policy_model(source), _about_policy(source), card)
    else:
        wanted = "an agent, a planner, an Sb3Agent or a RelativeReward"
        raise ValueError(f"source is a {type(source).__name__}, wanted {wanted}")
    if flag("int8", int8):
        content = quantised(content)
    with atomic_write(target) as unfinished:
        unfinished.write_bytes(content)
    return target


def planner_file(planner: Any, card: Mapping[str, Any] | None = None, scale_input: bool = False) -> bytes:
    """The content of a planner's file, see :func:`export_onnx`."""
    about = {**_about_planner(planner), **({"scale_input": True} if scale_input else {})}
    return _content(plan_model(planner, scale_input), about, card)


def _content(model: ModelProto, about: Mapping[str, Any], card: Mapping[str, Any] | None) -> bytes:
    """A model with its description among the metadata, JSON of finite numbers."""
    whole = {**about, "format": FORMAT, "rrpolicy": __version__, "card": dict(card or {})}
    model.producer_name, model.producer_version = "rrpolicy", __version__
    entry = model.metadata_props.add()
    entry.key, entry.value = KEY, json.dumps(whole, allow_nan=False, sort_keys=True)
    content: bytes = model.SerializeToString()
    return content


def _about_planner(planner: Any) -> dict[str, Any]:
    options, controller = planner.planning, planner.controller
    named = isinstance(options.sampler, str)  # a function has only its name here; what is run is in the graph
    law = controller.to_dict() if isinstance(controller, PDController) else None
    return {
        "kind": "planner",
        "observation_space": box_to_dict(planner.observation_space),
        "action_space": box_to_dict(planner.action_space),
        "layout": planner.layout.to_dict(),
        "normalizer": _about_normalizer(planner.normalizer),
        "planning": {name: value for name, value in vars(options).items() if named or name != "sampler"},
        "sampler": options.sampler if named else getattr(options.sampler, "__name__", type(options.sampler).__name__),
        "controller": "network" if isinstance(controller, LearnedController) else law,
        "n_draws": planner.n_draws,
        "noise": NOISE,
        "seed": planner._acting_generator.initial_seed(),
        "process": planner.process.to_dict(),
        "scale": getattr(planner, "scale", None),
    }


def _about_reward(reward: RelativeReward) -> dict[str, Any]:
    return {
        "kind": "reward",
        "event_shape": list(reward.event_shape),
        "n_diffusion_steps": reward.process.n_diffusion_steps,
        "process": reward.process.to_dict(),
        "heads": list(reward.heads),
        "layout": None if reward.layout is None else reward.layout.to_dict(),
        "normalizer": None if reward.normalizer is None else _about_normalizer(reward.normalizer),
        "source": reward.source,
    }


def _about_policy(agent: Any) -> dict[str, Any]:
    return {
        "kind": "policy",
        "observation_space": box_to_dict(agent.observation_space),
        "action_space": box_to_dict(agent.action_space),
        "algorithm": agent.algorithm,
    }


def _about_normalizer(normalizer: Normalizer) -> dict[str, Any]:
    maps = {"observations": normalizer.observations, "actions": normalizer.actions}
    return {
        "mode": normalizer.mode,
        "fingerprint": normalizer.fingerprint(),
        **{name: {"offset": one.offset.tolist(), "scale": one.scale.tolist()} for name, one in maps.items()},
    }
