"""An exported planner that acts with ONNX Runtime and numpy alone; torch is not imported."""

from __future__ import annotations

import os
from typing import Any

import numpy as np

from rrpolicy.agents.acting import PlanFollower
from rrpolicy.agents.options import Planning
from rrpolicy.common.arguments import flag, number, whole
from rrpolicy.common.boxes import box_from_dict
from rrpolicy.common.typing import Array
from rrpolicy.data.layout import TrajectoryLayout
from rrpolicy.data.normalizer import Affine, Normalizer
from rrpolicy.envs.controller import PDController
from rrpolicy.export.noise import NormalGenerator
from rrpolicy.export.session import GraphFile, PlanGraph


class OnnxPolicy(PlanFollower):
    """
    A planner from an ONNX file, which acts as the planner does that was exported.

    Chunks, warm start, ``state``, and the noise of a seed are the planner's; actions differ by rounding.

    :param path: that `export_onnx` wrote of a planner or an agent
    :param n_threads: of ONNX Runtime
    :raises FileNotFoundError: when there is no such file
    :raises ValueError: for a file that cannot be used, naming file and fault, see `GraphFile`
    """

    def __init__(self, path: str | os.PathLike[str], n_threads: int = 1) -> None:
        self.file = GraphFile(path, "planner", n_threads=n_threads)
        about = self.file.about
        with self.file.described():
            self.observation_space = box_from_dict(about["observation_space"])
            self.action_space = box_from_dict(about["action_space"])
            self.layout = TrajectoryLayout.from_dict(about["layout"])
            self._normalizer = _normalizer(about["normalizer"])
            self._normalizer.packed(self.layout)
            self.planning = Planning(**about["planning"])
            self.n_draws = whole("n_draws", about["n_draws"], 1)
            kind = about["controller"]
            self.controller: Any = None if kind is None else self if kind == "network" else PDController.from_dict(kind)
            self._has_scale = flag("scale_input", about.get("scale_input", False))
            self.scale = about["scale"] if self._has_scale else None
        self.file.check_graphs(*_needed(self.planning.warm_start is not None, self.controller is self, self._has_scale))
        self._generator = NormalGenerator(int(about.get("seed") or 0))

    @property
    def normalizer(self) -> Normalizer:
        return self._normalizer

    @property
    def card(self) -> dict[str, Any]:
        """What the file says of itself."""
        return self.file.card

    @property
    def scale(self) -> float | None:
        """
        Scale of guidance, which can be set where the file was exported with ``scale_input=True``; elsewhere None.

        :raises ValueError: when set to a negative or infinite number, or where it is no input
        """
        return self._scale

    @scale.setter
    def scale(self, value: float | None) -> None:
        if (value is not None) != self._has_scale:
            which = "has no input scale: export it with scale_input=True" if not self._has_scale else "needs a number"
            raise ValueError(f"scale is {value}: {self.file.path} {which}")
        self._scale = None if value is None else float(number("scale", value, lowest=0))

    def set_random_seed(self, seed: int | None) -> None:
        """
        Seed the noise of stochastic planning, as `Planner.set_random_seed`.

        :param seed: None changes nothing
        """
        if seed is not None:
            self._generator.manual_seed(whole("seed", seed))

    def action(self, observations: Array, targets: Array) -> Array:
        """The learned controller's actions, as `Controller.action`."""
        feeds = {"control_observation": np.asarray(observations, np.float32), "control_target": targets}
        return self.file.run(["control_action"], feeds)[0]

    def _plan(self, known: Array, previous: Array | None, seeds: Array | None) -> Array:
        graph = PlanGraph(self.file, self.layout.n_observation_rows, self._scale)
        return graph(known, previous, self._noise(len(known), seeds))

    def _noise(self, n_envs: int, seeds: Array | None) -> Array:
        """(n_draws, n_envs, n_candidates, H, D), as `Planner` draws it: all at once, or each environment its own."""
        each = (self.planning.n_candidates, *self.layout.event_shape)
        if seeds is None:
            return np.stack([self._generator.draw((n_envs * each[0], *each[1:])) for _ in range(self.n_draws)]).reshape(
                self.n_draws, n_envs, *each
            )
        noise = np.empty((self.n_draws, n_envs, *each), np.float32)
        generator = NormalGenerator(0)
        for env, seed in enumerate(seeds.tolist()):
            generator.manual_seed(seed)
            for draw in range(self.n_draws):
                noise[draw, env] = generator.draw(each)
        return noise


def _needed(warm: bool, network: bool, scale: bool) -> tuple[set[str], set[str]]:
    inputs, outputs = {"observation", "noise"}, {"window", "plan", "action"}
    if scale:
        inputs |= {"scale"}
    if warm:
        inputs |= {"warm_observation", "warm_noise", "previous", *(["warm_scale"] if scale else [])}
        outputs |= {"warm_window"}
    if network:
        inputs, outputs = inputs | {"control_observation", "control_target"}, outputs | {"control_action"}
    return inputs, outputs


def _normalizer(values: dict[str, Any]) -> Normalizer:
    maps = {
        name: Affine(np.array(values[name]["offset"], np.float32), np.array(values[name]["scale"], np.float32))
        for name in ("observations", "actions")
    }
    return Normalizer(maps["observations"], maps["actions"], values["mode"])
