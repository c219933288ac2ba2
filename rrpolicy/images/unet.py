"""Unconditional image diffusion models of ``diffusers`` as score models: a network, its noise levels and a codec.

Folders of a DDPMPipeline or of a UNet2DModel are read part by part with classes named here: no pickle is opened, and
nothing that a folder names is imported.
"""

from __future__ import annotations

import difflib
import importlib.util
import json
import logging
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn

from rrpolicy.common.kinds import CodecFields
from rrpolicy.common.messages import at, printable
from rrpolicy.common.schema import checked, from_json, read_small
from rrpolicy.diffusion.process import DiffusionProcess, Prediction
from rrpolicy.diffusion.unet_encoder import import_diffusers
from rrpolicy.images.codec import Codec, PixelCodec, codec_from_dict
from rrpolicy.images.model_folders import check_folder

CODEC_FILE = "rrpolicy.json"  # beside model_index.json: {"codec": {"shape": [1, 16, 16], "unshuffle": 2}}
PICKLES = ("*.bin", "*.ckpt", "*.pt", "*.pth", "*.pkl")
PREDICTIONS: dict[str, Prediction] = {"epsilon": "eps", "sample": "x0", "v_prediction": "v"}
MAX_SIDE = 4096  # of an event, in pixels or entries of a latent
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


class UNetScoreModel:
    """
    A ``diffusers`` UNet2DModel as a score model; answers on the device and in the precision that it is asked in.

    :param unet: the network, on the device and in the precision it is to compute in
    :param process: noise levels it was trained with, and what it predicts
    :param codec: images to its events
    :param batch_size: events per call of the network, which bounds memory
    :raises ValueError: for a network that wants class labels, or whose channels and size are not the codec's events
    """

    def __init__(self, unet: Any, process: DiffusionProcess, codec: Codec, batch_size: int = 256) -> None:
        config = unet.config
        if config.get("class_embed_type") is not None or config.get("num_class_embeds") is not None:
            raise ValueError("the UNet is conditioned on class labels, wanted an unconditional one")
        shape = event_shape_of(unet)
        if codec.event_shape != shape:
            raise ValueError(f"the UNet's events have shape {shape}, the codec's have {codec.event_shape}")
        self.unet = unet
        self.process = process
        self.codec = codec
        self.batch_size = batch_size

    @classmethod
    def from_pretrained(
        cls,
        name: str | Path,
        process: DiffusionProcess | None = None,
        codec: Codec | None = None,
        device: torch.device | str = "cpu",
        dtype: torch.dtype | str = torch.float32,
    ) -> Self:
        """
        Read a DDPMPipeline folder, a UNet2DModel folder, or a model of the hub (``owner/name``).

        :param name: the folder, or the hub's name
        :param process: noise levels; None: those of the folder's scheduler
        :param codec: None: that of ``rrpolicy.json`` in the folder, else pixels of the UNet's sample size
        :param device: where the network computes
        :param dtype: its precision
        :raises ValueError: without the extra, or for a folder that is none, naming it and what it lacks
        """
        diffusers, device = import_diffusers(), as_device(device)
        whole = has_part(name, "unet")
        unet = load_part(diffusers.UNet2DModel, name, "unet" if whole else None, dtype)
        scheduler = None if process is not None else load_scheduler(name, "scheduler" if whole else None)
        own = codec or read_codec(name)
        try:
            levels = process_of(scheduler) if process is None else process
            return cls(unet.to(device).eval().requires_grad_(False), levels, own or PixelCodec(event_shape_of(unet)))
        except (RuntimeError, TypeError, ValueError) as error:
            raise ValueError(at(name, _first_line(error))) from error

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

    def fingerprint(self) -> str:
        """Equal for two models that share shape, codec and noise levels."""
        return f"event_shape={self.event_shape};codec={json.dumps(self.codec.to_dict())};process={self.process}"

    def _output(self, x_t: Tensor, t: Tensor) -> Tensor:
        factor = 2 ** (len(self.unet.config.block_out_channels) - 1)
        if any(side % factor for side in self.event_shape[1:]):
            raise ValueError(f"the UNet halves its events {factor.bit_length() - 1} times, wanted a sample_size that "
                             f"{factor} divides, got {self.event_shape[1]}×{self.event_shape[2]}")  # fmt: skip
        weights = next(self.unet.parameters())
        try:
            output = self.unet(x_t.to(weights.device, weights.dtype), t.to(weights.device)).sample
        except torch.OutOfMemoryError:
            raise
        except (RuntimeError, TypeError) as error:  # blocks of a folder's choice, which need not fit each other
            fault = f"the UNet cannot denoise events of shape {self.event_shape}: {_first_line(error)}"
            raise ValueError(fault) from error
        return output.to(x_t)


def event_shape_of(unet: Any) -> tuple[int, int, int]:
    """
    (C, H, W) of what a UNet denoises.

    :raises ValueError: for one that predicts something else than it takes, or does not tell its size
    """
    channels, size = unet.config.in_channels, unet.config.sample_size
    if unet.config.out_channels != channels:
        raise ValueError(f"the UNet has {channels} channels in and {unet.config.out_channels} out, wanted as many")
    if size is None:
        raise ValueError("the UNet's config has no sample_size, wanted the height and width that it was trained at")
    sides = (size, size) if isinstance(size, int) else size
    if not isinstance(sides, list | tuple) or len(sides) != 2 or not all(map(_is_side, sides)):
        raise ValueError(f"the UNet's sample_size is {printable(size, 60)}, wanted one or two whole numbers of 1 to "
                         f"{MAX_SIDE}")  # fmt: skip
    return int(channels), sides[0], sides[1]


def _is_side(value: object) -> bool:
    return type(value) is int and 1 <= value <= MAX_SIDE


# ---------------------------------------------------------------------- parts of folders, shared by all bridges


def quiet() -> None:
    """Keep the libraries' own messages off stderr, for programs."""
    for name in ("diffusers", "transformers"):
        logging.getLogger(name).setLevel(logging.ERROR)


def has_part(name: str | Path, part: str) -> bool:
    """
    Whether a folder has a part of a pipeline; a hub's model is taken to have it.

    :raises ValueError: for a file, or something that is neither a folder nor a hub's name
    """
    path = Path(name)
    if path.is_dir():
        return (path / part).is_dir()
    if path.exists() or str(name).count("/") != 1 or len(path.parts) != 2 or str(name).startswith((".", "/", "~")):
        raise ValueError(f"{name} is neither a folder of a diffusers model nor a hub name owner/model")
    first, last = path.parts
    if Path(first).is_dir():
        raise ValueError(f"there is no folder {name}; as {first}/ is here, it is not taken for a hub name")
    for near in difflib.get_close_matches(first, [place.name for place in Path().iterdir()]):
        if (Path(near) / last).is_dir():
            raise ValueError(f"there is no folder {name}, but {near}/{last}")
    return True


def load_part(kind: Any, name: str | Path, part: str | None, dtype: torch.dtype | str | None = None) -> Any:
    """
    One part of a pipeline, from safetensors only.

    :param kind: its class, with diffusers' or transformers' ``from_pretrained``
    :param part: sub-folder; None for the folder itself
    :param dtype: precision; None for what has none
    :raises ValueError: naming the folder and what is wrong
    """
    refuse_pickles(name, part)
    options: dict[str, Any] = {}
    if dtype is not None and kind.__module__.startswith("transformers"):
        options = {"dtype": as_dtype(dtype), "use_safetensors": True}
    elif dtype is not None:  # diffusers warns on every load that it lacks accelerate, unless told to do without
        frugal = importlib.util.find_spec("accelerate") is not None
        options = {"torch_dtype": as_dtype(dtype), "use_safetensors": True, "low_cpu_mem_usage": frugal}
    if part is not None:
        options["subfolder"] = part
    try:
        check_folder(kind, Path(name) / (part or ""))
        loaded = kind.from_pretrained(str(name), **options)
        # weights may be stored in several precisions; diffusers' own method would write to stderr
        return loaded if dtype is None else nn.Module.to(loaded, as_dtype(dtype))
    except Exception as error:  # neither library documents what a damaged folder raises
        where = str(name) if part is None else f"{name}/{part}"
        raise ValueError(at(where, f"could not be read as a {kind.__name__}: {_first_line(error)}")) from error


def refuse_pickles(name: str | Path, part: str | None) -> None:
    """:raises ValueError: for a folder whose weights are pickles only"""
    folder = Path(name) / (part or "")
    if not folder.is_dir() or any(folder.glob("*.safetensors")):
        return
    pickles = sorted(path.name for pattern in PICKLES for path in folder.glob(pattern))
    if pickles:
        raise ValueError(
            f"{folder} holds its weights as pickles only ({', '.join(pickles[:3])}), which may run code: not opened; "
            "save the model with safe_serialization=True"
        )


def load_scheduler(name: str | Path, part: str | None) -> Any:
    """The noise levels' configuration, whatever scheduler the folder names."""
    return load_part(import_diffusers().DDPMScheduler, name, part)


def process_of(scheduler: Any) -> DiffusionProcess:
    """
    The process of a ``diffusers`` scheduler: a named one where the levels agree, else its table.

    :raises ValueError: for a prediction that is not known, or levels without any signal
    """
    kind = scheduler.config.prediction_type
    if kind not in PREDICTIONS:
        raise ValueError(f"the scheduler's prediction_type is {kind!r}, it must be one of {sorted(PREDICTIONS)}")
    table = scheduler.alphas_cumprod.double()
    named = {"squaredcos_cap_v2": "cosine", "linear": "linear"}.get(scheduler.config.beta_schedule)
    if named is not None and (named == "cosine" or len(table) > 20):
        process = DiffusionProcess(len(table), named, PREDICTIONS[kind])
        alphas_cumprod = process.alpha(torch.arange(len(table))).double() ** 2
        if torch.allclose(alphas_cumprod, table, rtol=1e-4, atol=1e-6):
            return process
    return DiffusionProcess.from_alphas_cumprod(table.tolist(), PREDICTIONS[kind])


def read_codec(name: str | Path) -> Codec | None:
    """
    The codec that a folder tells of itself; None when it does not.

    :raises ValueError: for a file that does not hold one
    """
    path = Path(name) / CODEC_FILE
    if not path.is_file():
        return None
    try:
        values = checked(CodecFields, from_json(read_small(path)), path.name).codec
        return codec_from_dict(values.model_dump())
    except (OSError, ValueError) as error:
        raise ValueError(at(path, f"holds no codec: {_first_line(error)}")) from error


def as_dtype(dtype: torch.dtype | str) -> torch.dtype:
    """:raises ValueError: for a name that is not known"""
    if isinstance(dtype, torch.dtype):
        return dtype
    if dtype not in DTYPES:
        raise ValueError(f"dtype is {dtype!r}, it must be one of {sorted(DTYPES)}")
    return DTYPES[dtype]


def as_device(device: torch.device | str) -> torch.device:
    """:raises ValueError: for a device that is not here"""
    try:
        return torch.empty(0, device=device).device
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"device is {str(device)!r}, which is not here: {_first_line(error)}") from error


def _first_line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
