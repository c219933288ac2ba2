"""A page in which a maze's steered planner runs: exported graphs, ONNX Runtime Web and the reward's map in one folder.

The page asks for nothing from elsewhere, and works from a disk as well as from a server.
"""

from __future__ import annotations

import base64
import copy
import io
import json
from collections.abc import Mapping
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps
from PIL import Image

from rrpolicy.agents.guided_planner import GuidedPlanner
from rrpolicy.common.device import CPU
from rrpolicy.common.files import write_text
from rrpolicy.envs.render import SUCCESS_RADIUS
from rrpolicy.export.browser import FOLDER, SCRIPTS, write_embedded, write_runtime
from rrpolicy.export.files import export_onnx
from rrpolicy.rewards.maps import RewardMap
from rrpolicy.rewards.relative_reward import RelativeReward

PAGE, PLANNER, REWARD, GRAPHS = "index.html", "planner.onnx", "reward.onnx", "graphs.js"
PAGE_FILES = (PAGE, PLANNER, REWARD, GRAPHS, *(f"{FOLDER}/{name}" for name in SCRIPTS))
N_PLANS = 16  # of base and steered base each
LARGEST_SCALE = 3.0  # of the slider, or twice the planner's own
HEAT = "YlGn"
PIXELS = 6  # of the map's points, which are smoothed between


def write_graphs(folder: Path, planner: GuidedPlanner, card: Mapping[str, Any] | None = None) -> None:
    """
    Write the ONNX files of the page; the reward's scores normalised events alone, as the page does.

    :param folder: made if missing
    :param planner: the steered base; plans positions x, y from one observation
    :param card: facts, kept in the files
    :raises ValueError: without the extra ``fast``, or for a planner that plans otherwise
    """
    _check(planner)
    planner = planner if planner.device == CPU else copy.deepcopy(planner).to(CPU)
    reward: Any = copy.copy(planner.reward)
    reward.layout = None  # without which there are no graphs of environment units
    export_onnx(planner, folder / PLANNER, card, scale_input=True)
    export_onnx(reward, folder / REWARD, card)


def write_page(
    folder: Path,
    planner: GuidedPlanner,
    reward_map: RewardMap,
    goal: Any,
    runtime: Mapping[str, bytes],
    card: Mapping[str, Any] | None = None,
) -> Path:
    """
    Write the page in which a planner runs.

    :param folder: holds what :func:`write_graphs` wrote; gets ``index.html``, and ONNX Runtime Web in its own folder
    :param planner: whose graphs these are
    :param reward_map: of its reward
    :param goal: (row, column) in cells
    :param runtime: what `export.browser.runtime_scripts` returned
    :param card: its environment is the page's title
    :return: the page
    """
    write_embedded(folder / GRAPHS, {name: (folder / name).read_bytes() for name in (PLANNER, REWARD)})
    write_runtime(folder, runtime)
    home = files("rrpolicy.experiments.demos")
    page, script = ((home / name).read_text(encoding="utf-8") for name in ("maze_page.html", "maze_page.js"))
    settings = {"plans": N_PLANS, "maze": _maze(reward_map, goal), "planner": _planner(planner)}
    title = f"{(card or {}).get('environment', 'A maze')}: a planner steered by an extracted reward"
    text = json.dumps(settings, allow_nan=False).replace("</", "<\\/")
    for name, value in (("TITLE", escape(title)), ("SETTINGS", text), ("SCRIPT", script)):
        page = page.replace(name, value)
    write_text(folder / PAGE, page)
    return folder / PAGE


def _check(planner: GuidedPlanner) -> None:
    """
    Check that the page can show a planner's plans.

    :raises ValueError: where it cannot
    """
    layout, reward = planner.layout, planner.reward
    if not {0, 1} <= set(layout.columns) or layout.n_observation_rows != 1:
        raise ValueError(
            f"the planner plans the observation's columns {layout.columns} from {layout.n_observation_rows} "
            "observations, the page shows x, y (columns 0 and 1) planned from one"
        )
    if not isinstance(reward, RelativeReward) or "window" not in reward.heads:
        raise ValueError("the planner's reward has no window head, which the page shows")


def _planner(planner: GuidedPlanner) -> dict[str, Any]:
    layout = planner.layout
    return {
        "event": list(layout.event_shape),
        "draws": planner.n_draws,
        "candidates": planner.n_candidates,
        "steps": planner.planning.n_sampling_steps,
        "observationDim": layout.observation_dim,
        "xy": [layout.columns.index(0), layout.columns.index(1)],
        "pinned": layout.pinned.flatten().astype(int).tolist(),
        "alpha": float(planner.process.alpha(0)),
        "scale": planner.scale,
        "largestScale": max(LARGEST_SCALE, 2 * planner.scale),
    }


def _maze(reward_map: RewardMap, goal: Any) -> dict[str, Any]:
    maze = reward_map.maze
    places = maze.cell_to_xy(maze.free_cells)
    goal_xy = maze.cell_to_xy(goal)
    farthest = places[np.linalg.norm(places - goal_xy, axis=1).argmax()]
    return {
        "rows": list(maze.rows),
        "extent": list(maze.extent),
        "goal": goal_xy.tolist(),
        "goalRadius": SUCCESS_RADIUS,
        "start": farthest.tolist(),
        "heat": _heat(reward_map),
    }


def _heat(reward_map: RewardMap) -> str:
    """The map as a picture in a data URI: walls are transparent."""
    enlarge = np.ones((PIXELS, PIXELS))
    low, high = np.nanmin(reward_map.grid), np.nanmax(reward_map.grid)
    shade = (np.asarray(reward_map.filled) - low) / max(high - low, 1e-9)
    smooth = Image.fromarray((255 * colormaps[HEAT](0.85 * shade)).astype(np.uint8)[..., :3])
    size = tuple(PIXELS * n for n in smooth.size)
    free = np.kron(np.isfinite(reward_map.grid), enlarge)
    picture = smooth.resize((size[0], size[1]), Image.Resampling.BICUBIC)
    picture.putalpha(Image.fromarray((255 * free).astype(np.uint8)))
    file = io.BytesIO()
    picture.save(file, "PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
