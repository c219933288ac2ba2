"""Base and expert as the command ``images record`` names them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from rrpolicy.images.parts import has_part
from rrpolicy.images.pipelines import load_pipeline
from rrpolicy.images.recording import PromptPair
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

    def describe(self, base: str) -> str:
        """The expert's name in a recording."""
        if self.unet is not None:
            return f"{base} with the network of {self.unet}"
        if self.lora is not None:
            return f"{base} with the LoRA {self.lora}"
        return self.whole or f"{base} with {self.safety} safety guidance"


def unet_pair(
    base: str, expert: ExpertOptions, class_label: int | None, device: str, dtype: str
) -> tuple[UNetScoreModel, UNetScoreModel]:
    """
    Two models without prompts; a network alone is read with the base's noise levels and codec.

    :raises ValueError: without an expert that is a model or a network
    """
    if expert.whole is None and expert.unet is None:
        raise ValueError("without --prompts give --expert or --expert-unet: a LoRA or safety guidance needs prompts")
    weak = UNetScoreModel.from_pretrained(base, device=device, dtype=dtype, class_label=class_label)
    if expert.whole is not None:
        return weak, UNetScoreModel.from_pretrained(expert.whole, device=device, dtype=dtype, class_label=class_label)
    strong = UNetScoreModel.from_pretrained(str(expert.unet), weak.process, weak.codec, device, dtype, class_label)
    return weak, strong


def prompt_pair(
    base: str, expert: ExpertOptions, class_label: int | None, guidance_scale: float | None, device: str, dtype: str
) -> PromptPair:
    """
    Two versions of a pipeline.

    :raises ValueError: without an expert, with a class label, or for two pipelines of another kind
    """
    if class_label is not None:
        raise ValueError("--class-label is for models without prompts")
    if expert.unet is not None:
        has_part(expert.unet, "")  # told before gigabytes are read
    weak = load_pipeline(base, device, dtype)
    strong = None
    if expert.whole is not None:
        strong = load_pipeline(expert.whole, device, dtype)
    elif expert.unet is not None:
        strong = weak.with_network(expert.unet)
    elif expert.lora is not None:
        strong = weak.with_lora(expert.lora)
    return PromptPair(weak, strong, expert.safety, guidance_scale)
