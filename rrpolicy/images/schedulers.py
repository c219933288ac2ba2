"""Scheduler folders of ``diffusers``: their configurations as noise levels, and the tables of what is read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rrpolicy.common.messages import at, first_line
from rrpolicy.diffusion.process import DiffusionProcess
from rrpolicy.diffusion.schedulers import REFUSED, SUPPORTED, process_of_config
from rrpolicy.diffusion.unet_encoder import import_diffusers
from rrpolicy.images.model_folders import check_folder

CONFIG_FILE = "scheduler_config.json"


def load_process(name: str | Path, part: str | None) -> DiffusionProcess:
    """
    The noise levels of a folder or of a model of the hub.

    :param part: sub-folder of the scheduler; None for the folder itself
    :raises ValueError: naming the configuration, and why its scheduler is refused
    """
    config = load_config(name, part)
    try:
        return process_of_config(config)
    except ValueError as error:
        raise ValueError(at(Path(name) / (part or "") / CONFIG_FILE, error)) from error


def load_config(name: str | Path, part: str | None) -> dict[str, Any]:
    """
    A scheduler's configuration.

    :raises ValueError: for one that is missing or damaged, naming the folder
    """
    kind = import_diffusers().DDPMScheduler
    try:
        check_folder(kind, Path(name) / (part or ""))
        return dict(kind.load_config(str(name), **({} if part is None else {"subfolder": part})))
    except Exception as error:  # the library does not document what a damaged folder raises
        where = str(name) if part is None else f"{name}/{part}"
        raise ValueError(at(where, f"could not be read as a {kind.__name__}: {first_line(error)}")) from error


def markdown() -> str:
    """Both tables for the documentation."""
    rows = [f"| `{kind}` | read as its table of betas |" for kind in SUPPORTED]
    rows += [f"| `{kind}` | refused: it {reason} |" for kind, reason in REFUSED.items()]
    rows.append("| any other | refused as unknown |")
    return "\n".join(["| `_class_name` of the scheduler | |", "|---|---|", *rows])
