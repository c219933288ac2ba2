"""Options that the image commands share, checks of their values, and loading of image rewards."""

from __future__ import annotations

import math
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from rrpolicy import zoo
from rrpolicy.cli import options
from rrpolicy.images.pipelines import load_pipeline
from rrpolicy.images.reward import ImageReward


class Safety(StrEnum):
    """The published strengths of safety guidance."""

    weak = "weak"
    medium = "medium"
    strong = "strong"
    max = "max"


class Precision(StrEnum):
    """What a network computes in."""

    float32 = "float32"
    float16 = "float16"
    bfloat16 = "bfloat16"


Dtype = Annotated[Precision, typer.Option("--dtype", help="Precision of the models.")]
Prompts = Annotated[
    Path | None, typer.Option("--prompts", metavar="FILE", help="One per line, or prompt in CSV, TSV or JSONL.")
]
Reward = Annotated[str, typer.Option("--reward", help="Archive of an image reward: path or zoo name.")]
Pipeline = Annotated[
    str | None, typer.Option("--pipeline", help="Stable Diffusion folder that a reward of latents belongs to.")
]
Expert = Annotated[
    str | None, typer.Option("--expert", help="The strong model: folder, hub name, or one file of weights.")
]
ExpertUNet = Annotated[
    str | None, typer.Option("--expert-unet", help="Expert is the base with the network of this folder or file.")
]
ExpertLora = Annotated[
    Path | None, typer.Option("--expert-lora", metavar="FILE", help="Expert is the base with this LoRA.")
]
ExpertSafety = Annotated[
    Safety | None, typer.Option("--safety", help="Expert is the base with safety guidance this strong.")
]
Config = Annotated[
    Path | None,
    typer.Option("--config", metavar="DIR", help="Of a model that is one file: a pipeline folder of the same kind."),
]
ClassLabel = Annotated[
    int | None, typer.Option("--class-label", min=0, help="Of a model conditioned on labels: the label to use.")
]
Nulls = Annotated[
    list[Path] | None,
    typer.Option("--null", help="Reward between two trainings of one model, or a folder of some; repeatable."),
]
Resize = Annotated[bool, typer.Option("--resize", help="Bring pictures of another size to the model's.")]
Strict = Annotated[bool, typer.Option("--strict", help="Refuse files that cannot be read, do not leave them out.")]
SamplingSteps = Annotated[
    int | None, typer.Option("--n-sampling-steps", min=1, help="Denoising steps; default: 25, with prompts 50.")
]
GuidanceScale = Annotated[
    float | None,
    typer.Option("--guidance-scale", callback=options.finite, help="With prompts; default: the pipeline's usual one."),
]


def parse_levels(text: str) -> list[int]:
    """
    The noise levels of ``--levels``: whole numbers with commas between them.

    :raises ValueError: for something else than whole numbers from 0 on with commas between them
    """
    try:
        levels = [int(part) for part in text.split(",")]
    except ValueError:
        levels = [-1]
    if min(levels) < 0:
        raise ValueError(f"--levels is {text!r}, wanted whole numbers such as 0,20,40")
    return levels


def check_levels(levels: list[int], reward: ImageReward) -> None:
    """
    Check that a reward has all of the noise levels.

    :raises ValueError: for a noise level that the reward does not have
    """
    n_levels = reward.reward.process.n_diffusion_steps
    if max(levels) >= n_levels:
        raise ValueError(f"--levels has {max(levels)}, wanted some of 0..{n_levels - 1}")


def parse_scales(text: str) -> list[float]:
    """
    The strengths of steering of ``--scales``: numbers with commas between them.

    :raises ValueError: for something else than finite numbers from 0 on with commas between them
    """
    try:
        scales = [float(part) for part in text.split(",")]
    except ValueError:
        scales = [-1.0]
    if not all(math.isfinite(scale) and scale >= 0 for scale in scales):
        raise ValueError(f"--scales is {text!r}, wanted numbers such as 0,1,2")
    return scales


def load_reward(name: str, pipeline: str | None, device: str, config: Path | None = None) -> ImageReward:
    """An image reward, ready to score pictures; that of latents with its pipeline's autoencoder."""
    codec = None if pipeline is None else load_pipeline(pipeline, device, config=config).codec
    return ImageReward.load(zoo.find(name), device=device, codec=codec)
