"""Exported files by whatever they hold; torch is not imported."""

from __future__ import annotations

import os

from rrpolicy.export.actors import OnnxActor
from rrpolicy.export.policy import OnnxPolicy
from rrpolicy.export.rewards import OnnxReward
from rrpolicy.export.session import GraphFile

Exported = OnnxPolicy | OnnxActor | OnnxReward
_LOADERS: dict[str, type[Exported]] = {"planner": OnnxPolicy, "policy": OnnxActor, "reward": OnnxReward}


def load_onnx(path: str | os.PathLike[str], n_threads: int = 1) -> Exported:
    """
    A planner, a policy or a reward from an ONNX file.

    :param path: that `export_onnx` wrote
    :param n_threads: of ONNX Runtime
    :raises FileNotFoundError: when there is no such file
    :raises ValueError: for a file that cannot be used, naming file and fault, see `GraphFile`
    """
    kind = GraphFile(path, *_LOADERS, n_threads=n_threads).about["kind"]
    return _LOADERS[kind](path, n_threads)
