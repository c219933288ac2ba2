"""Tiny Diffusion Policies on disk: folders as LeRobot writes them, older and newer, and the original's checkpoints."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from rrpolicy.models.conditional_unet import ConditionalUnet

SIZES: dict[str, Any] = {
    "action_dim": 2,
    "n_condition": 10,
    "down_dims": (8, 16),
    "kernel_size": 3,
    "step_embed_dim": 8,
}
STATISTICS = {
    "observation.state.min": torch.tensor([-1.0, 0.0, 2.0]),
    "observation.state.max": torch.tensor([3.0, 1.0, 2.0]),  # the last column is constant
    "observation.environment_state.mean": torch.tensor([1.0, -2.0]),
    "observation.environment_state.std": torch.tensor([0.5, 2.0]),
    "action.min": torch.tensor([-2.0, -1.0]),
    "action.max": torch.tensor([2.0, 3.0]),
}
CONFIG: dict[str, Any] = {
    "type": "diffusion",
    "n_obs_steps": 2,
    "horizon": 8,
    "n_action_steps": 4,
    "input_features": {
        "observation.state": {"type": "STATE", "shape": [3]},
        "observation.environment_state": {"type": "ENV", "shape": [2]},
    },
    "output_features": {"action": {"type": "ACTION", "shape": [2]}},
    "normalization_mapping": {"VISUAL": "MEAN_STD", "STATE": "MIN_MAX", "ENV": "MEAN_STD", "ACTION": "MIN_MAX"},
    "vision_backbone": "resnet18",
    "crop_shape": None,
    "down_dims": [8, 16],
    "kernel_size": 3,
    "n_groups": 4,
    "diffusion_step_embed_dim": 8,
    "use_film_scale_modulation": True,
    "noise_scheduler_type": "DDPM",
    "num_train_timesteps": 20,
    "beta_schedule": "squaredcos_cap_v2",
    "beta_start": 0.0001,
    "beta_end": 0.02,
    "prediction_type": "epsilon",
    "clip_sample": True,
    "clip_sample_range": 1.0,
    "num_inference_steps": None,
}


def policy_unet(seed: int = 0, **changes: Any) -> ConditionalUnet:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return ConditionalUnet(**{**SIZES, "n_groups": 4, **changes}).eval()


def write_lerobot(folder: Path, unet: ConditionalUnet, older: bool = False, **changes: Any) -> Path:
    """A folder as LeRobot writes it; ``older``: with statistics among the weights, as before September 2025."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps({**CONFIG, **changes}))
    weights = {f"diffusion.unet.{name}": value for name, value in unet.state_dict().items()}
    if older:
        for key, value in STATISTICS.items():
            feature, statistic = key.rsplit(".", 1)
            part = "unnormalize_outputs" if feature == "action" else "normalize_inputs"
            weights[f"{part}.buffer_{feature.replace('.', '_')}.{statistic}"] = value
    else:
        state_file = "policy_preprocessor_step_3_normalizer_processor.safetensors"
        normalizer = {"eps": 1e-8, "features": {}, "norm_map": {**CONFIG, **changes}["normalization_mapping"]}
        steps = [
            {"registry_name": "rename_observations_processor", "config": {"rename_map": {}}},
            {"registry_name": "normalizer_processor", "config": normalizer, "state_file": state_file},
        ]
        (folder / "policy_preprocessor.json").write_text(json.dumps({"name": "policy_preprocessor", "steps": steps}))
        save_file(STATISTICS, folder / state_file)
    save_file(weights, folder / "model.safetensors")
    return folder


def original_weights(unet: ConditionalUnet) -> dict[str, Tensor]:
    """The state dictionary of a ``DiffusionUnetLowdimPolicy`` whose observations have the same five numbers."""
    weights = {}
    for name, value in unet.state_dict().items():
        name = name.replace(".conv1.", ".blocks.0.").replace(".conv2.", ".blocks.1.")
        name = re.sub(r"(_modules\.[0-9]+\.2)\.", r"\1.conv.", name)
        weights[f"model.{name}"] = value
    low, high = STATISTICS["action.min"], STATISTICS["action.max"]
    scale = 2 / (high - low)
    return {
        **weights,
        "mask_generator._dummy_variable": torch.zeros(0),
        "normalizer.params_dict.obs.scale": torch.full((5,), 2.0),
        "normalizer.params_dict.obs.offset": torch.arange(5.0),
        "normalizer.params_dict.action.scale": scale,
        "normalizer.params_dict.action.offset": -1 - scale * low,
        "normalizer.params_dict.action.input_stats.min": low,
    }
