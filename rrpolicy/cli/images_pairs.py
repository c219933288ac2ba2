"""Base and expert from the options of the image commands, to be compared or sampled from."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from rrpolicy.cli.prompt_files import echo_cut, read_prompts
from rrpolicy.images.parts import has_part, is_single_file, reachable
from rrpolicy.images.pipelines import load_pipeline
from rrpolicy.images.recording import PromptPair
from rrpolicy.images.sampling import ImageModel
from rrpolicy.images.unet import UNetScoreModel


@dataclass(frozen=True)
class ExpertOptions:
    """
    What was given for the expert, at most one of them.

    :param whole: a model of its own
    :param unet: folder of a network that takes the place of the base's
    :param lora: file of a low-rank change of the base's network
    :param safety: strength of safety guidance
    :raises ValueError: for more than one
    """

    whole: str | None
    unet: str | None
    lora: Path | None
    safety: str | None

    def __post_init__(self) -> None:
        names = ("--expert", "--expert-unet", "--expert-lora", "--safety")
        values = (self.whole, self.unet, self.lora, self.safety)
        given = [name for name, value in zip(names, values, strict=True) if value is not None]
        if len(given) > 1:
            raise ValueError(f"{' and '.join(given)} each name an expert, give either of them, not both")

    @classmethod
    def of(cls, whole: str | None, unet: str | None, lora: Path | None, safety: StrEnum | None) -> ExpertOptions:
        """The options of the expert, from the command's options."""
        return cls(whole, unet, lora, None if safety is None else safety.value)

    @property
    def given(self) -> bool:
        """Whether an expert is given."""
        return any(value is not None for value in (self.whole, self.unet, self.lora, self.safety))

    def describe(self, base: str) -> str:
        """The expert's name in a recording."""
        if self.unet is not None:
            return f"{base} with the network of {self.unet}"
        if self.lora is not None:
            return f"{base} with the LoRA {self.lora}"
        return self.whole or f"{base} with {self.safety} safety guidance"


def unet_pair(
    base: str, expert: ExpertOptions, class_label: int | None, device: str, dtype: str, config: Path | None = None
) -> tuple[UNetScoreModel, UNetScoreModel]:
    """
    Two models without prompts; a network alone is read with the base's noise levels and codec.

    :raises ValueError: without an expert that is a model or a network
    """
    if config is not None:
        raise ValueError("--config is for models with prompts")
    if expert.whole is None and expert.unet is None:
        raise ValueError("without --prompts give --expert or --expert-unet: a LoRA or safety guidance needs prompts")
    weak = UNetScoreModel.from_pretrained(base, device=device, dtype=dtype, class_label=class_label)
    if expert.whole is not None and not is_single_file(expert.whole):
        return weak, UNetScoreModel.from_pretrained(expert.whole, device=device, dtype=dtype, class_label=class_label)
    return weak, weak.with_network(str(expert.whole or expert.unet))


def prompt_pair(
    base: str,
    expert: ExpertOptions,
    class_label: int | None,
    guidance_scale: float | None,
    device: str,
    dtype: str,
    config: Path | None = None,
) -> PromptPair:
    """
    Two versions of a pipeline.

    :param config: pipeline folder for those that are one file; None: the base, for the expert
    :raises ValueError: without an expert, with a class label, or for two pipelines of another kind
    """
    if class_label is not None:
        raise ValueError("--class-label is for models without prompts")
    files = [name is not None and is_single_file(name) for name in (base, expert.whole, expert.unet)]
    for name, is_file in zip((expert.whole, expert.unet), files[1:], strict=True):  # checked before gigabytes are read
        if name is not None and not is_file:
            reachable(name)
    weak = load_pipeline(base, device, dtype, None if files[1] and not files[0] else config)
    strong = None
    if expert.whole is not None:
        strong = load_pipeline(expert.whole, device, dtype, (config or base) if files[1] else None)
        if strong.event_shape == weak.event_shape and strong.codec.digest != weak.codec.digest:
            raise ValueError(
                "base and expert have autoencoders of different weights, so latents of one are none of "
                f"the other: --expert-unet {expert.whole} takes the expert's network alone"
            )
    elif expert.unet is not None:
        strong = weak.with_network(expert.unet)
    elif expert.lora is not None:
        strong = weak.with_lora(expert.lora)
    return PromptPair(weak, strong, expert.safety, guidance_scale)


def models_to_draw(
    base: str,
    expert: ExpertOptions,
    prompts: Path | None,
    n: int,
    guidance_scale: float | None,
    class_label: int | None,
    device: str,
    dtype: str,
    config: Path | None,
) -> tuple[list[ImageModel], int]:
    """
    The base and, where one is named, the expert; and how many pictures each is to draw.

    :param prompts: file of prompts, of which the first ``n`` are drawn; None for models without
    :raises ValueError: as :func:`unet_pair` and :func:`prompt_pair`, and for a pipeline without prompts
    """
    if prompts is None:
        if Path(base).is_dir() and has_part(base, "text_encoder"):
            raise ValueError(f"{base} is a text-to-image pipeline: give --prompts")
        if expert.given or config is not None:
            return list(unet_pair(base, expert, class_label, device, dtype, config)), n
        return [UNetScoreModel.from_pretrained(base, device=device, dtype=dtype, class_label=class_label)], n
    texts = read_prompts(prompts)[:n]
    if expert.given:
        pair = prompt_pair(base, expert, class_label, guidance_scale, device, dtype, config)
        echo_cut(texts, pair.base)
        return list(pair.models(texts)[:2]), len(texts)
    if class_label is not None:
        raise ValueError("--class-label is for models without prompts")
    pipeline = load_pipeline(base, device, dtype, config)
    echo_cut(texts, pipeline)
    return [pipeline.prompted(texts, guidance_scale)], len(texts)


def lone_model(base: str, class_label: int | None, device: str, dtype: str, config: Path | None) -> ImageModel:
    """A model of either kind, without a prompt."""
    if is_single_file(base) or (Path(base).is_dir() and has_part(base, "text_encoder")):
        return load_pipeline(base, device, dtype, config).prompted("", 1.0)
    nobody = ExpertOptions(None, None, None, None)
    return models_to_draw(base, nobody, None, 1, None, class_label, device, dtype, config)[0][0]
