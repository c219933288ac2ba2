"""Recordings of robots: a video of the first seconds in real time, and single pictures of one episode.

MuJoCo simulations are drawn by the library's own renderer, so neither a display nor OpenGL is needed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import gymnasium as gym
import numpy as np

from rrpolicy.common.typing import Array, Predictor
from rrpolicy.envs.scene import SceneRenderer
from rrpolicy.evaluation.video import VideoInfo, drawn, record_video
from rrpolicy.experiments import Task

SECONDS = 5.0  # of the robot's own time: some hundred steps of most robots
MAX_FPS = 30
SIZE = 320  # pixels


@dataclass(frozen=True)
class Moment:
    """
    A picture of an episode, with the time and the state of the robot.

    :param seconds: of the robot's own time since the episode began
    :param picture: (h, w, 3) uint8
    :param travelled: metres forward since then; None where nothing moves along a track
    :param fallen: whether this was the end of the episode
    """

    seconds: float
    picture: Array
    travelled: float | None
    fallen: bool


def film(agent: Predictor, task: Task, path: Path, seed: int = 0, deterministic: bool = False) -> VideoInfo:
    """
    Write the first seconds in real time; a robot that falls gets up in a new episode.

    :param agent: the agent that acts
    :param task: the robot
    :param path: an ``.mp4`` file
    :param seed: of the first episode
    :param deterministic: the agent's mode
    """
    with closing(task.make()) as env:
        rate = _steps_per_second(env)
    every = max(round(rate / MAX_FPS), 1)
    return record_video(
        agent,
        task.make,
        path,
        round(SECONDS * rate),
        seed,
        round(rate / every),
        deterministic,
        steps_per_frame=every,
        size=SIZE,
    )


def moments(
    agent: Predictor, task: Task, seconds: Sequence[float], seed: int = 0, deterministic: bool = False, size: int = SIZE
) -> list[Moment]:
    """
    Pictures of one episode, up to the one in which the robot has fallen.

    :param agent: the agent that acts
    :param task: the robot
    :param seconds: when pictures are taken, in this order, of the robot's own time
    :param seed: of the episode
    :param deterministic: the agent's mode
    :param size: of a picture in pixels, even
    """
    taken: list[Moment] = []
    env, draw = _drawn(task, size)
    with closing(env):
        rate = _steps_per_second(env)
        wanted = {round(one * rate) for one in seconds}
        observation, _ = env.reset(seed=seed)
        state, step, fallen, over = None, 0, False, False
        start = _position(env)
        while True:
            if step in wanted or fallen:
                travelled = None if start is None else (_position(env) or 0.0) - start
                taken.append(Moment(step / rate, draw(), travelled, fallen))
            if fallen or over or step >= max(wanted):
                return taken
            action, state = agent.predict(observation[None], state, np.array([step == 0]), deterministic)
            observation, _, fallen, over, _ = env.step(action[0])
            step += 1


def _steps_per_second(env: gym.Env) -> float:
    return float(env.unwrapped.metadata["render_fps"])


def _drawn(task: Task, size: int) -> tuple[gym.Env, Callable[[], Array]]:
    """An environment and what draws it: the library's renderer for MuJoCo simulations, others draw themselves."""
    env = task.make()
    if _position(env) is not None:
        scene = SceneRenderer.from_env(env, (size, size))
        return env, lambda: scene.render(env.unwrapped.data)  # type: ignore[attr-defined]
    env.close()
    env = task.make("rgb_array")
    return env, lambda: np.asarray(drawn(env))


def _position(env: gym.Env) -> float | None:
    """Metres along the track; None for what is no MuJoCo simulation."""
    data = getattr(env.unwrapped, "data", None)
    return None if data is None else float(data.qpos[0])
