"""The paths of `test_devices` on a GPU, where there is one: its numbers are the CPU's up to rounding.

What only a GPU has is tested here: its own noise, bfloat16, a compiler for it, and steps that it is not waited for.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.agents import DATASET, EXPERT_DATASET, make_agent, same_tensors
from test_devices import CASES, DATA, NARROW, OBSERVATIONS, outputs

from rrpolicy import DiffusionAgent, RewardExtractor
from rrpolicy.common.noise import generator, randn
from rrpolicy.diffusion.sampling import sample_model

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU of CUDA")


@pytest.fixture(autouse=True)
def full_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    monkeypatch.setattr(torch.backends.cuda.matmul, "allow_tf32", False)


@pytest.mark.parametrize("case", [case for case in CASES if case != "fast-noise"])
def test_a_gpu_gives_the_numbers_of_the_cpu(case: str, tmp_path: Path) -> None:
    found = []
    for device in ("cpu", "cuda"):
        (tmp_path / device).mkdir()
        numbers = CASES[case](device, tmp_path / device)
        found.append(numbers if isinstance(numbers, list) else [numbers])
    for mine, theirs in zip(*found, strict=True):
        error, size = np.asarray(theirs, dtype=float) - mine, np.sqrt(np.mean(np.square(mine, dtype=float)))
        assert np.sqrt(np.mean(error**2)) < 1e-3 * (1 + size)


def trained(steps: int = 20, **options: Any) -> DiffusionAgent:
    return make_agent(device="cuda", **options).learn(DATASET, total_timesteps=steps, log_interval=0)


def rms(values: Any) -> float:
    return float(np.sqrt(np.mean(np.square(np.asarray(values, dtype=float)))))


# ---------------------------------------------------------------------- noise of the GPU


def test_fast_noise_is_drawn_on_the_gpu_and_a_seed_repeats_it(tmp_path: Path) -> None:
    whole, again, usual = trained(fast_noise=True), trained(fast_noise=True), trained()
    assert whole.generator.device.type == "cuda"
    np.testing.assert_allclose(outputs(whole), outputs(again), atol=1e-4)
    assert rms(outputs(whole) - outputs(usual)) > 1e-3
    decided = [agent.predict(OBSERVATIONS, deterministic=True)[0] for agent in (whole, whole)]
    np.testing.assert_array_equal(*decided)


def test_a_checkpoint_with_fast_noise_goes_on(tmp_path: Path) -> None:
    first = trained(10, fast_noise=True)
    first.save(tmp_path / "agent.zip")
    again = DiffusionAgent.load(tmp_path / "agent.zip", device="cuda")
    assert torch.equal(again.generator.get_state(), first.generator.get_state())
    elsewhere = DiffusionAgent.load(tmp_path / "agent.zip", device="cpu")
    assert elsewhere.generator.initial_seed() == 0 + 10
    elsewhere.learn(DATASET, total_timesteps=2, log_interval=0, reset_num_timesteps=False)


def test_samples_are_drawn_on_the_gpu() -> None:
    agent = trained(2)
    drawn = [sample_model(agent, 4, generator=generator(3, agent.device), n_sampling_steps=3) for _ in range(2)]
    assert torch.equal(*drawn)
    noise = randn((10_000,), generator(0, agent.device), agent.device)
    assert abs(float(noise.mean())) < 0.05 and abs(float(noise.std()) - 1) < 0.05


# ---------------------------------------------------------------------- bfloat16, parts, compiled networks


@pytest.mark.parametrize("options", [{"policy": "MlpPolicy"}, {"policy": "UnetPolicy", "policy_kwargs": {"width": 32}}])
def test_bfloat16_learns_as_float32_does(options: dict[str, Any]) -> None:
    found = {}
    for precision in ("fp32", "bf16"):
        losses: list[float] = []
        agent = make_agent(**options, device="cuda", precision=precision)
        agent.learn(DATASET, 80, callback=lambda known, _, to=losses: to.append(known["values"]["loss"]) or True)
        found[precision] = np.mean(losses[:10]), np.mean(losses[-20:])
        assert all(value.dtype is torch.float32 for value in agent.module.parameters())
    (first, last), (_, expected) = found["bf16"], found["fp32"]
    assert last < 0.8 * first and abs(last - expected) < 0.1 * (first - expected)


def test_the_second_derivative_exists_in_bfloat16() -> None:
    base, expert = trained(4), make_agent(device="cuda").learn(EXPERT_DATASET, total_timesteps=4, log_interval=0)
    extractor = RewardExtractor(base, expert, **NARROW, precision="bf16", fast_noise=True)
    extractor.learn(DATA, total_timesteps=10, log_interval=0)
    assert np.isfinite(outputs(extractor.reward)).all()


def test_parts_of_a_batch_learn_what_it_teaches() -> None:
    whole, parts = trained(), trained(accumulate=3)
    assert rms(outputs(whole) - outputs(parts)) < 1e-4 * (1 + rms(outputs(whole)))


@pytest.mark.slow
def test_the_compiler_gives_the_numbers_of_torch() -> None:
    whole, compiled = trained(), trained(compile=True)
    assert same_tensors(list(whole.module.state_dict()), list(compiled.module.state_dict()))
    assert rms(outputs(whole) - outputs(compiled)) < 1e-3 * (1 + rms(outputs(whole)))


# ---------------------------------------------------------------------- waiting


@pytest.mark.parametrize("fast_noise", [False, True])
def test_a_step_waits_once(fast_noise: bool) -> None:
    """Torch warns of every call that waits for the GPU."""
    agent = trained(5, fast_noise=fast_noise)
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with pytest.warns(UserWarning, match="synchronizing") as seen:
            agent.gradient_step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert sum("synchronizing" in str(one.message) for one in seen) == 1
