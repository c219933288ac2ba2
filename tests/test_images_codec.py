"""Codecs: whatever an image comes as, the same event; and images that do not fit get one clear line."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from rrpolicy.images.codec import LatentCodec, PixelCodec, codec_from_dict

RNG = np.random.default_rng(0)
GREY = RNG.integers(0, 256, (3, 6, 4, 1), dtype=np.uint8)
COLOUR = RNG.integers(0, 256, (3, 6, 4, 3), dtype=np.uint8)


@pytest.mark.parametrize("images", [GREY, COLOUR], ids=["grey", "colour"])
@pytest.mark.parametrize("unshuffle", [1, 2])
def test_every_kind_of_image_gives_the_same_event_and_comes_back(images: np.ndarray, unshuffle: int) -> None:
    channels = images.shape[-1]
    codec = PixelCodec((channels, 6, 4), unshuffle)
    events = codec.encode(images)
    assert events.shape == (3, *codec.event_shape) == (3, channels * unshuffle**2, 6 // unshuffle, 4 // unshuffle)
    assert events.dtype == torch.float32 and -1 <= events.min() < -0.9 and 0.9 < events.max() <= 1
    pictures = [Image.fromarray(image.squeeze()) for image in images]
    tensors = torch.as_tensor(images).permute(0, 3, 1, 2)
    kinds: dict[str, Any] = {
        "PIL": pictures,
        "floats": images / 255,
        "arrays": list(images),
        "uint8 tensor": tensors,
        "float tensor": tensors / 255,
    }
    if channels == 1:
        kinds["without channels"] = images[..., 0]
    for name, kind in kinds.items():
        torch.testing.assert_close(codec.encode(kind), events, rtol=0, atol=1e-6, msg=name)
    for name, one in {"PIL": pictures[0], "numpy": images[0], "tensor": tensors[0]}.items():
        assert torch.equal(codec.encode(one), events[:1]), name
    np.testing.assert_array_equal(codec.decode(events), images)
    assert codec_from_dict(codec.to_dict()).to_dict() == codec.to_dict()


def test_pictures_are_turned_to_the_wanted_colours() -> None:
    grey, colour = Image.fromarray(GREY[0, ..., 0]), Image.fromarray(COLOUR[0])
    assert torch.equal(PixelCodec((3, 6, 4)).encode(grey)[0, 0], PixelCodec((1, 6, 4)).encode(grey)[0, 0])
    assert torch.equal(PixelCodec((1, 6, 4)).encode(colour), PixelCodec((1, 6, 4)).encode(colour.convert("L")))


def test_what_lies_outside_is_clipped_on_the_way_back() -> None:
    events = torch.tensor([[[[-3.0, 3.0]]]])
    assert PixelCodec((1, 1, 2)).decode(events).ravel().tolist() == [0, 255]


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (np.zeros((2, 5, 4, 3), np.uint8), r"images have shape \(2, 3, 5, 4\), wanted \(B, 3, 6, 4\)"),
        (Image.new("RGB", (6, 4)), r"images have shape \(1, 3, 4, 6\), wanted \(B, 3, 6, 4\)"),
        ([Image.new("RGB", (4, 6)), Image.new("RGB", (5, 6))], r"different sizes \(width, height\): \[\(4, 6\), "),
        (np.zeros((0, 6, 4, 3), np.uint8), r"images have shape \(0, 3, 6, 4\)"),
        (np.zeros((6, 4)), r"images have shape \(6, 4\), wanted \(B, H, W, 3\)"),
        (np.full((1, 6, 4, 3), 200.0), r"values from 200 to 200, wanted floats in \[0, 1\] or uint8"),
        (np.full((1, 6, 4, 3), -0.5), r"values from -0\.5 to -0\.5"),
        (np.full((1, 6, 4, 3), np.nan), "images hold NaN or inf"),
        (np.zeros((1, 6, 4, 3), int), r"images are torch\.int64, wanted uint8 or floats"),
        (torch.zeros(1, 6, 4, 3), r"images have shape \(1, 6, 4, 3\), wanted \(B, 3, 6, 4\)"),
    ],
)
def test_images_that_do_not_fit_are_refused(images: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PixelCodec((3, 6, 4)).encode(images)


@pytest.mark.parametrize("images", ["cat.png", [], [1, 2]])
def test_what_is_no_image_is_refused(images: Any) -> None:
    with pytest.raises(TypeError, match="wanted PIL images, a numpy array or a tensor"):
        PixelCodec((3, 6, 4)).encode(images)


def test_wrong_codecs_are_refused() -> None:
    for shape in ((2, 4, 4), (1, 4), (3, 0, 4)):
        with pytest.raises(ValueError, match=r"wanted \(C, H, W\) with 1 or 3 channels"):
            PixelCodec(shape)
    for factor in (0, 3):
        with pytest.raises(ValueError, match=f"unshuffle is {factor}, it must divide height and width"):
            PixelCodec((1, 4, 4), factor)
    with pytest.raises(ValueError, match=r"events have shape \(1, 1, 2, 2\), wanted \(B, 1, 4, 4\)"):
        PixelCodec((1, 4, 4)).decode(torch.zeros(1, 1, 2, 2))
    with pytest.raises(ValueError, match="codec is 'jpeg', it must be 'pixels' or 'latents'"):
        codec_from_dict({"kind": "jpeg"})


def test_latents_without_their_autoencoder_say_so() -> None:
    codec = codec_from_dict(LatentCodec(None, (4, 8, 8), (3, 16, 16)).to_dict())
    for call in (lambda: codec.encode(np.zeros((1, 16, 16, 3))), lambda: codec.decode(torch.zeros(1, 4, 8, 8))):
        with pytest.raises(ValueError, match="give the pipeline they belong to"):
            call()


class Overflowing:
    """An autoencoder one part of which gives NaN for the brightest picture, or for its latent."""

    device = torch.device("cpu")

    def __init__(self, part: str, dtype: torch.dtype) -> None:
        self.part, self.dtype = part, dtype

    def state_dict(self) -> dict[str, torch.Tensor]:
        return {}

    def encode(self, pixels: torch.Tensor) -> Any:
        latents = pixels[:, :1].mean(dim=(2, 3), keepdim=True)
        latents = torch.where((latents > 0.99) & (self.part == "encoder"), torch.nan, latents)
        return SimpleNamespace(latent_dist=SimpleNamespace(mode=lambda: latents))

    def decode(self, latents: torch.Tensor) -> Any:
        broken = (latents > 0.99) & (self.part == "decoder")
        return SimpleNamespace(sample=torch.where(broken, torch.inf, latents).expand(-1, 3, 2, 2))


@pytest.mark.parametrize(
    ("dtype", "words"),
    [
        (torch.bfloat16, r"in bfloat16, wanted it in float32$"),
        (torch.float32, r"in float32$"),
    ],
)
def test_nan_is_refused_with_part_and_precision(dtype: torch.dtype, words: str) -> None:
    white, grey = np.full((1, 2, 2, 3), 255, np.uint8), np.full((1, 2, 2, 3), 128, np.uint8)
    for part, call in (
        ("encoder", lambda codec: codec.encode(np.concatenate([grey, white]))),
        ("decoder", lambda codec: codec.decode(torch.tensor([0.5, 1.0]).view(2, 1, 1, 1))),
    ):
        codec = LatentCodec(Overflowing(part, dtype), (1, 1, 1), (3, 2, 2), scaling_factor=1)
        with pytest.raises(ValueError, match=f"the {part} of the autoencoder gives NaN or infinite numbers {words}"):
            call(codec)
        np.testing.assert_allclose(codec.decode(codec.encode(grey)), grey, atol=1)


def test_events_that_a_model_broke_are_refused() -> None:
    for codec in (PixelCodec((1, 4, 4)), LatentCodec(Overflowing("", torch.float32), (1, 4, 4), (3, 8, 8))):
        for broken in (torch.nan, torch.inf):
            with pytest.raises(ValueError, match="events hold NaN or inf: the model that drew them"):
                codec.decode(torch.full((1, 1, 4, 4), broken))
