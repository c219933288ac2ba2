"""An exported policy without planning, such as a distilled one, that acts with ONNX Runtime and numpy alone."""

from __future__ import annotations

import os
from typing import Any

import numpy as np

from rrpolicy.common.boxes import box_from_dict
from rrpolicy.common.typing import Array, State
from rrpolicy.export.session import GraphFile


class OnnxActor:
    """
    A policy of Stable-Baselines3 from an ONNX file; it acts by its mode.

    :param path: that `export_onnx` wrote of an `Sb3Agent`
    :param n_threads: of ONNX Runtime
    :raises FileNotFoundError: when there is no such file
    :raises ValueError: for a file that cannot be used, naming file and fault, see `GraphFile`
    """

    def __init__(self, path: str | os.PathLike[str], n_threads: int = 1) -> None:
        self.file = GraphFile(path, "policy", n_threads=n_threads)
        with self.file.described():
            self.observation_space = box_from_dict(self.file.about["observation_space"])
            self.action_space = box_from_dict(self.file.about["action_space"])
        self.file.check_graphs({"observation"}, {"action"})

    @property
    def card(self) -> dict[str, Any]:
        """What the file says of itself."""
        return self.file.card

    def predict(
        self,
        observation: Any,
        state: State | None = None,
        episode_start: Array | None = None,
        deterministic: bool = True,
    ) -> tuple[Array, None]:
        """
        As SB3's ``predict``; there is no memory, and nothing is drawn.

        :param observation: (obs_dim,) or (n_envs, obs_dim)
        :raises ValueError: for a wrong shape, NaN or infinite observations
        """
        values = np.asarray(observation, np.float32)
        wanted = self.observation_space.shape
        if values.ndim not in (1, 2) or values.shape[-1:] != wanted or not np.isfinite(values).all():
            raise ValueError(
                f"observation has shape {values.shape}, wanted finite values of shape {wanted} or (n_envs, {wanted[0]})"
            )
        actions = self.file.run(["action"], {"observation": values.reshape(-1, *wanted)})[0]
        return actions if values.ndim == 2 else actions[0], None
