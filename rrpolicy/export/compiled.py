"""Planners whose plans are computed by ONNX Runtime inside the library: exported once, kept by digest, run."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rrpolicy import export
from rrpolicy.common.files import atomic_write
from rrpolicy.common.folders import cache_folder
from rrpolicy.common.version import __version__
from rrpolicy.export.session import GraphFile, PlanGraph


def digest_of(config: Mapping[str, Any], tensors: Mapping[str, Mapping[str, Tensor]]) -> str:
    """
    The name of a planner's graph: equal where weights, options, versions and the library's own code are.

    :param config: JSON values
    :param tensors: groups of weights
    """
    content = hashlib.sha256(json.dumps([config, __version__, torch.__version__], sort_keys=True).encode())
    content.update(_code())
    for group, named in sorted(tensors.items()):
        for name, tensor in sorted(named.items()):
            values = tensor.detach().cpu().contiguous()
            content.update(f"{group}/{name} {values.dtype} {tuple(values.shape)}".encode())
            content.update(values.numpy().tobytes())
    return content.hexdigest()[:32]


@cache
def _code() -> bytes:
    """A digest of the modules that plans are made by."""
    library = Path(__file__).parents[1]
    content = hashlib.sha256()
    for package in ("agents", "data", "diffusion", "export", "rewards"):
        for path in sorted((library / package).glob("*.py")):
            content.update(path.read_bytes())
    return content.digest()


def plan_graph(planner: Any, digest: str | None) -> PlanGraph:
    """
    A planner's plans by ONNX Runtime.

    :param planner: an `agents.planning.Planner` on the CPU
    :param digest: under which its graph is kept; None: it is not
    :raises ValueError: without the extra ``fast``, or for a planner that cannot be exported
    """
    kept = None if digest is None else cache_folder() / f"plan-{digest}.onnx"
    file = None
    if kept is not None and kept.is_file():
        with suppress(ValueError):  # where it is damaged it is written anew
            file = GraphFile(kept, "planner", n_threads=torch.get_num_threads())
    if file is None:
        content = export.planner_file(planner)
        file = GraphFile.from_bytes(content, "the compiled planner", ["planner"], torch.get_num_threads())
        if kept is not None:
            with atomic_write(kept) as unfinished:
                unfinished.write_bytes(content)
    return PlanGraph(file, planner.layout.n_observation_rows)
