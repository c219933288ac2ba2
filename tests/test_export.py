"""Exported planners act, and exported rewards score, as what they were exported from; without torch, and safely."""

import json
import pickle
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from helpers.agents import KINDS, NARROW, agent_of_kind, make_agent
from helpers.exported import FOLDER, SOURCES, episodes, moved, reward_of, source
from torch import Tensor, nn

from rrpolicy import GuidedPlanner
from rrpolicy.agents.diffusion_agent import DiffusionAgent
from rrpolicy.diffusion.sampling import Step, ddim
from rrpolicy.envs.controller import PDController
from rrpolicy.export import OnnxPolicy, OnnxReward, export_onnx
from rrpolicy.export.noise import NormalGenerator
from rrpolicy.export.quantised import quantised

PLANNERS = [name for name in SOURCES if name != "reward"]
TOLERANCE = 1e-4


def test_noise_is_that_of_torch() -> None:
    for seed in (0, 7, 2**32 - 1):
        theirs, mine = torch.Generator().manual_seed(seed), NormalGenerator(seed)
        for shape in ((8, 23), (3,), (2, 2), (17,), (5,), (1, 16), (1,), (100, 3)):
            wanted = torch.randn(shape, generator=theirs).numpy()
            np.testing.assert_allclose(mine.draw(shape), wanted, atol=1e-6)
    mine.manual_seed(7)
    np.testing.assert_array_equal(mine.draw((40,)), NormalGenerator(7).draw((40,)))


@pytest.mark.parametrize("deterministic", [True, False])
@pytest.mark.parametrize("name", PLANNERS)
def test_kept_files_act_as_their_planners(name: str, deterministic: bool) -> None:
    policy = OnnxPolicy(FOLDER / f"{name}.onnx")
    wanted = episodes(source(name), deterministic)
    np.testing.assert_allclose(episodes(policy, deterministic), wanted, atol=TOLERANCE)
    assert policy.observation_space.contains(np.zeros(4, np.float32)) and np.ptp(wanted) > 0.01


def test_weights_of_8_bits_have_an_error_that_is_told(tmp_path: Path) -> None:
    exact = (FOLDER / "planner.onnx").read_bytes()
    (tmp_path / "small.onnx").write_bytes(quantised(exact))
    small = OnnxPolicy(tmp_path / "small.onnx")
    moved = np.abs(episodes(small, True) - episodes(OnnxPolicy(FOLDER / "planner.onnx"), True)).max()
    assert 0 < small.file.about["int8_error"] < 1 and 0 < moved < 1


def test_workers_get_copies() -> None:
    policy = OnnxPolicy(FOLDER / "agent-history.onnx")
    again = pickle.loads(pickle.dumps(policy))
    np.testing.assert_array_equal(episodes(again, True), episodes(policy, True))


def test_a_plan_is_the_planners_plan() -> None:
    observations = np.random.default_rng(0).uniform(-1, 1, (4, 4))
    policy, planner = OnnxPolicy(FOLDER / "planner.onnx"), source("planner")
    np.testing.assert_allclose(policy.plan(observations), planner.plan(observations), atol=TOLERANCE)
    (plan, action) = policy.file.run(
        ["plan", "action"],
        {
            "observation": observations.astype(np.float32),
            "noise": np.zeros(
                (policy.n_draws, 4, policy.planning.n_candidates, *policy.layout.event_shape), np.float32
            ),
        },
    )
    assert plan.shape == (4, *policy.layout.event_shape[:1], len(policy.layout.columns))
    assert (action >= policy.action_space.low).all() and (action <= policy.action_space.high).all()


def test_a_kept_reward_scores_as_it_did() -> None:
    exported, reward = OnnxReward(FOLDER / "reward.onnx"), source("reward")
    rng = np.random.default_rng(0)
    x_t, t = rng.normal(size=(5, *exported.event_shape)).astype(np.float32), np.arange(5)
    with torch.no_grad():
        wanted = reward(torch.as_tensor(x_t), torch.as_tensor(t)).numpy()
    np.testing.assert_allclose(exported(x_t, t), wanted, atol=TOLERANCE)
    layout = exported.layout
    assert layout is not None
    windows = [rng.uniform(-1, 1, (5, layout.horizon, width)) for width in (layout.observation_dim, layout.action_dim)]
    for given in (windows, [rows[:, 0] for rows in windows]):
        np.testing.assert_allclose(exported.predict(*given), reward.predict(*given), atol=TOLERANCE)


# ---------------------------------------------------------------------- without torch

WITHOUT_TORCH = """
import sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "stable_baselines3"):
            raise ImportError(name + " is blocked")
sys.meta_path.insert(0, Blocked())
import numpy as np
from rrpolicy.export import OnnxPolicy, OnnxReward
policy = OnnxPolicy(sys.argv[1])
action, state = policy.predict(np.zeros((2, 4)), deterministic=True)
action, state = policy.predict(np.zeros((2, 4)), state, deterministic=True)
reward = OnnxReward(sys.argv[2]).predict(np.zeros((2, 4)), np.zeros((2, 2)))
print(action.tolist(), reward.shape, "torch" in sys.modules)
"""


def test_torch_is_not_imported() -> None:
    files = [str(FOLDER / "planner.onnx"), str(FOLDER / "reward.onnx")]
    done = subprocess.run([sys.executable, "-c", WITHOUT_TORCH, *files], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    planner = source("planner")
    _, state = planner.predict(np.zeros((2, 4)), deterministic=True)
    wanted = planner.predict(np.zeros((2, 4)), state, deterministic=True)[0]
    actions, _, rest = done.stdout.partition(" (2,) ")
    np.testing.assert_allclose(json.loads(actions), wanted, atol=TOLERANCE)
    assert rest == "False\n"


# ---------------------------------------------------------------------- faults


def test_wrong_observations_are_refused() -> None:
    policy = OnnxPolicy(FOLDER / "planner.onnx")
    with pytest.raises(ValueError, match=r"observation has shape \(3,\), wanted \(4,\)"):
        policy.predict(np.zeros(3))
    with pytest.raises(ValueError, match="NaN"):
        policy.predict(np.full(4, np.nan))
    reward = OnnxReward(FOLDER / "reward.onnx")
    with pytest.raises(ValueError, match="levels"):
        reward(np.zeros((1, *reward.event_shape)), np.array([10**6]))
    with pytest.raises(ValueError, match=r"actions has shape \(0,\)"):
        reward.predict(np.zeros((2, 4)))


def changed(folder: Path, **values: Any) -> Path:
    """The planner's file with other values in its description."""
    model = onnx.load(FOLDER / "planner.onnx")
    about = {**json.loads(model.metadata_props[0].value), **values}
    model.metadata_props[0].value = json.dumps(about)
    onnx.save(model, folder / "changed.onnx")
    return folder / "changed.onnx"


def test_files_that_cannot_be_used_are_refused(tmp_path: Path) -> None:
    content = (FOLDER / "planner.onnx").read_bytes()
    damaged, foreign = tmp_path / "damaged.onnx", tmp_path / "foreign.onnx"
    for part in (content[: len(content) // 2], b"", b"PK\x03\x04 no graph"):
        damaged.write_bytes(part)
        with pytest.raises(ValueError, match=r"damaged\.onnx: no ONNX file that can be run"):
            OnnxPolicy(damaged)
    model = onnx.load(FOLDER / "planner.onnx")
    del model.metadata_props[:]
    onnx.save(model, foreign)
    with pytest.raises(ValueError, match=r"foreign\.onnx: no file of rrpolicy"):
        OnnxPolicy(foreign)
    with pytest.raises(FileNotFoundError, match=r"absent\.onnx: no such file"):
        OnnxPolicy(tmp_path / "absent.onnx")
    with pytest.raises(ValueError, match=r"reward\.onnx: holds a reward, wanted a planner"):
        OnnxPolicy(FOLDER / "reward.onnx")
    with pytest.raises(ValueError, match=r"changed\.onnx: format 2, this version of rrpolicy reads format 1"):
        OnnxPolicy(changed(tmp_path, format=2))
    with pytest.raises(ValueError, match=r"changed\.onnx: damaged: card: environment"):
        OnnxPolicy(changed(tmp_path, card={"environment": "module:Env-v0"}))
    for name, value in (("layout", 3), ("planning", {"clip": "x"}), ("normalizer", {}), ("observation_space", None)):
        with pytest.raises(ValueError, match=r"changed\.onnx: damaged: its description does not hold"):
            OnnxPolicy(changed(tmp_path, **{name: value}))


def test_the_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ValueError, match=r"planner\.onnx: ONNX files need the extra fast: pip install"):
        OnnxPolicy(FOLDER / "planner.onnx")


class Slow(DiffusionAgent):
    """An agent that acts otherwise than its graphs would."""

    def predict(self, *args: Any, **kwargs: Any) -> Any:
        actions, state = super().predict(*args, **kwargs)
        return 0.5 * actions, state


@dataclass(frozen=True)
class Backwards(PDController):
    """A law of its own."""

    def action(self, observations: Any, targets: Any) -> Any:
        return -super().action(observations, targets)


def test_what_would_be_left_out_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="Slow has a predict of its own"):
        export_onnx(make_agent(Slow), tmp_path / "x")
    law = {**KINDS["controller"], "controller": Backwards(velocity_columns=(2, 3))}
    with pytest.raises(ValueError, match="controller is a Backwards"):
        export_onnx(make_agent(**law), tmp_path / "x")
    before = torch.get_rng_state()
    with pytest.raises(ValueError, match="source is a function"):
        export_onnx(lambda x_t, t: x_t, tmp_path / "x")
    assert torch.equal(torch.get_rng_state(), before) and not list(tmp_path.iterdir())


def test_other_things_are_not_exported(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match="source is a str, wanted an agent, a planner, an Sb3Agent or a RelativeReward"
    ):
        export_onnx("planner", tmp_path / "x")


# ---------------------------------------------------------------------- exporting


def test_a_compiled_planner_acts_alike_and_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RRPOLICY_CACHE", str(tmp_path))
    base = make_agent(n_sampling_steps=2)
    moved(base.averaged)
    agent = GuidedPlanner(base, reward_of(base))
    compiled = agent.compile()
    np.testing.assert_allclose(episodes(compiled, True), episodes(agent, True), atol=TOLERANCE)
    (kept,) = tmp_path.glob("*.onnx")
    before = kept.stat().st_mtime_ns
    again = agent.compile()
    np.testing.assert_array_equal(episodes(again, False), episodes(compiled, False))
    assert kept.stat().st_mtime_ns == before
    assert OnnxPolicy(kept).layout == agent.layout


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_agent_is_exported_steered(kind: str, tmp_path: Path) -> None:
    agent = agent_of_kind(kind)
    moved(agent.averaged)
    planner = GuidedPlanner(agent, reward_of(agent), n_candidates=2, max_shift=0.5)
    policy = OnnxPolicy(export_onnx(planner, tmp_path / kind))
    for deterministic in (True, False):
        np.testing.assert_allclose(
            episodes(policy, deterministic), episodes(planner, deterministic), atol=TOLERANCE, err_msg=kind
        )


@pytest.mark.slow
def test_own_networks_rewards_and_solvers_are_exported(tmp_path: Path) -> None:
    class Own(nn.Module):
        def __init__(self, process: Any, event_shape: tuple[int, ...], pinned: Tensor) -> None:
            super().__init__()
            self.inner = nn.Linear(event_shape[-1] + 1, event_shape[-1])

        def forward(self, x_t: Tensor, t: Tensor) -> Tensor:
            level = t[:, None, None].expand(x_t.shape[0], x_t.shape[1], 1) / 10.0  # a level for each row
            return self.inner(torch.cat([x_t, level], dim=-1)).tanh()

    def noisy(step: Step) -> Tensor:
        return ddim(step) + 0.01 * step.noise(step.x0)

    agent = make_agent(policy=Own, policy_kwargs={}, sampler=noisy, n_candidates=2)
    planner = GuidedPlanner(agent, lambda x_t, t: -((x_t - 0.3) ** 2).sum((1, 2)) * (1 + t), scale=0.1)
    policy = OnnxPolicy(export_onnx(planner, tmp_path / "own"))
    np.testing.assert_allclose(episodes(policy, True), episodes(planner, True), atol=TOLERANCE)


@pytest.mark.slow
def test_the_likeliest_candidate_is_chosen_alike(tmp_path: Path) -> None:
    agent = make_agent(n_candidates=3, sampler="ddpm", policy_kwargs=NARROW)
    moved(agent.averaged)
    policy = OnnxPolicy(export_onnx(agent, tmp_path / "best"))
    np.testing.assert_allclose(episodes(policy, True), episodes(agent, True), atol=TOLERANCE)
