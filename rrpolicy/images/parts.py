"""Parts of pipelines, read from a folder or from the hub one by one with classes named here, and their digests.

No pickle is opened, and nothing that a folder names is imported.
"""

from __future__ import annotations

import difflib
import hashlib
import importlib.util
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rrpolicy.common.messages import at, first_line, printable
from rrpolicy.common.schema import from_json, read_small
from rrpolicy.diffusion.schedulers import DISTILLED
from rrpolicy.diffusion.unet_encoder import import_diffusers
from rrpolicy.images.model_folders import check_folder

PICKLES = ("*.bin", "*.ckpt", "*.pt", "*.pth", "*.pkl")
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
INDEX_FILE = "model_index.json"
VARIANTS = ("fp16", "bf16", "fp32")  # of weights, read where there are no others
_STEMS = ("diffusion_pytorch_model", "model")  # of files of weights, as diffusers and transformers write them
HUB_SECONDS = 10.0  # that the hub has for an answer
_CHUNK = 2**22  # bytes that a digest reads at once

PIPELINES = {
    "ConsistencyModelPipeline": DISTILLED,
    "LatentConsistencyModelPipeline": DISTILLED,
    "LatentConsistencyModelImg2ImgPipeline": DISTILLED,
    "LDMPipeline": "denoises latents of a vector-quantised autoencoder, which would be taken for pixels",
    "LDMSuperResolutionPipeline": "denoises under a small picture that it enlarges, no picture alone",
    "LDMTextToImagePipeline": "has a text encoder of its own kind, wanted CLIP's",
    "KarrasVePipeline": "has levels of growing variance, wanted a table of betas",
    "ScoreSdeVePipeline": "has levels of growing variance, wanted a table of betas",
    "StableDiffusionDepth2ImgPipeline": "denoises under a depth map, wanted prompts alone",
    "StableDiffusionInpaintPipeline": "denoises under a mask, wanted prompts alone",
    "StableDiffusionInstructPix2PixPipeline": "denoises under a picture, wanted prompts alone",
    "StableDiffusionUpscalePipeline": "denoises under a small picture that it enlarges, wanted prompts alone",
    "WuerstchenDecoderPipeline": "decodes latents of another model, wanted one that makes pictures alone",
    "WuerstchenPriorPipeline": "makes latents for another model, wanted one that makes pictures alone",
}
"""Pipelines that are refused by their name in ``model_index.json``, and why."""


def quiet() -> None:
    """Keep the libraries' own messages off stderr, for programs."""
    for name in ("diffusers", "transformers"):
        logging.getLogger(name).setLevel(logging.ERROR)


def is_single_file(name: str | Path) -> bool:
    """
    Whether a name is that of a file of weights.

    :raises ValueError: for a file that may run code, or one of safetensors that is not there
    """
    path = Path(name)
    if path.suffix in {one.lstrip("*") for one in PICKLES} and not path.is_dir():
        fault = f"a {path.suffix} file is a pickle, which may run code: not opened, wanted safetensors"
        raise ValueError(at(path, fault))
    if path.suffix != ".safetensors" or path.is_dir():
        return False
    if not path.is_file():
        raise ValueError(at(path, "there is no such file"))
    return True


def has_part(name: str | Path, part: str) -> bool:
    """
    Whether a folder has a part of a pipeline; a hub's model is taken to have it.

    :raises ValueError: for a file, or something that is neither a folder nor a hub's name
    """
    path = Path(name)
    if path.is_dir():
        return (path / part).is_dir()
    if is_single_file(name):
        raise ValueError(at(name, "is one file of weights, wanted a folder"))
    if path.exists() or str(name).count("/") != 1 or len(path.parts) != 2 or str(name).startswith((".", "/", "~")):
        raise ValueError(f"{name} is neither a folder of a diffusers model nor a hub name owner/model")
    first, last = path.parts
    if Path(first).is_dir():
        raise ValueError(f"there is no folder {name}; as {first}/ is here, it is not taken for a hub name")
    for near in difflib.get_close_matches(first, [place.name for place in Path().iterdir()]):
        if (Path(near) / last).is_dir():
            raise ValueError(f"there is no folder {name}, but {near}/{last}")
    return True


def reachable(name: str | Path) -> str | Path:
    """
    Where a model is read from: its folder, the hub's name, or the local copy of a model while the hub is out of reach.

    :raises ValueError: for something that is neither, and for a hub's model that is neither there nor here
    """
    has_part(name, "")
    if Path(name).is_dir():
        return name
    import_diffusers()
    import huggingface_hub
    from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError

    reason = "HF_HUB_OFFLINE is set"
    if not huggingface_hub.constants.HF_HUB_OFFLINE:
        try:  # once, whatever a download would try
            huggingface_hub.HfApi().model_info(str(name), timeout=HUB_SECONDS)
            return name
        except RepositoryNotFoundError as error:
            raise ValueError(f"{name} is no folder, and the hub has no model of this name open to you") from error
        except HFValidationError as error:
            raise ValueError(f"{name} is no folder, and no name of the hub: {first_line(error)}") from error
        except _faults_of_networks() as error:
            reason = type(error).__name__
    try:
        return _folder_of(name)
    except ValueError as error:
        raise ValueError(
            f"cannot reach the hub ({reason}) and {name} is not in the local cache: give a folder, or "
            "download the model where there is a network"
        ) from error


def _faults_of_networks() -> tuple[type[Exception], ...]:
    """Exceptions that the hub's library raises, for either of the HTTP libraries that it uses."""
    httpx = sys.modules.get("httpx")
    return (OSError,) if httpx is None else (OSError, httpx.HTTPError)


def check_parts(name: str | Path, kind: str, parts: Sequence[str]) -> None:
    """
    Check that a pipeline folder has all parts of its kind.

    :raises ValueError: when a folder of a kind of pipeline lacks a part, naming it
    """
    for part in parts:
        if not has_part(name, part):
            raise ValueError(f"{name} is no {kind} folder: it lacks {part}/")


def clip_tokens(tokenizer: Any, prompts: Sequence[str], encoder: Any) -> Tensor:
    """Prompts (n, tokens) as CLIP's text encoder reads them, cut at its length."""
    length = min(tokenizer.model_max_length, encoder.config.max_position_embeddings)
    return token_ids(tokenizer, prompts, length).to(encoder.device)


def token_ids(tokenizer: Any, prompts: Sequence[str], length: int) -> Tensor:
    """Prompts (n, length), cut or filled up."""
    tokens = tokenizer(list(prompts), padding="max_length", max_length=length, truncation=True, return_tensors="pt")
    return tokens.input_ids


def check_pipeline(name: str | Path) -> None:
    """
    Refuse a folder of a pipeline whose parts would be taken for those of another.

    :raises ValueError: naming the folder and the reason
    """
    path = Path(name) / INDEX_FILE
    kind = pipeline_class(name)
    if reason := PIPELINES.get(str(kind)):
        raise ValueError(at(path, f"a {kind} {reason}"))
    if (Path(name) / "unet").is_dir() and (Path(name) / "vqvae").is_dir():
        raise ValueError(at(name, f"a unet beside a vqvae {PIPELINES['LDMPipeline']}"))


def pipeline_class(name: str | Path) -> str | None:
    """
    The class that a pipeline's index names; None without an index.

    :raises ValueError: for an index that cannot be read
    """
    kind = read_index(name).get("_class_name")
    return kind if isinstance(kind, str) else None


def read_index(name: str | Path) -> dict[str, Any]:
    """
    The entries of ``model_index.json``, none of which is imported; empty where there is none.

    :raises ValueError: for an index that cannot be read
    """
    path = Path(name) / INDEX_FILE
    if not Path(name).is_dir():
        try:
            index = import_diffusers().DiffusionPipeline.load_config(str(name))
        except Exception:  # a network alone has no index; a missing one is reported by its parts
            return {}
    elif not path.is_file():
        return {}
    else:
        try:
            index = from_json(read_small(path))
        except (OSError, ValueError) as error:
            raise ValueError(at(path, f"could not be read: {first_line(error)}")) from error
    return dict(index) if isinstance(index, dict) else {}


def load_part(kind: Any, name: str | Path, part: str | None, dtype: torch.dtype | str | None = None) -> Any:
    """
    One part of a pipeline, from safetensors only; weights of a variant such as ``fp16`` where there are no others.

    :param kind: its class, with diffusers' or transformers' ``from_pretrained``
    :param part: sub-folder; None for the folder itself
    :param dtype: precision; None for what has none
    :raises ValueError: naming the folder and what is wrong
    """
    refuse_pickles(name, part)
    options: dict[str, Any] = {}
    if dtype is not None and kind.__module__.startswith("transformers"):
        options = {"dtype": as_dtype(dtype), "use_safetensors": True}
    elif dtype is not None:  # diffusers warns on every load that it lacks accelerate, unless it is disabled
        frugal = importlib.util.find_spec("accelerate") is not None
        options = {"torch_dtype": as_dtype(dtype), "use_safetensors": True, "low_cpu_mem_usage": frugal}
    if part is not None:
        options["subfolder"] = part
    try:
        check_folder(kind, Path(name) / (part or ""))
        if dtype is not None and (variant := variant_of(Path(name) / (part or ""))) is not None:
            options["variant"] = variant
        loaded = kind.from_pretrained(str(name), **options)
        # weights may be stored in several precisions; diffusers' own method would write to stderr
        kept = getattr(kind, "_keep_in_fp32_modules", None)  # T5, some of whose layers overflow in half precision
        loaded = loaded if dtype is None or kept else nn.Module.to(loaded, as_dtype(dtype))
        if dtype is not None:
            check_finite(loaded)
        return loaded
    except Exception as error:  # neither library documents what a damaged folder raises
        where = str(name) if part is None else f"{name}/{part}"
        raise ValueError(at(where, f"could not be read as a {kind.__name__}: {first_line(error)}")) from error


def check_finite(network: nn.Module) -> None:
    """
    Check that all weights of a network are finite.

    :raises ValueError: for a weight that is NaN or infinite, as some are in half precision
    """
    for name, parameter in network.named_parameters():
        if not bool(torch.isfinite(parameter).all()):
            precision = str(parameter.dtype).removeprefix("torch.")
            raise ValueError(f"its weight {printable(name, 100)} holds NaN or infinite numbers in {precision}")


def refuse_pickles(name: str | Path, part: str | None) -> None:
    """
    Refuse a folder whose weights are stored as pickles only.

    :raises ValueError: for a folder whose weights are pickles only
    """
    folder = Path(name) / (part or "")
    if not folder.is_dir() or any(folder.glob("*.safetensors")):
        return
    pickles = sorted(path.name for pattern in PICKLES for path in folder.glob(pattern))
    if pickles:
        raise ValueError(
            f"{folder} holds its weights as pickles only ({', '.join(pickles[:3])}), which may run code: not opened; "
            "save the model with safe_serialization=True"
        )


# ---------------------------------------------------------------------- weights


def variant_of(folder: Path) -> str | None:
    """The variant in which a folder has its weights; None where it has them without one, or has none."""
    return next((variant for variant in (None, *VARIANTS) if _first_file(folder, variant) is not None), None)


def _first_file(folder: Path, variant: str | None) -> Path | None:
    """The file of weights, or the index of several, under the names that both libraries look for."""
    mark = "" if variant is None else f".{variant}"
    names = [
        f"{stem}{ending}"
        for stem in _STEMS
        for ending in (f"{mark}.safetensors", f".safetensors.index{mark}.json", f"{mark}.safetensors.index.json")
    ]
    return next((folder / name for name in names if (folder / name).is_file()), None)


def digests_of(name: str | Path, parts: Sequence[str]) -> dict[str, str]:
    """
    SHA-256 of the files of weights that :func:`load_part` has read, as the hub shows them.

    :param name: the folder; or a hub's name, whose files lie in the hub's cache by now
    :param parts: sub-folders; ``""`` for the folder itself
    :return: ``{"unet/diffusion_pytorch_model.safetensors": "9f86d0..."}``
    :raises ValueError: for files that cannot be read
    """
    folder, found = _folder_of(name), {}
    for part in parts:
        first = _first_file(folder / part, variant_of(folder / part))
        try:
            for path in [] if first is None else _files_of(first):
                found[path.relative_to(folder).as_posix()] = file_digest(path)
        except (OSError, ValueError) as error:
            raise ValueError(at(folder / part, f"weights could not be read: {first_line(error)}")) from error
    return found


def file_digest(path: Path) -> str:
    """SHA-256 of a file, read in parts."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while part := file.read(_CHUNK):
            digest.update(part)
    return digest.hexdigest()


def weights_digest(module: nn.Module) -> str:
    """
    SHA-256 of a network's names, shapes and weights in float32: the same for every file that holds equal numbers.

    :param module: in the precision in which its weights are stored, or a higher one
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(f"{name} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _files_of(first: Path) -> list[Path]:
    if first.suffix != ".json":
        return [first]
    index = from_json(read_small(first))
    return [first.parent / name for name in sorted(set(index["weight_map"].values()))]  # names: `model_folders`


def _folder_of(name: str | Path) -> Path:
    if Path(name).is_dir():
        return Path(name)
    try:
        import huggingface_hub

        return Path(huggingface_hub.snapshot_download(str(name), local_files_only=True))
    except Exception as error:
        raise ValueError(at(name, f"its weights are not in the hub's cache: {first_line(error)}")) from error


# ---------------------------------------------------------------------- arguments


def as_dtype(dtype: torch.dtype | str) -> torch.dtype:
    """
    A torch dtype by its name; a dtype is returned as it is.

    :raises ValueError: for a name that is not known
    """
    if isinstance(dtype, torch.dtype):
        return dtype
    if dtype not in DTYPES:
        raise ValueError(f"dtype is {dtype!r}, it must be one of {sorted(DTYPES)}")
    return DTYPES[dtype]
