"""The networks of a pipeline with prompts, ready to compute."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from rrpolicy.common.device import resolve
from rrpolicy.diffusion.schedulers import DISTILLED
from rrpolicy.images.parts import as_dtype, check_pipeline, load_part
from rrpolicy.images.single_files import read_networks


def load_networks(
    name: str | Path,
    kinds: Mapping[str, Any],
    device: torch.device | str,
    dtype: torch.dtype | str,
    weights: str | Path | None = None,
) -> dict[str, Any]:
    """
    The networks of a pipeline by their folders, ready to compute; the autoencoder in single precision.

    :param kinds: class of each folder's network
    :param weights: one file of all weights, in the place of those of the folder
    :raises ValueError: for a pipeline that is refused by its name, and as :func:`load_part`
    """
    check_pipeline(name)
    where, precision = resolve(device), as_dtype(dtype)
    if weights is not None:
        parts = read_networks(name, kinds, weights)
        for part, network in parts.items():
            nn.Module.to(network, torch.float32 if part == "vae" else precision)
    else:
        parts = {
            part: load_part(kind, name, part, torch.float32 if part == "vae" else precision)
            for part, kind in kinds.items()
        }
    return {part: network.to(where).eval().requires_grad_(False) for part, network in parts.items()}


def check_score(unet: Any) -> None:
    """
    Check that a UNet predicts a score: that it was not distilled with its guidance.

    :raises ValueError: for a UNet that was distilled with its guidance
    """
    if unet.config.get("time_cond_proj_dim") is not None:
        raise ValueError(f"the UNet takes the guidance as a number, as LCM's does: it {DISTILLED}")


def import_transformers() -> Any:
    """
    The package ``transformers``.

    :raises ValueError: when the extra ``images`` is not installed
    """
    try:
        import transformers
    except ImportError as error:
        raise ValueError(f"prompts need the images extra: pip install 'rrpolicy[images]' ({error})") from error
    return transformers
