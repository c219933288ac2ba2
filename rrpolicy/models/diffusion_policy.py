"""Checkpoints of Diffusion Policy (Chi et al. 2023) as score models: LeRobot's folders, and weights of the original.

Configuration and weights are read as data, and none of their code is needed. An event is a chunk of actions and, as
pinned entries, the observations that it follows; for policies that see pictures `models.from_diffusion_policy` takes
the features of their encoder instead.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import safetensors
import safetensors.torch
import torch
from pydantic import ConfigDict, Field
from torch import Tensor

from rrpolicy.common.messages import at, printable
from rrpolicy.common.schema import Fields, checked, from_json, read_small
from rrpolicy.common.torch_files import read_weights
from rrpolicy.common.weights import check_weights
from rrpolicy.data.normalizer import Affine, Normalizer
from rrpolicy.diffusion.unet_encoder import import_diffusers
from rrpolicy.models.conditional_unet import ConditionalUnet, lerobot_names, sizes_of
from rrpolicy.models.diffusers import from_diffusion_policy
from rrpolicy.models.foreign import ForeignModel

Array = np.ndarray | Tensor
STATE, ENVIRONMENT, ACTION = "observation.state", "observation.environment_state", "action"
_OBSERVED = (STATE, ENVIRONMENT)  # in the order in which the network gets them
_BOUNDS = {"MIN_MAX": ("min", "max"), "QUANTILES": ("q01", "q99"), "QUANTILE10": ("q10", "q90")}
_MODES = {"MIN_MAX": "limits", "MEAN_STD": "gaussian", "IDENTITY": "limits"}  # others: quantiles
_ENCODERS = ("rgb_encoder.", "obs_encoder.")
_PICTURES = (
    "load the policy with its own code and give the features of its encoder as the condition: "
    "from_diffusion_policy(unet, noise_scheduler, horizon, action_dim, n_condition)"
)
_RESAVE = (
    "in the environment of its own code save what is data, "
    "torch.save({'state_dicts': {'ema_model': policy.state_dict()}}, file)"
)
_Count = Annotated[int, Field(ge=1, le=2**16)]
_Mode = Literal["MIN_MAX", "MEAN_STD", "IDENTITY", "QUANTILES", "QUANTILE10"]


class _Open(Fields):
    """Named fields are checked; LeRobot has more of them, and other ones in each version."""

    model_config = ConfigDict(strict=True, extra="ignore", frozen=True, allow_inf_nan=False)


class _Feature(_Open):
    type: Annotated[str, Field(max_length=40)]
    shape: Annotated[list[_Count], Field(max_length=4)]


class _Config(_Open):
    """What counts of ``config.json``."""

    type: Literal["diffusion"] = "diffusion"
    n_obs_steps: _Count
    horizon: _Count
    input_features: Annotated[dict[str, _Feature], Field(max_length=64)]
    output_features: Annotated[dict[str, _Feature], Field(max_length=64)]
    normalization_mapping: Annotated[dict[str, _Mode], Field(max_length=64)]
    down_dims: Annotated[list[_Count], Field(min_length=1, max_length=8)]
    kernel_size: Annotated[int, Field(ge=1, le=99)]
    n_groups: _Count
    diffusion_step_embed_dim: Annotated[int, Field(ge=2, le=2**16, multiple_of=2)]
    use_film_scale_modulation: bool
    noise_scheduler_type: Literal["DDPM", "DDIM"]
    num_train_timesteps: Annotated[int, Field(ge=2, le=10_000)]
    beta_schedule: Annotated[str, Field(max_length=40)]
    beta_start: float
    beta_end: float
    prediction_type: Literal["epsilon", "sample"]
    clip_sample: bool
    clip_sample_range: Annotated[float, Field(gt=0)] = 1.0


def load_lerobot(folder: str | Path, name: str = "") -> ForeignModel:
    """
    A score model of a Diffusion Policy that LeRobot saved, whose observations are numbers.

    Its ``module`` is called as LeRobot's network, ``unet(actions, timestep, global_cond=features)``, so that a steered
    one can be put in the place of ``policy.diffusion.unet``. Its `Normalizer` is that of the file, observations being
    state and environment state of one step; :func:`policy_events` makes events of data.

    :param folder: with ``config.json``, ``model.safetensors`` and, of newer versions, ``policy_preprocessor.json``
    :param name: part of the fingerprint
    :return: chunks (horizon, action_dim), and n_obs_steps steps of observations as condition
    :raises ValueError: naming the file, for one that is missing or holds something else, and for a policy that sees
        pictures, with the remedy
    """
    folder = Path(folder)
    config = checked(_Config, _json_of(folder / "config.json"), str(folder / "config.json"))
    file = folder / "model.safetensors"
    weights = _tensors_of(file)
    try:
        widths = _widths(config)
        statistics, modes = _statistics(folder, weights, config.normalization_mapping)
        types = {key: feature.type for key, feature in (config.input_features | config.output_features).items()}
        maps = {
            key: _affine(key, modes.get(types[key], "IDENTITY"), width, statistics) for key, width in widths.items()
        }
        mode = modes.get("ACTION", "IDENTITY")
        observations = Affine.concatenate([maps[key] for key in _OBSERVED if key in maps])
        normalizer = Normalizer(observations, maps[ACTION], _MODES.get(mode, "quantiles"))
        sizes: dict[str, Any] = {
            "action_dim": widths[ACTION],
            "n_condition": config.n_obs_steps * observations.width,
            "down_dims": tuple(config.down_dims),
            "kernel_size": config.kernel_size,
            "step_embed_dim": config.diffusion_step_embed_dim,
            "scales": config.use_film_scale_modulation,
        }
        own = {key.replace("._orig_mod", ""): value for key, value in weights.items()}
        unet = _built(sizes, config.n_groups, config.horizon, _under("diffusion.unet.", own))
        return _model(unet, sizes, _scheduler(config), config.horizon, normalizer, name)
    except (OSError, RuntimeError, ValueError) as error:
        raise ValueError(at(file, error)) from error


def load_diffusion_policy(
    path: str | Path, scheduler: Any, horizon: int, n_groups: int = 8, ema: bool = True, name: str = ""
) -> ForeignModel:
    """
    A score model of a checkpoint of the original Diffusion Policy with ``obs_as_global_cond``, read as data.

    Sizes of the network are those of the weights. Configurations in such files are code, which is never run, so
    what they say of scheduler and horizon is passed.

    :param path: ``.ckpt`` of a ``DiffusionUnetLowdimPolicy``
    :param scheduler: its ``noise_scheduler``, of diffusers
    :param horizon: rows of a chunk
    :param n_groups: of its U-Net
    :param ema: the averaged weights, with which it acts; False: the others
    :param name: part of the fingerprint
    :raises ValueError: naming the file, with the remedy where it holds code in place of weights, or sees pictures
    """
    file = Path(path)
    try:
        weights = read_weights(file.read_bytes(), ("state_dicts", "ema_model" if ema else "model"))
    except OSError as error:
        raise ValueError(at(file, error)) from error
    except ValueError as error:
        raise ValueError(f"{at(file, error)}. {_RESAVE}") from error
    try:
        _refuse_pictures(weights)
        network = lerobot_names(_under("model.", weights))
        if any(key.startswith("local_cond_encoder.") for key in network):
            raise ValueError("its observations are local conditions, wanted obs_as_global_cond")
        normalizer = _linear_normalizer(_under("normalizer.params_dict.", weights))
        sizes = sizes_of(network)
        n_condition, width = int(sizes["n_condition"]), normalizer.observations.width
        if sizes["action_dim"] != normalizer.actions.width or n_condition < 1 or n_condition % width:
            raise ValueError(
                f"its network makes rows of {sizes['action_dim']} numbers given {n_condition}, its normaliser has "
                f"{normalizer.actions.width} numbers of an action and {width} observed: wanted obs_as_global_cond"
            )
        unet = _built(sizes, n_groups, horizon, network)
        return _model(unet, sizes, scheduler, horizon, normalizer, name)
    except (RuntimeError, ValueError) as error:
        raise ValueError(at(file, error)) from error


def policy_events(model: ForeignModel, observations: Array, actions: Array) -> Tensor:
    """
    Clean events of a policy's score model, for `check_pair` and `RewardExtractor.learn`.

    :param model: of :func:`load_lerobot` or :func:`load_diffusion_policy`
    :param observations: (N, n_obs_steps, observation_dim) environment units, oldest first; of LeRobot state, then
        environment state
    :param actions: (N, horizon, action_dim) environment units; the first one belongs to the oldest observation
    :return: (N, horizon · action_dim + n_obs_steps · observation_dim) normalised
    :raises ValueError: for other shapes
    """
    if model.normalizer is None:
        raise ValueError("the model has no normaliser, wanted one of load_lerobot or load_diffusion_policy")
    width = model.normalizer.observations.width
    wanted = ((model.n_condition // width, width), model.inner_shape)
    if observations.shape[1:] != wanted[0] or actions.shape[1:] != wanted[1] or len(observations) != len(actions):
        raise ValueError(
            f"observations and actions have shapes {tuple(observations.shape)} and {tuple(actions.shape)}, "
            f"wanted (N, {', '.join(map(str, wanted[0]))}) and (N, {', '.join(map(str, wanted[1]))})"
        )
    given = model.normalizer.observations.normalize(torch.as_tensor(observations, dtype=torch.float32))
    return model.joined(
        model.normalizer.actions.normalize(torch.as_tensor(actions, dtype=torch.float32)), given.flatten(1)
    )


# ---------------------------------------------------------------------- parts of both


def _built(sizes: Mapping[str, Any], n_groups: int, horizon: int, weights: Mapping[str, Tensor]) -> ConditionalUnet:
    """The network, compared with its weights before memory is used."""
    halved = 2 ** (len(sizes["down_dims"]) - 1)
    if horizon % halved:
        raise ValueError(f"the horizon is {horizon}, wanted a multiple of {halved}, by which the U-Net divides it")
    check_weights(lambda: ConditionalUnet(**sizes, n_groups=n_groups), weights)
    unet = ConditionalUnet(**sizes, n_groups=n_groups)
    unet.load_state_dict(dict(weights))
    return unet.requires_grad_(False).eval()


def _model(
    unet: ConditionalUnet, sizes: Mapping[str, Any], scheduler: Any, horizon: int, normalizer: Normalizer, name: str
) -> ForeignModel:
    chunk = horizon, int(sizes["action_dim"])
    return from_diffusion_policy(unet, scheduler, *chunk, int(sizes["n_condition"]), normalizer=normalizer, name=name)


def _under(prefix: str, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {key.removeprefix(prefix): value for key, value in weights.items() if key.startswith(prefix)}


def _refuse_pictures(weights: Mapping[str, Tensor]) -> None:
    found = [key for key in weights if any(encoder in key for encoder in _ENCODERS)]
    if found:
        raise ValueError(f"{printable(found[0])} encodes pictures: {_PICTURES}")


# ---------------------------------------------------------------------- LeRobot


def _json_of(file: Path) -> dict[str, Any]:
    try:
        value = from_json(read_small(file))
        if not isinstance(value, dict):
            raise ValueError(f"holds a {type(value).__name__}, wanted an object")
        if "input_shapes" in value:
            raise ValueError("is of a version before 2025: load the policy with a newer LeRobot and save it again")
        return value
    except (OSError, ValueError) as error:
        raise ValueError(at(file, error)) from error


def _tensors_of(file: Path) -> dict[str, Tensor]:
    try:
        return safetensors.torch.load(file.read_bytes())
    except (OSError, safetensors.SafetensorError, KeyError, ValueError, TypeError, RuntimeError) as error:
        raise ValueError(at(file, error)) from error


def _widths(config: _Config) -> dict[str, int]:
    """How many numbers each feature has."""
    for key, feature in config.input_features.items():
        if feature.type == "VISUAL" or len(feature.shape) != 1:
            raise ValueError(f"{printable(key)} is a picture: {_PICTURES}")
        if key not in _OBSERVED:
            raise ValueError(f"{printable(key)} is not known, wanted {' and '.join(_OBSERVED)}")
    outputs = config.output_features
    if STATE not in config.input_features or set(outputs) != {ACTION} or len(outputs[ACTION].shape) != 1:
        raise ValueError(f"it must observe {STATE} and give one {ACTION}")
    return {key: feature.shape[0] for key, feature in (config.input_features | outputs).items()}


def _scheduler(config: _Config) -> Any:
    names = ("num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "prediction_type")
    options = {name: getattr(config, name) for name in (*names, "clip_sample", "clip_sample_range")}
    return getattr(import_diffusers(), f"{config.noise_scheduler_type}Scheduler")(**options)


def _statistics(
    folder: Path, weights: Mapping[str, Tensor], modes: Mapping[str, _Mode]
) -> tuple[dict[str, Tensor], Mapping[str, _Mode]]:
    """``feature.statistic`` of each feature, and how they are used: in files of their own, or among the weights."""
    file = folder / "policy_preprocessor.json"
    if not file.exists():
        found = {}
        for prefix in ("normalize_inputs.buffer_", "unnormalize_outputs.buffer_"):
            for key, value in _under(prefix, weights).items():
                feature, _, statistic = key.rpartition(".")
                known = {name.replace(".", "_"): name for name in (*_OBSERVED, ACTION)}
                found[f"{known.get(feature, feature)}.{statistic}"] = value
        return found, modes
    steps = checked(_Pipeline, _json_of(file), str(file)).steps
    if any(step.registry_name == "relative_actions_processor" and step.config.enabled for step in steps):
        raise ValueError("its actions are relative to the state, which no normaliser can say")
    chosen = [step for step in steps if step.registry_name == "normalizer_processor"]
    if len(chosen) != 1:
        raise ValueError(f"{file.name} has {len(chosen)} steps normalizer_processor, wanted one")
    stored = chosen[0].state_file
    return ({} if stored is None else _tensors_of(folder / stored)), chosen[0].config.norm_map or modes


class _StepConfig(_Open):
    norm_map: Annotated[dict[str, _Mode], Field(max_length=64)] | None = None
    enabled: bool = False


class _Step(_Open):
    registry_name: Annotated[str, Field(max_length=200)] | None = None
    config: _StepConfig = _StepConfig()
    state_file: Annotated[str, Field(pattern=r"^[\w-][\w.-]{0,199}\.safetensors$")] | None = None


class _Pipeline(_Open):
    """What counts of ``policy_preprocessor.json``."""

    steps: Annotated[list[_Step], Field(max_length=64)]


def _affine(key: str, mode: _Mode, width: int, statistics: Mapping[str, Tensor]) -> Affine:
    """The map of one feature; a column without a range is at -1, as theirs."""
    if mode == "IDENTITY":
        return Affine(np.zeros(width), np.ones(width))
    names = _BOUNDS.get(mode, ("mean", "std"))
    missing = [name for name in names if tuple(statistics.get(f"{key}.{name}", torch.zeros(0)).shape) != (width,)]
    if missing:
        raise ValueError(f"it has no {key}.{missing[0]} of {width} numbers, which {mode} needs")
    first, second = (statistics[f"{key}.{name}"].double().numpy() for name in names)
    if mode == "MEAN_STD":
        return Affine(first, second)
    half = (second - first) / 2
    return Affine(np.where(half == 0, first + 1, first + half), np.where(half == 0, 1, half))


# ---------------------------------------------------------------------- the original


def _linear_normalizer(parameters: Mapping[str, Tensor]) -> Normalizer:
    """Their ``LinearNormalizer``, scale · x + offset."""
    maps = []
    for field in ("obs", "action"):
        scale, offset = (parameters.get(f"{field}.{name}") for name in ("scale", "offset"))
        if scale is None or offset is None or scale.ndim != 1 or scale.shape != offset.shape or not (scale > 0).all():
            raise ValueError(f"it has no normaliser of {field}, wanted scales above 0 and offsets")
        maps.append(Affine((-offset / scale).numpy(), (1 / scale).numpy()))
    return Normalizer(maps[0], maps[1])
