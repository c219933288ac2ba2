"""All loaders that are fuzzed, by name. A new loader needs one entry here: a function that makes its `Target`."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from functools import partial

import numpy as np
import torch

from fuzz import archives, files
from fuzz.target import Target

TARGETS: Mapping[str, Callable[[], Target]] = {
    **{name: partial(archives.agent, name) for name in archives.KINDS},
    "checkpoint": archives.checkpoint,
    "extractor": archives.extractor,
    "discriminator": archives.discriminator,
    "distillation": archives.distillation,
    "plan-distillation": archives.plan_distillation,
    "reward": archives.reward,
    "planner": archives.planner,
    "trained-policy": archives.trained_policy,
    "actor-critic": archives.actor_critic,
    "offline-policy": archives.older_policy,
    "replay": archives.replay,
    "image-diffusion": archives.image_diffusion,
    "image-reward": archives.image_reward,
    "image-judge": archives.image_judge,
    "card": archives.card,
    "zoo-load": files.zoo_load,
    "zoo-card": files.zoo_card,
    "recipe": files.recipe,
    "d4rl": files.d4rl,
    "robomimic": files.robomimic,
    "npz": files.npz,
    "lerobot": partial(files.shipped, "lerobot_v3"),
    "zarr": partial(files.shipped, "zarr_v2"),
    "zarr-3": partial(files.shipped, "zarr_v3"),
    "zarr-zip": files.zarr_zip,
    "minari": files.minari,
    "recording": files.recording,
    "sb3-ppo": partial(files.sb3, "sb3-ppo"),
    "sb3-sac": partial(files.sb3, "sb3-sac"),
    "statistics": files.statistics,
    "idx": partial(files.idx_folder, "idx"),
    "idx-gz": partial(files.idx_folder, "idx-gz"),
    "class-folders": files.class_folders,
    "pictures": files.pictures,
    "unet-folder": files.unet_folder,
    "maze": files.maze,
    "results-json": files.results_json,
    "results-csv": files.results_csv,
    "curves": files.curves,
    "progress": files.progress,
    "maps": files.maps,
}


def made(name: str) -> Target:
    """A target, whose valid input is the same each time."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
    return TARGETS[name]()
