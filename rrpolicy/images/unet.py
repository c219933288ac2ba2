"""Unconditional image diffusion models of ``diffusers`` as score models: a network, its noise levels and a codec.

Folders of a DDPMPipeline or of a UNet2DModel are read part by part with classes named here: no pickle is opened, and
nothing that a folder names is imported.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from rrpolicy.common.device import device_of, resolve
from rrpolicy.common.kinds import CodecFields
from rrpolicy.common.messages import at, first_line, printable
from rrpolicy.common.schema import checked, from_json, read_small
from rrpolicy.diffusion.process import DiffusionProcess
from rrpolicy.diffusion.unet_encoder import import_diffusers
from rrpolicy.images.codec import Codec, PixelCodec, codec_from_dict, codec_parts
from rrpolicy.images.parts import (
    check_pipeline,
    digests_of,
    file_digest,
    has_part,
    is_single_file,
    load_part,
    reachable,
)
from rrpolicy.images.schedulers import load_process
from rrpolicy.images.single_files import with_weights

CODEC_FILE = "rrpolicy.json"  # beside model_index.json: {"codec": {"shape": [1, 16, 16], "unshuffle": 2}}
MAX_SIDE = 4096  # of an event, in pixels or entries of a latent


class UNetScoreModel:
    """
    A ``diffusers`` UNet2DModel as a score model; its output has the device and precision of its input.

    :param unet: the network, on the device and in the precision it is to compute in
    :param process: noise levels it was trained with, and what it predicts
    :param codec: images to its events
    :param batch_size: events per call of the network, which bounds memory
    :param class_label: of a network that is conditioned on labels: the label to use
    :raises ValueError: for a network that wants another condition, or whose events are not the codec's
    """

    def __init__(
        self, unet: Any, process: DiffusionProcess, codec: Codec, batch_size: int = 256, class_label: int | None = None
    ) -> None:
        _check_label(unet.config, class_label)
        shape = event_shape_of(unet)
        if codec.event_shape != shape:
            raise ValueError(f"the UNet's events have shape {shape}, the codec's have {codec.event_shape}")
        self.unet = unet
        self.process = process
        self.codec = codec
        self.batch_size = batch_size
        self.class_label = class_label
        self.digests: dict[str, str] = {}
        """SHA-256 of the files that the weights were read from."""

    @classmethod
    def from_pretrained(
        cls,
        name: str | Path,
        process: DiffusionProcess | None = None,
        codec: Codec | None = None,
        device: torch.device | str = "auto",
        dtype: torch.dtype | str = torch.float32,
        class_label: int | None = None,
    ) -> Self:
        """
        Read a DDPMPipeline folder, a UNet2DModel folder, or a model of the hub (``owner/name``).

        :param name: the folder, or the hub's name
        :param process: noise levels; None: those of the folder's scheduler
        :param codec: None: that of ``rrpolicy.json`` in the folder, else pixels of the UNet's sample size
        :param device: where the network computes
        :param dtype: its precision
        :param class_label: as in the constructor
        :raises ValueError: without the extra, or for a folder that is none, naming it and what it lacks
        """
        diffusers, device = import_diffusers(), resolve(device)
        name = reachable(name)
        whole = has_part(name, "unet")
        check_pipeline(name)
        unet = load_part(diffusers.UNet2DModel, name, "unet" if whole else None, dtype)
        levels = load_process(name, "scheduler" if whole else None) if process is None else process
        own = codec or read_codec(name)
        try:
            unet = unet.to(device).eval().requires_grad_(False)
            model = cls(unet, levels, own or PixelCodec(event_shape_of(unet)), class_label=class_label)
        except (RuntimeError, TypeError, ValueError) as error:
            raise ValueError(at(name, first_line(error))) from error
        model.digests = digests_of(name, ["unet" if whole else ""])
        return model

    def with_network(self, name: str | Path) -> Self:
        """
        The same noise levels and codec with another network, as fine-tuning often leaves it.

        :param name: folder of the network, or its one file of weights
        :raises ValueError: for a folder that is none, or a network of another shape
        """
        if not is_single_file(name):
            weights = next(self.unet.parameters())
            return type(self).from_pretrained(
                name, self.process, self.codec, weights.device, weights.dtype, self.class_label
            )
        network = with_weights(self.unet, name, "unet")
        model = type(self)(network, self.process, self.codec, self.batch_size, self.class_label)
        model.digests = {Path(name).name: file_digest(Path(name))}
        return model

    def without_labels(self) -> Self:
        """
        The same model with a network that has no class labels: its label's embedding is added to that of every level.

        A model without labels is returned as it is.
        """
        if self.class_label is None:
            return self
        config = {name: value for name, value in self.unet.config.items() if name != "_use_default_values"}
        network = type(self.unet).from_config({**config, "num_class_embeds": None})
        weights = dict(self.unet.state_dict())
        added = weights.pop("class_embedding.weight")[self.class_label]
        weights["time_embedding.linear_2.bias"] = weights["time_embedding.linear_2.bias"] + added
        network.load_state_dict(weights)
        network.to(added.device, added.dtype).eval().requires_grad_(False)
        model = type(self)(network, self.process, self.codec, self.batch_size)
        model.digests = dict(self.digests)
        return model

    @property
    def event_shape(self) -> tuple[int, ...]:
        return self.codec.event_shape

    @property
    def clip(self) -> float | None:
        """Largest magnitude of a clean entry, to which samplers clip."""
        return self.codec.clip

    @torch.no_grad()
    def eps(self, x_t: Tensor, t: Tensor) -> Tensor:
        """Predicted noise (B, *event_shape) for ``x_t`` (B, *event_shape) at levels ``t`` (B,) int64."""
        parts = zip(x_t.split(self.batch_size), t.split(self.batch_size), strict=True)
        output = torch.cat([self._output(x, level) for x, level in parts])
        return self.process.eps_from_output(x_t, t, output)

    @property
    def device(self) -> torch.device:
        """Where the network computes."""
        return device_of(self.unet)

    def fingerprint(self) -> str:
        """Equal for two models that share shape, codec and noise levels."""
        return f"event_shape={self.event_shape};{codec_parts(self.codec)};process={self.process}"

    def _output(self, x_t: Tensor, t: Tensor) -> Tensor:
        factor = 2 ** (len(self.unet.config.block_out_channels) - 1)
        if any(side % factor for side in self.event_shape[1:]):
            raise ValueError(
                f"the UNet halves its events {factor.bit_length() - 1} times, wanted a sample_size that "
                f"{factor} divides, got {self.event_shape[1]}×{self.event_shape[2]}"
            )
        weights = next(self.unet.parameters())
        try:
            label = None if self.class_label is None else torch.full_like(t, self.class_label).to(weights.device)
            output = self.unet(x_t.to(weights.device, weights.dtype), t.to(weights.device), class_labels=label).sample
        except torch.OutOfMemoryError:
            raise
        except (RuntimeError, TypeError) as error:  # blocks of a folder's choice, which need not fit each other
            fault = f"the UNet cannot denoise events of shape {self.event_shape}: {first_line(error)}"
            raise ValueError(fault) from error
        return output.to(x_t)


def event_shape_of(unet: Any) -> tuple[int, int, int]:
    """
    (C, H, W) of what a UNet denoises.

    :raises ValueError: for one that predicts something else than it takes, or has no size in its configuration
    """
    channels, size = unet.config.in_channels, unet.config.sample_size
    if unet.config.out_channels != channels:
        raise ValueError(f"the UNet has {channels} channels in and {unet.config.out_channels} out, wanted as many")
    if size is None:
        raise ValueError("the UNet's config has no sample_size, wanted the height and width that it was trained at")
    sides = (size, size) if isinstance(size, int) else size
    if not isinstance(sides, list | tuple) or len(sides) != 2 or not all(map(_is_side, sides)):
        raise ValueError(
            f"the UNet's sample_size is {printable(size, 60)}, wanted one or two whole numbers of 1 to {MAX_SIDE}"
        )
    return int(channels), sides[0], sides[1]


def _check_label(config: Mapping[str, Any], label: int | None) -> None:
    """:raises ValueError: for a label that a network does not have, or one that it wants and is not given"""
    n_labels, kind = config.get("num_class_embeds"), config.get("class_embed_type")
    if kind is not None:
        raise ValueError(f"the UNet is conditioned by a class embedding of type {printable(kind, 40)!r}, wanted labels")
    if n_labels is None and label is not None:
        raise ValueError(f"class_label is {label}, but the UNet is not conditioned on class labels")
    if n_labels is not None and (label is None or not 0 <= label < n_labels):
        raise ValueError(
            f"the UNet is conditioned on class labels and class_label is {label}, wanted one of 0..{n_labels - 1}"
        )


def _is_side(value: object) -> bool:
    return type(value) is int and 1 <= value <= MAX_SIDE


def read_codec(name: str | Path) -> Codec | None:
    """
    The codec stored in a folder; None when there is none.

    :raises ValueError: for a file that does not hold one
    """
    path = Path(name) / CODEC_FILE
    if not path.is_file():
        return None
    try:
        values = checked(CodecFields, from_json(read_small(path)), path.name).codec
        return codec_from_dict(values.model_dump())
    except (OSError, ValueError) as error:
        raise ValueError(at(path, f"holds no codec: {first_line(error)}")) from error
