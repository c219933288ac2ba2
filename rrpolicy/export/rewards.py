"""An exported reward that scores with ONNX Runtime and numpy alone; torch is not imported."""

from __future__ import annotations

import os
from typing import Any

import numpy as np

from rrpolicy.common.arguments import whole
from rrpolicy.common.messages import printable
from rrpolicy.common.typing import Array
from rrpolicy.data.layout import TrajectoryLayout
from rrpolicy.export.session import GraphFile


class OnnxReward:
    """
    A reward from an ONNX file, in nats.

    :param path: that `export_onnx` wrote of a `RelativeReward`
    :param n_threads: of ONNX Runtime
    :raises FileNotFoundError: when there is no such file
    :raises ValueError: for a file that cannot be used, naming file and fault, see `GraphFile`
    """

    def __init__(self, path: str | os.PathLike[str], n_threads: int = 1) -> None:
        self.file = GraphFile(path, "reward", n_threads=n_threads)
        about = self.file.about
        with self.file.described():
            self.event_shape = tuple(whole("event_shape", size, 1) for size in about["event_shape"])
            self.n_diffusion_steps = whole("n_diffusion_steps", about["n_diffusion_steps"], 2)
            self.heads = tuple(about["heads"])
            layout = about["layout"]
            self.layout = None if layout is None else TrajectoryLayout.from_dict(layout)
        self.file.check_graphs({"x_t", "t"}, {"rho"})

    @property
    def card(self) -> dict[str, Any]:
        """What the file says of itself."""
        return self.file.card

    def __call__(self, x_t: Array, t: Array) -> Array:
        """
        ρ of noised events.

        :param x_t: (B, *event_shape), normalised
        :param t: levels (B,), whole numbers
        :return: (B,) in nats
        :raises ValueError: for a wrong shape or a level that there is not
        """
        events, levels = np.asarray(x_t, np.float32), np.asarray(t)
        if events.shape[1:] != self.event_shape or levels.shape != events.shape[:1] or levels.dtype.kind not in "iu":
            raise ValueError(
                f"x_t has shape {events.shape} and t {levels.dtype} {levels.shape}, wanted (B, "
                f"{', '.join(map(str, self.event_shape))}) and B whole numbers"
            )
        if not ((levels >= 0) & (levels < self.n_diffusion_steps)).all():
            raise ValueError(f"t holds {printable(levels)}, wanted levels of 0..{self.n_diffusion_steps - 1}")
        return self.file.run(["rho"], {"x_t": events, "t": levels.astype(np.int64)})[0]

    def predict(self, observations: Array, actions: Array | None = None) -> Array:
        """
        Reward of clean data in environment units, as `RelativeReward.predict` gives it at its default levels.

        :param observations: single steps (n, obs_dim), where there is a step head, or windows (n, H, obs_dim)
        :param actions: (n, act_dim) or (n, H, act_dim); not needed where actions are not scored
        :return: (n,) in nats
        :raises ValueError: for wrong shapes, NaN, or single steps where there is no step head
        """
        if self.layout is None:
            raise ValueError("this reward has no layout, so it has no environment units; call it on x_t")
        values = np.asarray(observations, np.float32)
        what = "window" if values.ndim == 3 else "step"
        if what == "step" and "step" not in self.heads:
            raise ValueError(f"single steps need a step head, this reward has {self.heads}")
        feeds = {f"{what}_observations": self._checked("observations", values, what, self.layout.observation_dim)}
        if self.layout.plan_actions:
            given: Any = np.zeros(0) if actions is None else actions
            acted = np.asarray(given, np.float32)
            feeds[f"{what}_actions"] = self._checked("actions", acted, what, self.layout.action_dim, len(values))
        return self.file.run([f"{what}_reward"], feeds)[0]

    def _checked(self, name: str, values: Array, what: str, width: int, n: int | None = None) -> Array:
        assert self.layout is not None
        inner = (self.layout.horizon, width) if what == "window" else (width,)
        if values.shape[1:] != inner or n not in (None, len(values)):
            wanted = ", ".join(map(str, ("n" if n is None else n, *inner)))
            raise ValueError(f"{name} has shape {values.shape}, wanted ({wanted})")
        if not np.isfinite(values).all():
            raise ValueError(f"{name} of shape {values.shape} holds NaN or inf")
        return values
