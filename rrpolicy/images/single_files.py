"""Checkpoints in one file of safetensors, with names of the original code or of diffusers, and no configuration.

A folder of the same kind holds what the file does not: configurations, tokenizers and noise levels. Every tensor of the
file has to be a weight of one of the networks, and every weight has to be there, so that none is misread silently.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import safetensors
import torch
from torch import Tensor

from rrpolicy.common.messages import at, first_line, printable
from rrpolicy.diffusion.process import DiffusionProcess
from rrpolicy.images.model_folders import check_folder, check_types
from rrpolicy.images.original_names import (
    ENCODERS,
    PREFIXES,
    UNET,
    VAE,
    Source,
    open_clip_source,
    unet_source,
    vae_source,
)
from rrpolicy.images.parts import check_finite

LEVELS = "alphas_cumprod"  # in files of the original code
VELOCITY = ("v_pred", "ztsnr")  # empty tensors by which files mark what their network predicts
_TOLERANCE = 1e-3
_PASSED_OVER = re.compile(
    r"model_ema\..+|alphas_cumprod\w*|betas|(sqrt|log)_\w+|posterior_\w+|lvlb_weights|logvar|scale_factor|"
    r"denoiser\.sigmas|.+\.(position_ids|logit_scale)|cond_stage_model\.model\.(text_projection|attn_mask)|"
    r"conditioner\.embedders\.1\.model\.attn_mask"
)
"""Averages beside the weights, tables, and parts of text encoders that pictures do not depend on."""
_LAST_LAYER = "cond_stage_model.model.transformer.resblocks.{}."  # of OpenCLIP, which Stable Diffusion 2 does not use


class SingleFile:
    """
    A file of weights.

    :param path: of safetensors
    :raises ValueError: for a file that is damaged, empty, or holds other types than those of weights
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        try:
            check_types(self.path)
            with safetensors.safe_open(self.path, framework="pt") as file:
                self.names = frozenset(file.keys())
        except (OSError, ValueError, safetensors.SafetensorError) as error:
            raise ValueError(at(self.path, f"could not be read: {first_line(error)}")) from error
        if not self.names:
            raise ValueError(at(self.path, "holds nothing"))

    def read(self, sources: Mapping[str, Source]) -> dict[str, Tensor]:
        """
        Tensors by the network's names for them.

        :raises ValueError: when one is missing, naming it
        """
        missing = sorted({one.name for one in sources.values()} - self.names)
        if missing:
            more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
            raise ValueError(f"it lacks {printable(missing[0])}{more}")
        with safetensors.safe_open(self.path, framework="pt") as file:
            return {key: one.change(file.get_tensor(one.name)) for key, one in sources.items()}

    def check_used(self, used: Iterable[str], prefixes: Iterable[str] = ("",)) -> None:
        """
        Check that all tensors of the file were read.

        :param used: names of tensors that were read
        :param prefixes: of the tensors that should have been
        :raises ValueError: for others, naming the first
        """
        begins = tuple(prefixes)
        left = sorted(
            name for name in self.names - set(used) if name.startswith(begins) and not _PASSED_OVER.fullmatch(name)
        )
        if left:
            more = f" and {len(left) - 1} more" if len(left) > 1 else ""
            raise ValueError(f"it holds {printable(left[0])}{more}, which such a model does not have")

    def check_levels(self, process: DiffusionProcess) -> None:
        """
        Compare noise levels stored in a file with those of the folder beside it.

        :raises ValueError: for others
        """
        if process.prediction != "v" and (told := [name for name in VELOCITY if name in self.names]):
            fault = f"its entry {told[0]} says that it predicts v, the scheduler's configuration {process.prediction}"
            raise ValueError(at(self.path, fault))
        if LEVELS in self.names:
            table = self.read({LEVELS: Source(LEVELS)})[LEVELS].double()
            mine = process.alpha(torch.arange(process.n_diffusion_steps)).double() ** 2
            n = len(mine)
            if len(table) not in (n, n + 1) or not torch.allclose(table[:n], mine, rtol=0, atol=_TOLERANCE):
                fault = "its noise levels (alphas_cumprod) are not those of the scheduler's configuration"
                raise ValueError(at(self.path, fault))


def sources_of(network: Any, part: str, names: frozenset[str]) -> dict[str, Source]:
    """Where the tensors of a network lie in a file with these names, in the layout that fits best."""
    keys, config = list(network.state_dict()), network.config
    layouts = [{key: Source(f"{prefix}{key}") for key in keys} for prefix in ("", f"{part}.")]
    if part == "unet" and type(network).__name__ == "UNet2DConditionModel":
        found = {key: source for key in keys if (source := unet_source(key, config)) is not None}
        if len(found) == len(keys):
            layouts += [{key: Source(prefix + one.name) for key, one in found.items()} for prefix in (UNET, "")]
    elif part == "vae":
        layouts.append({key: Source(VAE + (one := vae_source(key, config)).name, one.change) for key in keys})
    for prefix in ENCODERS.get(part, ()):
        below = [open_clip_source(key) if prefix.endswith("model.") else Source(key) for key in keys]
        layouts.append({key: Source(prefix + one.name, one.change) for key, one in zip(keys, below, strict=True)})
    return max(layouts, key=lambda one: len({source.name for source in one.values()} & names))


def with_weights(network: Any, path: str | Path, part: str) -> Any:
    """
    A copy of a network with the weights of a file, which may hold a whole pipeline.

    :param network: a diffusers network, on its device and in its precision
    :param path: file of safetensors
    :param part: what the network is called in its pipeline
    :raises ValueError: for a file that does not hold such a network
    """
    file, kind = SingleFile(path), type(network).__name__
    try:
        sources = sources_of(network, part, file.names)
        begins = (UNET,) if any(one.name.startswith(UNET) for one in sources.values()) else ("",)
        state = file.read(sources)
        file.check_used((one.name for one in sources.values()), begins)
        changed = copy.deepcopy(network)
        changed.load_state_dict(state)
        check_finite(changed)
    except (RuntimeError, ValueError, safetensors.SafetensorError) as error:
        raise ValueError(at(path, f"could not be read as a {kind} such as the base's: {_fault(error)}")) from error
    return changed


def read_networks(folder: str | Path, kinds: Mapping[str, Any], path: str | Path) -> dict[str, Any]:
    """
    The networks of a pipeline, whose weights all lie in one file.

    :param folder: of a pipeline with the same configurations; its own weights are not read
    :param kinds: class of each network by its part's name
    :param path: file of safetensors
    :raises ValueError: for a folder that is none, or a file that holds something else
    """
    if not Path(folder).is_dir():
        raise ValueError(f"{folder} is no folder, wanted one with the configurations of {path}")
    file, networks, used = SingleFile(path), {}, set[str]()
    for part, kind in kinds.items():
        network = _made(kind, Path(folder) / part, file.path)
        try:
            sources = sources_of(network, part, file.names)
            network.load_state_dict(file.read(sources), assign=True)
            check_finite(network)
        except (RuntimeError, ValueError, safetensors.SafetensorError) as error:
            raise ValueError(at(path, f"could not be read as the {part} of {folder}: {_fault(error)}")) from error
        used |= {one.name for one in sources.values()}
        used |= _unasked(network, file.names)
        networks[part] = network
    try:
        file.check_used(used | set(VELOCITY))
        if not any(name.startswith(PREFIXES) for name in used):
            raise ValueError("it is not laid out as by the original code")
    except ValueError as error:
        raise ValueError(at(path, f"could not be read as a pipeline such as {folder}: {error}")) from error
    return networks


def _made(kind: Any, folder: Path, path: Path) -> Any:
    """A network of a configuration alone, whose weights are to come from a file that is large enough for them."""
    try:
        if not (folder / "config.json").is_file():
            raise FileNotFoundError("lacks config.json")
        check_folder(kind, folder, path.stat().st_size)
        if kind.__module__.startswith("transformers"):  # has tables that are no weights, which the meta device loses
            return kind(kind.config_class.from_pretrained(str(folder)))
        with torch.device("meta"):
            return kind.from_config(kind.load_config(str(folder)))
    except Exception as error:  # neither library documents what a damaged folder raises
        raise ValueError(at(folder, f"could not be read as a {kind.__name__}: {first_line(error)}")) from error


def _unasked(network: Any, names: frozenset[str]) -> set[str]:
    """The last layer of an OpenCLIP text encoder, whose output Stable Diffusion 2 does not use."""
    n_layers = getattr(network.config, "num_hidden_layers", None)
    return set() if n_layers is None else {name for name in names if name.startswith(_LAST_LAYER.format(n_layers))}


def _fault(error: Exception) -> str:
    """The error of a network that does not accept a file's weights: the first line of its message."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[1] if len(lines) > 1 and lines[0].startswith("Error(s) in loading") else first_line(error)
