"""Pipelines with prompts by what their folder names: one call reads any supported kind."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from rrpolicy.common.messages import printable
from rrpolicy.images.flow_models import Flux, StableDiffusion3
from rrpolicy.images.parts import is_single_file, pipeline_class, reachable
from rrpolicy.images.stable_diffusion import StableDiffusion, TextToImage
from rrpolicy.images.stable_diffusion_xl import StableDiffusionXL

KINDS: dict[str, Callable[..., TextToImage]] = {
    "StableDiffusionPipeline": StableDiffusion.from_pretrained,
    "StableDiffusionXLPipeline": StableDiffusionXL.from_pretrained,
    "StableDiffusion3Pipeline": StableDiffusion3.from_pretrained,
    "FluxPipeline": Flux.from_pretrained,
}
"""By the class in ``model_index.json``; folders that name none, or another, are read as Stable Diffusion 1 or 2."""


SINGLE_FILES = ("StableDiffusionPipeline", "StableDiffusionXLPipeline")
"""Kinds that are read from one file, too, in the layout of the original code."""


def load_pipeline(
    name: str | Path,
    device: torch.device | str = "auto",
    dtype: torch.dtype | str = torch.float32,
    config: str | Path | None = None,
) -> TextToImage:
    """
    Read a pipeline folder, a model of the hub (``owner/name``), or one file of all weights (Stable Diffusion, XL).

    :param name: the folder, the hub's name, or the file in safetensors
    :param device: where the networks compute
    :param dtype: their precision
    :param config: of one file: a pipeline folder of its kind, with configurations, tokenizers and noise levels
    :raises ValueError: without the extra, or for a folder that is none, naming it and what it lacks
    """
    if is_single_file(name):
        return _from_file(Path(name), config, device, dtype)
    name = reachable(name)
    if config is not None:
        raise ValueError(f"{config} has the configurations of one file of weights (--config), {name} is none")
    return KINDS.get(str(pipeline_class(name)), StableDiffusion.from_pretrained)(name, device, dtype)


def _from_file(
    path: Path, config: str | Path | None, device: torch.device | str, dtype: torch.dtype | str
) -> TextToImage:
    if config is None:
        raise ValueError(
            f"{path} is one file of weights, which tells no configuration: name a pipeline folder of the "
            "same kind, too, with configurations, tokenizers and noise levels (--config)"
        )
    if not Path(config).is_dir():
        raise ValueError(f"{config} is no folder, wanted one of a pipeline with the configurations of {path}")
    kind = pipeline_class(config) or SINGLE_FILES[0]
    if kind not in SINGLE_FILES:
        raise ValueError(
            f"{config} is a {printable(kind, 60)}, which is not read from one file, wanted one of "
            f"{', '.join(SINGLE_FILES)}"
        )
    return KINDS[kind](config, device, dtype, weights=path)
