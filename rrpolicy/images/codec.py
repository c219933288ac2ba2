"""Codecs: images as people have them (PIL, numpy, tensors) to the events of a score model, and back.

A `PixelCodec` scales pixels to [-1, 1] and may fold them into channels (pixel-unshuffle); a `LatentCodec` goes through
the autoencoder of Stable Diffusion (Rombach et al. 2022). Models, rewards and samplers never touch an image.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from rrpolicy.common.typing import Array
from rrpolicy.images.parts import weights_digest

CHUNK = 8  # images per call of an autoencoder
CHUNK_VALUES = 2**23  # of images as floats at once
MODES = {1: "L", 3: "RGB"}  # channels -> PIL's name


class Codec(Protocol):
    """Images to events and back."""

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of the images it takes."""
        ...

    @property
    def event_shape(self) -> tuple[int, ...]:
        """Shape of one event."""
        ...

    @property
    def clip(self) -> float | None:
        """Largest magnitude of a clean event's entry; None when there is no bound."""
        ...

    def encode(self, images: Any) -> Tensor:
        """Events (B, *event_shape) float32 of images, see :func:`as_pixels`."""
        ...

    def decode(self, events: Tensor) -> Array:
        """Images uint8 (B, H, W, C) of clean events (B, *event_shape)."""
        ...

    def to_dict(self) -> dict[str, Any]:
        """JSON values that name the codec."""
        ...


class PixelCodec:
    """
    Pixels in [-1, 1], folded ``unshuffle`` times: (1, 16, 16) by 2 gives events (4, 8, 8).

    :param shape: (C, H, W) of the images; C is 1 or 3
    :param unshuffle: factor by which height and width shrink
    :raises ValueError: for a shape that is none, or that the factor does not divide
    """

    clip: float | None = 1.0

    def __init__(self, shape: Sequence[int], unshuffle: int = 1) -> None:
        if len(shape) != 3 or shape[0] not in MODES or min(shape) < 1:
            raise ValueError(f"shape is {tuple(shape)}, wanted (C, H, W) with 1 or 3 channels")
        if unshuffle < 1 or shape[1] % unshuffle or shape[2] % unshuffle:
            raise ValueError(f"unshuffle is {unshuffle}, it must divide height and width of {tuple(shape)}")
        channels, height, width = (int(size) for size in shape)
        self.image_shape = (channels, height, width)
        self.unshuffle = int(unshuffle)

    @property
    def event_shape(self) -> tuple[int, int, int]:
        channels, height, width = self.image_shape
        return channels * self.unshuffle**2, height // self.unshuffle, width // self.unshuffle

    def encode(self, images: Any) -> Tensor:
        """
        Events float32 (B, *event_shape) in [-1, 1].

        :param images: see :func:`as_pixels`
        :raises ValueError: as :func:`as_pixels`
        """
        pixels = 2 * as_pixels(images, self.image_shape) - 1
        return nn.functional.pixel_unshuffle(pixels, self.unshuffle)

    def decode(self, events: Tensor) -> Array:
        """
        Images uint8 (B, H, W, C).

        :param events: clean events (B, *event_shape); what lies beyond [-1, 1] is clipped
        :raises ValueError: for another shape or NaN
        """
        _check_events(events, self.event_shape)
        return _to_uint8(nn.functional.pixel_shuffle(events, self.unshuffle))

    def to_dict(self) -> dict[str, Any]:
        return {"kind": "pixels", "shape": list(self.image_shape), "unshuffle": self.unshuffle}


class LatentCodec:
    """
    Scaled latents of an autoencoder; encoding takes the mean of its posterior, so that it draws nothing.

    :param vae: a ``diffusers`` ``AutoencoderKL``; None for a codec that has the shapes alone
    :param event_shape: (C, H, W) of the latents
    :param image_shape: (3, H, W) of the images
    :param scaling_factor: latents are multiplied by it
    :param shift_factor: which is subtracted from them before
    :param digest: SHA-256 of the autoencoder's weights, see `images.parts.weights_digest`; None: that of ``vae``
    """

    clip: float | None = None

    def __init__(
        self,
        vae: Any,
        event_shape: Sequence[int],
        image_shape: Sequence[int],
        scaling_factor: float = 0.18215,
        shift_factor: float = 0.0,
        digest: str | None = None,
    ) -> None:
        channels, height, width = (int(size) for size in image_shape)
        self.vae = vae
        self.event_shape = tuple(int(size) for size in event_shape)
        self.image_shape = (channels, height, width)
        self.scaling_factor = float(scaling_factor)
        self.shift_factor = float(shift_factor)
        self.digest = weights_digest(vae) if digest is None and vae is not None else digest

    @torch.no_grad()
    def encode(self, images: Any) -> Tensor:
        """
        Latents float32 (B, *event_shape).

        :param images: see :func:`as_pixels`
        :raises ValueError: as :func:`as_pixels`, without an autoencoder, or when it gives NaN
        """
        vae = self._vae()
        parts = [
            vae.encode((2 * part - 1).to(vae.device, vae.dtype)).latent_dist.mode().float().cpu()
            for part in as_pixels(images, self.image_shape).split(CHUNK)
        ]
        events = torch.cat(parts)
        self._check_finite(events, "encoder")
        return self.scaling_factor * (events - self.shift_factor)

    @torch.no_grad()
    def decode(self, events: Tensor) -> Array:
        """
        Images uint8 (B, H, W, 3).

        :param events: clean latents (B, *event_shape)
        :raises ValueError: for another shape or NaN, without an autoencoder, or when it gives NaN
        """
        vae = self._vae()
        _check_events(events, self.event_shape)
        latents, parts = events / self.scaling_factor + self.shift_factor, []
        for part in latents.split(CHUNK):
            pixels = vae.decode(part.to(vae.device, vae.dtype)).sample.float().cpu()
            self._check_finite(pixels, "decoder")
            parts.append(_to_uint8(pixels))
        return np.concatenate(parts)

    def to_dict(self) -> dict[str, Any]:
        return {
            "kind": "latents",
            "event_shape": list(self.event_shape),
            "image_shape": list(self.image_shape),
            "scaling_factor": self.scaling_factor,
            **({"shift_factor": self.shift_factor} if self.shift_factor else {}),
            **({} if self.digest is None else {"digest": self.digest}),
        }

    def _check_finite(self, values: Tensor, part: str) -> None:
        if not torch.isfinite(values).all():
            precision = str(self.vae.dtype).removeprefix("torch.")
            raise ValueError(
                f"the {part} of the autoencoder gives NaN or infinite numbers in {precision}"
                + (", wanted it in float32" if precision != "float32" else "")
            )

    def _vae(self) -> Any:
        if self.vae is None:
            raise ValueError("these are latents of an autoencoder, which is not here: give the pipeline they belong to")
        return self.vae


def codec_from_dict(values: Mapping[str, Any]) -> Codec:
    """
    What :meth:`to_dict` named; latents come back without their autoencoder.

    :raises ValueError: for a kind that is not known
    """
    kind = values.get("kind", "pixels")
    if kind == "pixels":
        return PixelCodec(values["shape"], values.get("unshuffle", 1))
    if kind == "latents":
        return LatentCodec(
            None,
            values["event_shape"],
            values["image_shape"],
            values["scaling_factor"],
            values.get("shift_factor", 0.0),
            values.get("digest"),
        )
    raise ValueError(f"codec is {kind!r}, it must be 'pixels' or 'latents'")


def codec_parts(codec: Codec) -> str:
    """A codec's part of a fingerprint; an autoencoder stands by the beginning of its digest."""
    values = codec.to_dict()
    digest = values.pop("digest", None)
    return f"codec={json.dumps(values)}" + ("" if digest is None else f";autoencoder={digest[:16]}")


def check_codec(given: Codec, wanted: Codec, what: str = "it") -> None:
    """
    Refuse a codec that makes other events than those a reward was made for.

    Archives that were written before autoencoders had digests are compared without.

    :param what: was made for the codec that is wanted
    :raises ValueError: naming what differs
    """
    mine, theirs = given.to_dict(), wanted.to_dict()
    digests = [values.pop("digest", None) for values in (mine, theirs)]
    if mine != theirs:
        raise ValueError(f"{what} was made for the codec {theirs}, the codec given is {mine}")
    if None not in digests and digests[0] != digests[1]:
        raise ValueError(
            f"{what} was made for latents of the autoencoder {digests[1][:16]}, the codec given is of one "
            f"with other weights, {digests[0][:16]}"
        )


def as_pixels(images: Any, shape: tuple[int, int, int]) -> Tensor:
    """
    Images of any kind as float32 tensors (B, C, H, W) in [0, 1].

    :param images: a PIL image or several; numpy (H, W), (H, W, C), (B, H, W) or (B, H, W, C), uint8 or float in
        [0, 1]; tensor (C, H, W) or (B, C, H, W), uint8 or float in [0, 1]; PIL images are turned to grey or to colour
    :param shape: wanted (C, H, W)
    :raises TypeError: for something that is no image
    :raises ValueError: for no image, another size, values beyond [0, 1] or NaN
    """
    pixels = images if isinstance(images, Tensor) else torch.as_tensor(_channels_first(images, shape[0]))
    pixels = pixels[None] if pixels.ndim == 3 else pixels
    if not pixels.numel() or tuple(pixels.shape[1:]) != shape:
        raise ValueError(f"images have shape {tuple(pixels.shape)}, wanted (B, {', '.join(map(str, shape))})")
    if pixels.dtype == torch.uint8:
        return pixels.float().cpu() / 255
    if not pixels.is_floating_point():
        raise ValueError(f"images are {pixels.dtype}, wanted uint8 or floats in [0, 1]")
    pixels = pixels.float().cpu()
    if not torch.isfinite(pixels).all():
        raise ValueError("images hold NaN or inf, wanted values in [0, 1]")
    low, high = float(pixels.min()), float(pixels.max())
    if low < 0 or high > 1:
        raise ValueError(f"images hold values from {low:g} to {high:g}, wanted floats in [0, 1] or uint8")
    return pixels


def in_chunks(images: Any, shape: tuple[int, int, int]) -> Iterator[Any]:
    """
    Images of any kind, a few at a time, so that their pixels as floats take little memory.

    :param images: see :func:`as_pixels`
    :param shape: wanted (C, H, W)
    """
    several = isinstance(images, list | tuple) or (isinstance(images, np.ndarray | Tensor) and images.ndim == 4)
    if isinstance(images, np.ndarray) and images.ndim == 3:  # grey pictures without an axis for their channel
        several = shape[0] == 1 and images.shape[-1] != 1
    size = max(1, CHUNK_VALUES // math.prod(shape))
    if not several or len(images) <= size:
        yield images
        return
    for start in range(0, len(images), size):
        yield images[start : start + size]


def _channels_first(images: Any, channels: int) -> Array:
    """PIL images or numpy arrays, channels last, as (B, C, H, W)."""
    if isinstance(images, Image.Image):
        images = [images]
    if isinstance(images, list | tuple) and images and all(isinstance(image, Image.Image) for image in images):
        sizes = {image.size for image in images}
        if len(sizes) > 1:
            raise ValueError(f"images have different sizes (width, height): {sorted(sizes)}, wanted equal ones")
        images = np.stack([np.asarray(image.convert(MODES[channels])) for image in images])
    elif isinstance(images, list | tuple) and images and all(isinstance(image, np.ndarray) for image in images):
        images = np.stack(images)
    if not isinstance(images, np.ndarray):
        raise TypeError(f"images are a {type(images).__name__}, wanted PIL images, a numpy array or a tensor")
    if channels == 1 and (images.ndim == 2 or (images.ndim == 3 and images.shape[-1] != 1)):
        images = images[..., None]  # grey pictures often come without an axis for their channel
    images = images[None] if images.ndim == 3 else images
    if images.ndim != 4:
        raise ValueError(f"images have shape {images.shape}, wanted (B, H, W, {channels})")
    return np.ascontiguousarray(images.transpose(0, 3, 1, 2))


def _check_events(events: Tensor, event_shape: tuple[int, ...]) -> None:
    if tuple(events.shape[1:]) != event_shape:
        raise ValueError(f"events have shape {tuple(events.shape)}, wanted (B, {', '.join(map(str, event_shape))})")
    if not torch.isfinite(events).all():
        raise ValueError("events hold NaN or inf: the model that drew them goes beyond its precision")


def _to_uint8(pixels: Tensor) -> Array:
    """(B, C, H, W) around [-1, 1] -> uint8 (B, H, W, C)."""
    grey = ((pixels / 2 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8)
    return np.asarray(grey.permute(0, 2, 3, 1).contiguous().cpu().numpy())
