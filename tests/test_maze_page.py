"""The page in which a maze's planner runs: plans in Chromium are the planner's own, nothing comes from elsewhere."""

import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from helpers.agents import KINDS, make_agent
from helpers.devtools import Tab, browser
from helpers.exported import FOLDER, episodes, moved, page_planner, reward_of

from rrpolicy import GuidedPlanner
from rrpolicy.common.typing import Array
from rrpolicy.experiments import Task
from rrpolicy.experiments.demos import Demo
from rrpolicy.experiments.demos.maze_page import N_PLANS, write_graphs, write_page
from rrpolicy.export import OnnxPolicy, OnnxReward, export_onnx
from rrpolicy.export.browser import runtime_scripts
from rrpolicy.rewards.maps import reward_map

MAZE = ["#####", "#...#", "#.#.#", "#...#", "#####"]
GOAL = (3, 1)
TOLERANCE = 1e-3


class Built(NamedTuple):
    planner: GuidedPlanner
    page: Path


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    try:
        runtime = runtime_scripts()
    except ValueError as error:
        pytest.skip(str(error))
    planner = page_planner()
    shown = reward_map(planner.reward, MAZE, points_per_cell=4)
    folder = tmp_path_factory.mktemp("page")
    shutil.copytree(FOLDER / "page", folder, dirs_exist_ok=True)
    return Built(planner, write_page(folder, planner, shown, GOAL, runtime, {"environment": "PointMaze_Mine-v3"}))


@pytest.fixture(scope="module")
def tab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tab]:
    with browser(tmp_path_factory.mktemp("browser")) as opened:
        yield opened


def opened(tab: Tab, address: str) -> dict[str, Any]:
    """What the page shows when it is ready."""
    tab.open(address)
    tab.value("demo.ready")
    result: dict[str, Any] = tab.value("demo.result")
    return result


def clicked(tab: Tab, name: str, across: float, down: float) -> dict[str, Any]:
    """What the page shows after a click on an element, at fractions of its width and height."""
    box = tab.value(f"(b => [b.x, b.y, b.width, b.height])(document.getElementById({name!r}).getBoundingClientRect())")
    tab.value("demo.result = null")
    tab.click(box[0] + across * box[2], box[1] + down * box[3])
    tab.wait("demo.result !== null")
    result: dict[str, Any] = tab.value("demo.result")
    return result


def check(result: dict[str, Any], planner: GuidedPlanner) -> Array:
    """Compare what is shown with the planner's own plans and rewards; the steered plans."""
    observations = np.tile(np.array(result["observation"], np.float32), (N_PLANS, 1))
    noise = torch.tensor(result["noise"]).view(-1, *planner.layout.event_shape)
    pinned, reward = planner.pinned_at(observations[:, None]), planner.reward
    shown = {name: np.array(result[name]["xy"]) for name in ("base", "steered")}
    for name, scale in (("base", 0.0), ("steered", result["scale"])):
        own = GuidedPlanner(planner.agent, reward, scale=scale, n_candidates=planner.n_candidates)
        with torch.no_grad():
            windows = own.sampled(pinned, None, lambda like: noise)
            clean = torch.where(reward.pinned, windows, planner.process.alpha(0) * windows)
            rho = reward(clean, torch.zeros(N_PLANS, dtype=torch.int64))
        wanted = own.planned_observations(windows.numpy())[..., :2]
        np.testing.assert_allclose(shown[name], wanted, atol=TOLERANCE)
        np.testing.assert_allclose(result[name]["rho"], rho, atol=TOLERANCE, rtol=TOLERANCE)
    return shown["steered"]


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """The address of a folder on a local server."""

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *arguments: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=folder)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_plans_in_the_browser_are_the_planners(built: Built, tab: Tab) -> None:
    planner, page = built
    first = opened(tab, page.as_uri())  # the start is the free cell that is farthest from the goal
    assert first["start"] == [1.0, 1.0] and first["scale"] == planner.scale == 0.5
    assert np.abs(check(first, planner) - np.array(first["base"]["xy"])).max() > 0.01
    there = clicked(tab, "maze", 0.3, 0.72)
    np.testing.assert_allclose(there["start"], [-1.0, -1.1], atol=0.02)
    plans = check(there, planner)
    strong = clicked(tab, "scale", 0.99, 0.5)
    assert strong["scale"] > 2.5 and strong["start"] == there["start"] and strong["noise"] == there["noise"]
    assert np.abs(check(strong, planner) - plans).max() > 0.01
    other = clicked(tab, "draw", 0.5, 0.5)
    assert other["noise"] != strong["noise"]
    assert tab.value("document.querySelectorAll('polyline.steered').length") == N_PLANS
    mean = float(tab.value("document.getElementById('rho-base').textContent"))
    assert mean == pytest.approx(np.mean(other["base"]["rho"]), abs=0.01)
    assert tab.faults == []
    assert tab.requests and all(address.startswith(page.parent.as_uri()) for address in tab.requests)


def test_the_page_works_from_a_server_and_names_walls(built: Built, tab: Tab) -> None:
    planner, page = built
    tab.requests.clear()
    with served(page.parent) as address:
        check(opened(tab, f"{address}/{page.name}"), planner)
        box = tab.value("(b => [b.x, b.y])(document.getElementById('maze').getBoundingClientRect())")
        tab.click(box[0] + 5, box[1] + 5)
        assert "wall" in tab.value("document.getElementById('status').textContent")
    assert tab.faults == []
    assert tab.requests and all(one.startswith(f"{address}/") for one in tab.requests)


def test_the_files_beside_the_page_have_the_scale_as_an_input() -> None:
    planner, observations = page_planner(), np.random.default_rng(0).uniform(-1, 1, (3, 4))
    policy = OnnxPolicy(FOLDER / "page" / "planner.onnx")
    assert policy.scale == planner.scale == 0.5
    plans = []
    for scale in (0.0, 0.5, 2.5):
        policy.scale = scale
        own = GuidedPlanner(planner.agent, planner.reward, scale=scale, n_candidates=planner.n_candidates)
        plans.append(policy.plan(observations))
        np.testing.assert_allclose(plans[-1], own.plan(observations), atol=1e-4)
    assert np.abs(plans[0] - plans[1]).max() > 0.01 and np.abs(plans[1] - plans[2]).max() > 0.01
    for wrong in (-1.0, np.nan, None):
        with pytest.raises(ValueError, match="scale is"):
            policy.scale = wrong
    fixed = OnnxPolicy(FOLDER / "planner.onnx")
    assert fixed.scale is None
    with pytest.raises(ValueError, match=r"scale is 2.0: .*planner\.onnx has no input scale"):
        fixed.scale = 2.0
    assert OnnxReward(FOLDER / "page" / "reward.onnx").event_shape == planner.layout.event_shape


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["controller", "warm"])
def test_new_files_have_the_scale_as_an_input(kind: str, tmp_path: Path) -> None:
    agent = make_agent(**KINDS[kind])
    moved(agent.averaged)
    planner = GuidedPlanner(agent, reward_of(agent), max_shift=0.5)
    policy = OnnxPolicy(export_onnx(planner, tmp_path / "planner", scale_input=True))
    for scale in (0.0, 2.0):
        policy.scale, own = scale, GuidedPlanner(agent, planner.reward, scale=scale, max_shift=0.5)
        np.testing.assert_allclose(episodes(policy, False), episodes(own, False), atol=1e-4)


def test_what_the_page_cannot_show_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"html is True, and Hopper-v5 is no maze"):
        Demo(Task.create("Hopper-v5"), tmp_path, {"name": "none"}, html=True).run()
    agent = make_agent(**KINDS["history"])
    planner = GuidedPlanner(agent, reward_of(agent))
    with pytest.raises(ValueError, match="from 3 observations, the page shows x, y"):
        write_graphs(tmp_path, planner)
    with pytest.raises(ValueError, match="scale_input is True, and a DiffusionAgent has no scale"):
        export_onnx(make_agent(), tmp_path / "agent", scale_input=True)
    assert not list(tmp_path.iterdir())
