"""The reward object: one scalar in nats with exact gradients, the same number in environment units, and its archive.

The network is untrained; what it says does not matter here, only that every way of asking gives the same answer.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.agents import DATASET, NARROW, agent_of_kind, make_agent
from helpers.forged import forge

from rrpolicy import RelativeReward
from rrpolicy.common.archive import read_archive
from rrpolicy.diffusion.process import DiffusionProcess
from rrpolicy.rewards.guidance import guided
from rrpolicy.rewards.relative_reward import Head

AGENT = make_agent()
STARTS = np.arange(5)
WINDOWS = DATASET.windows(AGENT.layout, STARTS)


def make_reward(**kwargs: Any) -> RelativeReward:
    return RelativeReward.for_model(AGENT, **{"window_kwargs": NARROW, "step_kwargs": NARROW, **kwargs})


@pytest.fixture
def reward() -> RelativeReward:
    reward = make_reward()
    reward.gradient_scale.copy_(torch.linspace(3.0, 1.0, 10))
    return reward


def packed(observations: np.ndarray, actions: np.ndarray) -> torch.Tensor:
    normalizer = AGENT.normalizer
    rows = AGENT.layout.pack(normalizer.observations.normalize(observations), normalizer.actions.normalize(actions))
    return torch.as_tensor(rows)


# ---------------------------------------------------------------------- networks


def test_a_reward_of_images_is_a_convolution(tmp_path: Path) -> None:
    process = DiffusionProcess.from_alphas_cumprod([0.9, 0.5, 0.1])
    kwargs = {"network": "conv", "width": 8, "multipliers": (1, 2)}
    reward = RelativeReward(process, (3, 5, 7), heads=["window"], window_kwargs=kwargs).double()
    for parameter in reward.parameters():  # blocks start as the identity, which would test little
        parameter.data += 0.2 * torch.randn_like(parameter)
    x_t, t = torch.randn(4, 3, 5, 7, dtype=torch.float64), torch.tensor([0, 1, 2, 2])
    assert reward(x_t, t).shape == (4,)
    direction = torch.randn_like(x_t)
    slope = (reward(x_t + 1e-6 * direction, t) - reward(x_t - 1e-6 * direction, t)) / 2e-6
    torch.testing.assert_close((reward.gradient(x_t, t) * direction).flatten(1).sum(dim=1), slope, rtol=1e-5, atol=1e-8)
    assert not torch.allclose(reward(x_t, t), reward(x_t, t.flip(0)))  # it knows the level
    assert not torch.allclose(reward(x_t, t), reward(x_t.flip(-1), t))  # and where things are
    reward.float().save(tmp_path / "reward")
    again = RelativeReward.load(tmp_path / "reward")
    assert again.window_kwargs["network"] == "conv" and again.process == process
    assert torch.equal(again(x_t.float(), t), reward(x_t.float(), t))


@pytest.mark.parametrize(
    ("event_shape", "kwargs", "message"),
    [
        ((1, 4, 4), {"network": "unet"}, r"\['network'\] is 'unet', .* one of \['conv', 'mlp', 'unet-encoder'\]"),
        ((4, 4), {"network": "conv"}, r"needs events \(C, H, W\), event_shape is \(4, 4\)"),
        ((1, 4, 4), {"network": "conv", "width": 12}, "width is 12, it must be a multiple of 8"),
    ],
)
def test_networks_that_do_not_fit_are_refused(event_shape: tuple, kwargs: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RelativeReward(DiffusionProcess(), event_shape, heads=["window"], window_kwargs=kwargs)


# ---------------------------------------------------------------------- tensors


@pytest.mark.parametrize("head", ["window", "step", None])
def test_it_is_one_number_per_event(reward: RelativeReward, head: Head | None) -> None:
    x_t, t = torch.randn(4, 8, 6), torch.tensor([0, 3, 5, 9])
    rho = reward(x_t, t, head)
    assert rho.shape == (4,) and rho.requires_grad
    for i in range(4):
        torch.testing.assert_close(rho[i : i + 1], reward(x_t[i : i + 1], t[i : i + 1], head), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("head", ["window", "step"])
def test_its_gradient_is_that_of_finite_differences(reward: RelativeReward, head: Head) -> None:
    reward.double()
    x_t, t = torch.randn(6, 8, 6, dtype=torch.float64), torch.tensor([0, 1, 3, 5, 7, 9])
    gradient = reward.gradient(x_t, t, head)
    direction = torch.where(reward.pinned, 0.0, torch.randn_like(x_t))
    slope = (reward(x_t + 1e-6 * direction, t, head) - reward(x_t - 1e-6 * direction, t, head)) / 2e-6
    torch.testing.assert_close((gradient * direction).flatten(1).sum(1), slope.detach(), rtol=1e-4, atol=1e-6)
    assert (gradient[:, 0, 2:] == 0).all() and (gradient[:, 1:] != 0).all()


def test_asking_for_gradients_leaves_no_trace(reward: RelativeReward) -> None:
    x_t, t = torch.randn(2, 8, 6), torch.tensor([0, 9])
    copy = x_t.clone()
    with torch.no_grad():
        gradient = reward.gradient(x_t, t)
    assert not x_t.requires_grad and x_t.grad is None and torch.equal(x_t, copy) and not gradient.requires_grad
    assert all(parameter.grad is None for parameter in reward.parameters())


def test_the_step_head_sums_over_the_steps_that_are_not_wholly_pinned() -> None:
    x_t, t = torch.randn(3, 8, 6), torch.tensor([0, 4, 9])
    reward = make_reward()
    rows = torch.stack([reward.forward_steps(x_t[:, i], t) for i in range(8)], dim=1)
    torch.testing.assert_close(reward(x_t, t, "step"), rows.sum(1), rtol=1e-4, atol=1e-4)
    pinned = torch.zeros(8, 6, dtype=torch.bool)
    pinned[0] = True
    held = RelativeReward(AGENT.process, (8, 6), pinned, window_kwargs=NARROW, step_kwargs=NARROW)
    rows = torch.stack([held.forward_steps(x_t[:, i], t) for i in range(8)], dim=1)
    torch.testing.assert_close(held(x_t, t, "step"), rows[:, 1:].sum(1), rtol=1e-4, atol=1e-4)


def test_guidance_subtracts_the_scaled_gradient(reward: RelativeReward) -> None:
    x_t, t = torch.randn(4, 8, 6), torch.tensor([0, 3, 5, 9])
    base = AGENT.eps(x_t, t)
    sigma = AGENT.process.sigma(t)[:, None, None]
    assert guided(AGENT.eps, reward, AGENT.process, 0.0) == AGENT.eps
    for scale in (0.5, 2.0):
        steered = guided(AGENT.eps, reward, AGENT.process, scale)(x_t, t)
        torch.testing.assert_close(steered, base - scale * sigma * reward.gradient(x_t, t))
    bounded = guided(AGENT.eps, reward, AGENT.process, 1e6, max_shift=0.1)(x_t, t)
    shift = AGENT.process.x0_from_eps(x_t, t, bounded) - AGENT.process.x0_from_eps(x_t, t, base)
    assert float(shift.abs().max()) == pytest.approx(0.1, rel=1e-2)


def test_the_gradient_at_the_clean_estimate_moves_it_as_q_guided_flow_does(reward: RelativeReward) -> None:
    x_t, t = torch.randn(4, 8, 6), torch.tensor([0, 3, 5, 9])
    process = AGENT.process
    clean = process.x0_from_eps(x_t, t, AGENT.eps(x_t, t))
    gradient = reward.gradient(clean, torch.zeros_like(t))
    steered = guided(AGENT.eps, reward, process, 0.5, gradient_at="clean")(x_t, t)
    # a flow is at (1 - w) noise + w data, and its clean estimate moves by (1 - w) scale ∇ρ
    one_minus_w = (process.sigma(t) / (process.alpha(t) + process.sigma(t)))[:, None, None]
    moved = process.x0_from_eps(x_t, t, steered) - clean
    torch.testing.assert_close(moved, 0.5 * one_minus_w * gradient, rtol=1e-3, atol=1e-4)
    for given in ("", "x0"):
        with pytest.raises(ValueError, match=f"gradient_at is '{given}', it must be 'noised' or 'clean'"):
            guided(AGENT.eps, reward, process, 1.0, gradient_at=given)  # type: ignore[arg-type]


def test_tensors_of_wrong_shape_are_refused(reward: RelativeReward) -> None:
    with pytest.raises(ValueError, match=r"x_t has shape \(2, 7, 6\), wanted \(B, 8, 6\)"):
        reward(torch.zeros(2, 7, 6), torch.zeros(2, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"t has shape \(1,\), wanted \(2,\)"):
        reward(torch.zeros(2, 8, 6), torch.zeros(1, dtype=torch.int64))


# ---------------------------------------------------------------------- heads


def test_heads_that_are_missing_are_refused() -> None:
    window, step = make_reward(heads=("window",)), make_reward(heads=("step",))
    x_t, t = torch.zeros(1, 8, 6), torch.zeros(1, dtype=torch.int64)
    with pytest.raises(ValueError, match=r"head is 'step', this reward has \('window',\)"):
        window(x_t, t, "step")
    with pytest.raises(ValueError, match="head is 'step'"):
        window.predict(DATASET.observations[:2], DATASET.actions[:2])
    with pytest.raises(ValueError, match="head is 'window'"):
        step(x_t, t, "window")
    assert step(x_t, t).shape == (1,)
    assert step.predict(WINDOWS.observations, WINDOWS.actions).shape == (5,)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"heads": ()}, "heads is .*, it must name 'window', 'step' or both"),
        ({"heads": ("window", "pixel")}, "heads is .*pixel"),
        ({"event_shape": (1, 4, 4)}, r"a step head needs events of shape \(H, D\), event_shape is \(1, 4, 4\)"),
    ],
)
def test_wrong_heads_are_refused(kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RelativeReward(**{"process": DiffusionProcess(10), "event_shape": (8, 6), **kwargs})


def test_events_that_are_not_windows_have_no_environment_units() -> None:
    reward = RelativeReward(DiffusionProcess(10), (1, 4, 4), heads=("window",), window_kwargs=NARROW)
    assert reward(torch.zeros(3, 1, 4, 4), torch.zeros(3, dtype=torch.int64)).shape == (3,)
    with pytest.raises(ValueError, match="no layout and normalizer"):
        reward.predict(np.zeros((3, 4)))


# ---------------------------------------------------------------------- environment units


def test_windows_are_scored_by_the_window_head_at_the_cleanest_level(reward: RelativeReward) -> None:
    scores = reward.predict(WINDOWS.observations, WINDOWS.actions)
    assert scores.shape == (5,) and scores.dtype == np.float32
    x0 = packed(WINDOWS.observations, WINDOWS.actions)
    x_t = torch.where(reward.pinned, x0, reward.process.alpha(0) * x0)
    wanted = reward(x_t, torch.zeros(5, dtype=torch.int64), "window")
    torch.testing.assert_close(torch.as_tensor(scores), wanted.detach())


def test_steps_are_scored_by_the_step_head_at_a_clean_level() -> None:
    agent = make_agent(n_diffusion_steps=50)
    reward = RelativeReward.for_model(agent, window_kwargs=NARROW, step_kwargs=NARROW)
    assert (reward.map_level, reward.far_level, reward.n_clean_levels) == (5, 15, 16)
    observations, actions = DATASET.observations[:7], DATASET.actions[:7]
    x0 = packed(observations, actions)
    wanted = reward.forward_steps(reward.process.alpha(5) * x0, torch.full((7,), 5)).detach()
    torch.testing.assert_close(torch.as_tensor(reward.predict(observations, actions)), wanted)


def test_levels_can_be_chosen(reward: RelativeReward) -> None:
    one, other, both = (reward.predict(WINDOWS.observations, WINDOWS.actions, levels) for levels in ([2], [7], [2, 7]))
    np.testing.assert_allclose(both, (one + other) / 2, rtol=1e-5, atol=1e-5)
    assert abs(one - other).max() > 1e-3


def test_predict_changes_nothing(reward: RelativeReward) -> None:
    reward.train()
    observations, actions = WINDOWS.observations.copy(), WINDOWS.actions.copy()
    before = torch.get_rng_state()
    first, second = (reward.predict(observations, actions) for _ in range(2))
    np.testing.assert_array_equal(first, second)
    np.testing.assert_array_equal(observations, WINDOWS.observations)
    np.testing.assert_array_equal(actions, WINDOWS.actions)
    assert reward.training and torch.equal(before, torch.get_rng_state())


def test_actions_are_needed_exactly_where_they_are_planned() -> None:
    with pytest.raises(ValueError, match=r"actions has shape None, wanted \(2, 2\)"):
        make_reward().predict(DATASET.observations[:2])
    agent = agent_of_kind("controller")
    reward = RelativeReward.for_model(agent, window_kwargs=NARROW, step_kwargs=NARROW)
    observations, actions = DATASET.observations[:2], DATASET.actions[:2]
    np.testing.assert_array_equal(reward.predict(observations), reward.predict(observations, actions))


@pytest.mark.parametrize(
    ("observations", "actions", "message"),
    [
        (np.zeros((2, 3)), np.zeros((2, 2)), r"observations has shape \(2, 3\), wanted \('n', 4\) or \('n', 8, 4\)"),
        (np.zeros(4), np.zeros(2), r"observations has shape \(4,\), wanted"),
        (np.zeros((2, 7, 4)), np.zeros((2, 7, 2)), r"observations has shape \(2, 7, 4\), wanted"),
        (np.zeros((2, 4)), np.zeros((2, 3)), r"actions has shape \(2, 3\), wanted \(2, 2\)"),
        (np.zeros((2, 4)), np.zeros((3, 2)), r"actions has shape \(3, 2\), wanted \(2, 2\)"),
        (np.full((2, 4), np.nan), np.zeros((2, 2)), r"observations of shape \(2, 4\)\) hold NaN or inf"),
        (np.zeros((2, 4)), np.full((2, 2), np.inf), "hold NaN or inf"),
    ],
)
def test_wrong_data_is_refused(observations: np.ndarray, actions: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_reward().predict(observations, actions)


# ---------------------------------------------------------------------- the archive


def test_a_loaded_reward_says_the_same(reward: RelativeReward, tmp_path: Path) -> None:
    reward.save(tmp_path / "reward", card={"goal": [3, 1]})
    loaded = RelativeReward.load(tmp_path / "reward")
    np.testing.assert_array_equal(
        loaded.predict(WINDOWS.observations, WINDOWS.actions), reward.predict(WINDOWS.observations, WINDOWS.actions)
    )
    assert loaded.layout == AGENT.layout and loaded.normalizer == AGENT.normalizer and loaded.source == "extraction"
    assert not loaded.training and not any(parameter.requires_grad for parameter in loaded.parameters())
    assert torch.equal(loaded.pinned, reward.pinned)
    assert read_archive(tmp_path / "reward").card == {"goal": [3, 1]}


def test_half_precision_is_near(reward: RelativeReward, tmp_path: Path) -> None:
    reward.save(tmp_path / "whole")
    reward.save(tmp_path / "half", half=True)
    assert (tmp_path / "half.zip").stat().st_size < 0.75 * (tmp_path / "whole.zip").stat().st_size
    near = RelativeReward.load(tmp_path / "half").predict(WINDOWS.observations, WINDOWS.actions)
    np.testing.assert_allclose(near, reward.predict(WINDOWS.observations, WINDOWS.actions), atol=0.02)


def test_a_reward_without_layout_or_with_one_head_survives(tmp_path: Path) -> None:
    reward = RelativeReward(DiffusionProcess(10), (5,), heads=("window",), window_kwargs=NARROW, source="discriminator")
    reward.save(tmp_path / "reward")
    loaded = RelativeReward.load(tmp_path / "reward")
    x_t, t = torch.randn(2, 5), torch.tensor([0, 9])
    assert torch.equal(loaded(x_t, t), reward(x_t, t).detach())
    assert loaded.heads == ("window",) and loaded.layout is None and loaded.source == "discriminator"


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (lambda config, tensors: tensors["weights"].pop("gradient_scale"), "gradient_scale"),
        (lambda config, tensors: tensors.pop("weights"), "weights"),
        (lambda config, tensors: config.pop("heads"), "heads"),
        (lambda config, tensors: config.update(heads=["pixel"]), "pixel"),
        (lambda config, tensors: config["process"].update(n_diffusion_steps=0), "n_diffusion_steps: .* to 2, got 0"),
        (lambda config, tensors: config.update(pinned=[10_000]), "10000"),
        (lambda config, tensors: config.update(event_shape=[9, 6]), r"\(9, 6\), the layout.s windows have \(8, 6\)"),
    ],
)
def test_archives_that_do_not_fit_are_refused_naming_file_and_fault(change: Any, fault: str, tmp_path: Path) -> None:
    make_reward().save(tmp_path / "reward")
    archive = read_archive(tmp_path / "reward")
    change(archive.config, archive.tensors)
    forge(archive.path, archive.kind, archive.config, archive.tensors)
    with pytest.raises(ValueError, match=fault) as caught:
        RelativeReward.load(archive.path)
    assert str(archive.path) in str(caught.value)
