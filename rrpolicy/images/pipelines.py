"""Pipelines with prompts by what their folder names: one call reads any kind that the library knows."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from rrpolicy.images.flow_models import Flux, StableDiffusion3
from rrpolicy.images.parts import has_part, pipeline_class
from rrpolicy.images.stable_diffusion import StableDiffusion, TextToImage
from rrpolicy.images.stable_diffusion_xl import StableDiffusionXL

KINDS: dict[str, Callable[..., TextToImage]] = {
    "StableDiffusionPipeline": StableDiffusion.from_pretrained,
    "StableDiffusionXLPipeline": StableDiffusionXL.from_pretrained,
    "StableDiffusion3Pipeline": StableDiffusion3.from_pretrained,
    "FluxPipeline": Flux.from_pretrained,
}
"""By the class in ``model_index.json``; folders that name none, or another, are read as Stable Diffusion 1 or 2."""


def load_pipeline(
    name: str | Path, device: torch.device | str = "cpu", dtype: torch.dtype | str = torch.float32
) -> TextToImage:
    """
    Read a pipeline folder, or a model of the hub (``owner/name``).

    :param name: the folder, or the hub's name
    :param device: where the networks compute
    :param dtype: their precision
    :raises ValueError: without the extra, or for a folder that is none, naming it and what it lacks
    """
    has_part(name, "")
    return KINDS.get(str(pipeline_class(name)), StableDiffusion.from_pretrained)(name, device, dtype)
