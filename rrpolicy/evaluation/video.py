"""Videos of agents, drawn without OpenGL: mazes from above with the plan being followed, other simulations in 3-D.
A file appears under its name only when it is complete."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import gymnasium as gym
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from rrpolicy.agents.planning import Planner
from rrpolicy.common.arguments import flag, number, whole
from rrpolicy.common.environments import make_several, own_copy
from rrpolicy.common.files import atomic_write
from rrpolicy.common.seeding import checked_seed, seeded
from rrpolicy.common.spaces import check_units, flat_for
from rrpolicy.common.typing import Array, Predictor, State
from rrpolicy.envs.maze import MazeGeometry
from rrpolicy.envs.render import draw_maze
from rrpolicy.envs.scene import SceneRenderer
from rrpolicy.evaluation import MAX_EPISODE_STEPS, make_env, stack_observations, success_in
from rrpolicy.evaluation.ffmpeg import encode

LINE = 24  # pixels above a picture for its name
Renderer = Literal["maze drawing", "scene drawing", "environment"]


@dataclass(frozen=True)
class VideoInfo:
    """
    A video that was recorded.

    :param path: the file
    :param n_frames: pictures in it
    :param renderer: what drew them: ``"maze drawing"`` and ``"scene drawing"`` need no OpenGL, ``"environment"`` is the
        environment's own ``render``
    """

    path: Path
    n_frames: int
    renderer: Renderer


@dataclass(frozen=True)
class _Moment:
    """The state of an episode that a picture shows."""

    observation: Any
    step: int  # of the episode
    plan: Array | None  # planned positions still ahead (n, 2)
    success: bool


def record_video(
    agent: Predictor,
    env: gym.Env | str | Callable[[], gym.Env],
    path: str | Path,
    n_steps: int | None = None,
    seed: int = 0,
    fps: float = 30,
    deterministic: bool = True,
    overlay: bool = True,
    *,
    steps_per_frame: int = 1,
    size: int = 480,
    caption: str | None = None,
    renderer: Renderer | None = None,
) -> VideoInfo:
    """
    Write an h264 video.

    :param agent: anything with ``predict``
    :param env: an environment, its id, or a function that makes one (which is closed again); those that draw
        themselves are made with ``render_mode="rgb_array"``, by the function if it takes a ``render_mode``
    :param path: an ``.mp4`` file; folders are made, a missing suffix is added
    :param n_steps: environment steps, over as many episodes as they need; None: one episode, which must end
    :param seed: of the first episode; the following count up, as in ``evaluate``, and so do the generators
    :param fps: pictures per second
    :param deterministic: passed to ``predict``
    :param overlay: over a maze, draw the plan being followed and a caption
    :param steps_per_frame: environment steps from one picture to the next
    :param size: longer side of a picture in pixels, an even number
    :param caption: name of the agent, for the overlay
    :param renderer: None chooses: mazes and MuJoCo simulations are drawn without OpenGL, others draw themselves
    :return: file, number of pictures and what drew them
    :raises ValueError: naming the argument that is out of range, or when the environment cannot be drawn, draws what
        is no picture or pictures of several sizes, or has no end
    """
    n_steps = None if n_steps is None else whole("n_steps", n_steps, 1)
    steps_per_frame, seed = whole("steps_per_frame", steps_per_frame, 1), checked_seed(seed)
    fps, size = number("fps", fps, 1), _even(size)
    deterministic, overlay = flag("deterministic", deterministic), flag("overlay", overlay)
    target = _mp4(path)
    live = _environment(env, renderer)
    try:
        check_units(agent, live)
        chosen, draw = _drawing(live, renderer, size, overlay, caption)
        moments = _moments(agent, flat_for(agent, live), n_steps, seed, deterministic, steps_per_frame)
        with atomic_write(target) as unfinished, seeded(seed, agent):
            n_frames = encode(_of_one_size(draw(moment) for moment in moments), unfinished, fps)
    finally:
        if live is not env:
            live.close()
    return VideoInfo(target, n_frames, chosen)


def record_side_by_side(
    agents: Mapping[str, Predictor],
    env: gym.Env | str | Callable[[], gym.Env],
    path: str | Path,
    n_steps: int | None = None,
    seed: int = 0,
    fps: float = 30,
    deterministic: bool = True,
    *,
    steps_per_frame: int = 1,
    size: int = 240,
) -> VideoInfo:
    """
    Write an h264 video of several agents beside each other, each below its name, from the same start and with the same
    random numbers. One whose episode has ended stands still.

    :param agents: by name, from left to right
    :param env: as for :func:`record_video`
    :param path: an ``.mp4`` file; folders are made, a missing suffix is added
    :param n_steps: environment steps at most; None: until each agent's episode has ended
    :param seed: of the start and of the agents
    :param fps: pictures per second
    :param deterministic: passed to ``predict``
    :param steps_per_frame: environment steps from one picture to the next
    :param size: longer side of one agent's picture in pixels, an even number
    :return: file, number of pictures and what drew them
    :raises ValueError: for no agents, and as :func:`record_video`
    """
    if not agents:
        raise ValueError("agents is empty, wanted at least one")
    n_steps = None if n_steps is None else whole("n_steps", n_steps, 1)
    every, seed, fps = whole("steps_per_frame", steps_per_frame, 1), checked_seed(seed), number("fps", fps, 1)
    deterministic, size, target = flag("deterministic", deterministic), _even(size), _mp4(path)
    chosen: Renderer = "environment"
    strips = []
    for name, agent in agents.items():
        live = _environment(env, None)
        try:
            check_units(agent, live)
            chosen, draw = _drawing(live, None, size, True, None)
            with seeded(seed, agent):
                moments = _moments(agent, flat_for(agent, live), n_steps, seed, deterministic, every, 1)
                strips.append([_below(name, picture) for picture in _of_one_size(draw(moment) for moment in moments)])
        finally:
            if live is not env:
                live.close()
    with atomic_write(target) as unfinished:
        n_frames = encode(_of_one_size(_joined(strips)), unfinished, fps)
    return VideoInfo(target, n_frames, chosen)


def _joined(strips: Sequence[Sequence[Array]]) -> Iterator[Array]:
    """Pictures side by side; a strip that has ended stays at its last one."""
    for i in range(max(map(len, strips))):
        yield np.concatenate([strip[min(i, len(strip) - 1)] for strip in strips], axis=1)


def _below(name: str, picture: Array) -> Array:
    """A picture below a line with a name."""
    line = Image.new("RGB", (picture.shape[1], LINE), "white")
    text = name.replace("ρ", "rho")  # Pillow's own font has no Greek
    ImageDraw.Draw(line).text((LINE // 4, LINE // 6), text, fill="black", font=ImageFont.load_default(LINE * 0.6))
    return np.concatenate([np.asarray(line), picture])


def _even(size: int) -> int:
    size = whole("size", size)
    if size < 32 or size % 2:
        raise ValueError(f"size is {size}, it must be an even number of at least 32")
    return size


def _environment(env: Any, renderer: Renderer | None) -> gym.Env:
    """The environment given, or a new one, with a render mode if it needs one to be drawn."""
    if isinstance(env, gym.Env):
        return env
    if not isinstance(env, str) and not callable(env):
        raise ValueError(f"env must be an environment, its id or a function that makes one, got {env!r:.80}")
    make: Callable[..., Any] = partial(make_env, env) if isinstance(env, str) else env
    live = make() if isinstance(env, str) else make_several(make, 1)[0]
    drawn_here = live.has_wrapper_attr("maze") or hasattr(live.unwrapped, "mujoco_renderer")
    if live.render_mode == "rgb_array" or (drawn_here and renderer != "environment") or not _takes_mode(make):
        return live
    live.close()
    try:
        return make(render_mode="rgb_array")
    except (gym.error.Error, TypeError, ImportError) as error:  # a function of the user's
        raise ValueError(f"env {env!r:.80} cannot be made with render_mode 'rgb_array': {error}") from error


def _takes_mode(make: Callable[..., Any]) -> bool:
    """Whether a function that makes an environment takes a ``render_mode``."""
    if isinstance(make, partial) and make.func in (gym.make, make_env):
        return "render_mode" not in make.keywords
    try:
        return "render_mode" in inspect.signature(make).parameters
    except (TypeError, ValueError):  # builtins have no signature
        return False


# ---------------------------------------------------------------------- acting


def _moments(
    agent: Predictor,
    env: gym.Env,
    n_steps: int | None,
    seed: int,
    deterministic: bool,
    every: int,
    n_episodes: int | None = None,
) -> Iterator[_Moment]:
    """Act, and yield the state at every ``every``-th step and at the end, for at most so many steps and episodes."""
    total, first = 0, seed
    while True:
        observation, info = env.reset(seed=seed)
        observation = own_copy(observation)
        state: State | None = None
        step, over, plan = 0, False, None
        while not over and total != n_steps:
            start = np.array([step == 0])
            action, state = agent.predict(stack_observations([observation]), state, start, deterministic)
            plan = plan_ahead(agent, state)
            if total % every == 0 or step == 0:
                yield _Moment(observation, step, plan, bool(success_in(info)))
            observation, _, terminated, truncated, info = env.step(action[0])
            observation = own_copy(observation)
            over = terminated or truncated
            total, step = total + 1, step + 1
            if not over and n_steps is None and step == MAX_EPISODE_STEPS:
                raise ValueError(f"the episode has not ended after {step} steps: wanted n_steps")
        yield _Moment(observation, step, plan, bool(success_in(info)))
        seed += 1
        if n_steps is None or total == n_steps or seed - first == n_episodes:
            return


def plan_ahead(agent: Predictor, state: State | None) -> Array | None:
    """Positions (n, 2) that the first environment's plan has still to visit, if the agent plans x and y."""
    if not isinstance(agent, Planner) or state is None or not {0, 1} <= set(agent.layout.columns):
        return None
    plans, age, *_ = state  # age counts the steps taken when the action just chosen has been executed
    planned = agent.planned_observations(plans[0])
    positions = planned[:, [agent.layout.columns.index(column) for column in (0, 1)]]
    return positions[agent.layout.present + (int(age[0]) - 1) // agent.layout.stride + 1 :]


# ---------------------------------------------------------------------- drawing


def _drawing(
    env: gym.Env, renderer: Renderer | None, size: int, overlay: bool, caption: str | None
) -> tuple[Renderer, Callable[[_Moment], Array]]:
    """Name of the renderer, and the function that draws."""
    maze = env.get_wrapper_attr("maze") if env.has_wrapper_attr("maze") else None
    if isinstance(maze, MazeGeometry) and renderer in (None, "maze drawing"):
        return "maze drawing", _MazeDrawing(env, maze, size, overlay, caption)
    if renderer == "maze drawing":
        raise ValueError(f"renderer is 'maze drawing', env must be made by make_point_maze, got {env!r}")
    if renderer == "scene drawing" or (renderer is None and hasattr(env.unwrapped, "mujoco_renderer")):
        scene = SceneRenderer.from_env(env, (size, size))
        base: Any = getattr(env.unwrapped, "point_env", env.unwrapped)
        return "scene drawing", lambda _: scene.render(base.data)
    if renderer not in (None, "environment"):
        raise ValueError(f"renderer must be None or one of {Renderer.__args__}, got {renderer!r}")  # type: ignore[attr-defined]
    if env.render_mode != "rgb_array":
        raise ValueError(f"env must have render_mode 'rgb_array' to draw itself, got {env.render_mode!r}")
    return "environment", lambda _: _rgb(drawn(env))


class CannotDraw(ValueError):
    """An environment lacks what it draws itself with, such as pygame."""


def drawn(env: gym.Env) -> Any:
    """
    The picture that an environment renders.

    :raises CannotDraw: when a library that it needs is missing
    """
    try:
        return env.render()
    except (gym.error.Error, ImportError) as error:
        raise CannotDraw(f"env {env!r:.60} cannot draw itself: {error}") from error


class _MazeDrawing:
    """The maze from above; remembers where the ball has been."""

    def __init__(self, env: gym.Env, maze: MazeGeometry, size: int, overlay: bool, caption: str | None) -> None:
        self._env = env
        self._maze = maze
        self._size = size
        self._overlay = overlay
        self._caption = caption
        self._trail: list[Array] = []

    def __call__(self, moment: _Moment) -> Array:
        position = np.asarray(moment.observation[:2])
        self._trail = [*self._trail, position] if moment.step else [position]
        plan = moment.plan if self._overlay else None
        return draw_maze(
            self._maze,
            size=self._size,
            position=position,
            goal=self._env.get_wrapper_attr("goal_xy"),
            trail=np.array(self._trail),
            plans=None if plan is None else np.concatenate([position[None], plan]),
            caption=self._text(moment) if self._overlay else None,
        )

    def _text(self, moment: _Moment) -> str:
        name = self._caption and self._caption.replace("ρ", "rho")  # Pillow's own font has no Greek
        parts = [name, f"step {moment.step}", "at the goal" if moment.success else None]
        return "  |  ".join(part for part in parts if part)


# ---------------------------------------------------------------------- pictures


def _rgb(drawn: Any) -> Array:
    """
    A rendered picture as (h, w, 3) uint8. Grey is repeated, transparent pixels are blended with white, floats in
    [0, 1] are scaled.

    :raises ValueError: for anything else, naming shape and dtype
    """
    values = np.asarray(drawn) if isinstance(drawn, np.ndarray) else np.empty(0, dtype=object)
    shape, kind = values.shape, values.dtype
    planes = values[..., None] if values.ndim == 2 else values
    if planes.ndim == 3 and planes.shape[-1] in (1, 3, 4) and planes.size and kind.kind in "bfiu":
        top = 1.0 if kind.kind in "bf" else 255.0
        if kind == np.uint8 and planes.shape[-1] == 3:
            return values
        if planes.min() >= 0 and planes.max() <= top:  # NaN is neither
            scaled = planes.astype(np.float64) * (255.0 / top)
            if planes.shape[-1] == 4:
                opaque = scaled[..., 3:] / 255.0
                scaled = scaled[..., :3] * opaque + 255.0 * (1 - opaque)
            return np.broadcast_to(np.rint(scaled), (*shape[:2], 3)).astype(np.uint8)
    what = f"a {type(drawn).__name__}"
    if isinstance(drawn, np.ndarray):
        what = f"an array of shape {shape} and dtype {kind}"
    span = f" from {values.min()} to {values.max()}" if values.size and kind.kind in "bfiu" else ""
    raise ValueError(
        f"env.render() gave {what}{span}, wanted a picture (h, w, 3), (h, w, 4), (h, w, 1) or (h, w) of uint8 or of "
        "floats in [0, 1]"
    )


def _of_one_size(pictures: Iterable[Array]) -> Iterator[Array]:
    """
    The pictures as they are, their sizes compared.

    :raises ValueError: when one has another size than the first
    """
    first: tuple[int, ...] | None = None
    for index, picture in enumerate(pictures):
        first = first or picture.shape
        if min(first[:2]) < 2:
            raise ValueError(f"pictures have shape {first}, wanted at least 2 pixels a side")
        if picture.shape != first:
            raise ValueError(f"picture {index} has shape {picture.shape}, the first had {first}: wanted one size")
        yield picture


# ---------------------------------------------------------------------- files


def _mp4(path: str | Path) -> Path:
    target = Path(path)
    if not target.suffix:
        return target.with_name(f"{target.name}.mp4")
    if target.suffix != ".mp4":
        raise ValueError(f"path must end in .mp4, got {str(path)!r}")
    return target
