"""The noising process: its tables against diffusers' schedulers, and every conversion against its inverse."""

import json

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler

from rrpolicy.diffusion.process import DiffusionProcess, Prediction, Schedule

BETA_SCHEDULES = {"cosine": "squaredcos_cap_v2", "linear": "linear"}


@pytest.fixture
def events() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """x0 (6, 3, 2), t (6,), noise (6, 3, 2)."""
    return torch.randn(6, 3, 2), torch.tensor([0, 1, 7, 20, 40, 49]), torch.randn(6, 3, 2)


@pytest.mark.parametrize("schedule", ["cosine", "linear"])
@pytest.mark.parametrize("n_diffusion_steps", [50, 100, 1000])
def test_levels_equal_those_of_diffusers(schedule: Schedule, n_diffusion_steps: int) -> None:
    process = DiffusionProcess(n_diffusion_steps, schedule)
    stretch = 1000 / n_diffusion_steps
    scheduler = DDPMScheduler(
        num_train_timesteps=n_diffusion_steps,
        beta_schedule=BETA_SCHEDULES[schedule],
        beta_start=1e-4 * stretch,
        beta_end=0.02 * stretch,
    )
    t = torch.arange(n_diffusion_steps)
    torch.testing.assert_close(process.alpha(t) ** 2, scheduler.alphas_cumprod, rtol=1e-4, atol=1e-7)
    torch.testing.assert_close(process.sigma(t) ** 2, 1 - scheduler.alphas_cumprod, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("n_diffusion_steps", "schedule"),
    [*((n, "cosine") for n in (2, 10, 50)), *((n, "linear") for n in (2, 3, 10, 20, 21, 50))],
)
def test_signal_falls_and_noise_rises_at_unit_variance(n_diffusion_steps: int, schedule: Schedule) -> None:
    process = DiffusionProcess(n_diffusion_steps, schedule)
    alpha, sigma = process.alpha(torch.arange(n_diffusion_steps)), process.sigma(torch.arange(n_diffusion_steps))
    torch.testing.assert_close(alpha**2 + sigma**2, torch.ones(n_diffusion_steps))
    assert (alpha.diff() < 0).all() and (sigma.diff() > 0).all()
    assert 0 < alpha[-1] < 0.15  # almost nothing of the event is left


@pytest.mark.parametrize("n_diffusion_steps", [3, 5, 20])
def test_few_levels_of_the_linear_schedule_end_where_a_thousand_do(n_diffusion_steps: int) -> None:
    """Of rates every division of the time leaves exp(-∫β) = exp(-10.05) of the signal's variance."""
    few, many = DiffusionProcess(n_diffusion_steps, "linear"), DiffusionProcess(1000, "linear")
    last = float(few.alpha(n_diffusion_steps - 1)) ** 2
    assert last == pytest.approx(float(np.exp(-10.05)), rel=1e-3)
    assert last == pytest.approx(float(many.alpha(999)) ** 2, rel=0.1)


def test_g_squared_sums_to_the_log_of_the_signal() -> None:
    process = DiffusionProcess(50)
    t = torch.arange(50)
    torch.testing.assert_close(process.g_squared(t).cumsum(0), -2 * process.alpha(t).log(), rtol=1e-4, atol=1e-5)


def test_levels_are_shaped_like_t_and_broadcast_over_events() -> None:
    process = DiffusionProcess(50)
    assert process.alpha(3).shape == () and process.sigma(torch.tensor([[1, 2]])).shape == (1, 2)
    alpha, sigma = process.levels(torch.zeros(2, 3, 4), torch.tensor([0, 49]))
    assert alpha.shape == sigma.shape == (2, 1, 1)
    assert alpha[0] > 0.99 and sigma[1] > 0.99


def test_noise_and_clean_event_are_recovered(events: tuple[torch.Tensor, torch.Tensor, torch.Tensor]) -> None:
    x0, t, noise = events
    process = DiffusionProcess(50)
    x_t = process.q_sample(x0, t, noise)
    torch.testing.assert_close(process.eps_from_x0(x_t, t, x0), noise, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(process.x0_from_eps(x_t, t, noise)[:-1], x0[:-1], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("prediction", ["x0", "eps", "v"])
def test_a_perfect_network_predicts_the_noise(
    events: tuple[torch.Tensor, torch.Tensor, torch.Tensor], prediction: Prediction
) -> None:
    x0, t, noise = events
    process = DiffusionProcess(50, prediction=prediction)
    output = process.target(x0, t, noise)
    eps = process.eps_from_output(process.q_sample(x0, t, noise), t, output)
    torch.testing.assert_close(eps, noise, rtol=1e-3, atol=1e-4)


def test_the_score_is_that_of_the_noising_gaussian(events: tuple[torch.Tensor, torch.Tensor, torch.Tensor]) -> None:
    x0, t, noise = events
    process = DiffusionProcess(50)
    x_t = process.q_sample(x0, t, noise).requires_grad_(True)
    alpha, sigma = process.levels(x0, t)
    log_density = (-0.5 * ((x_t - alpha * x0) / sigma) ** 2).sum()
    (score,) = torch.autograd.grad(log_density, x_t)
    torch.testing.assert_close(process.score_from_eps(t, noise), score, rtol=1e-2, atol=1e-3)


def test_x0_losses_are_weighted_by_the_clipped_signal_to_noise_ratio() -> None:
    t = torch.arange(50)
    process = DiffusionProcess(50, prediction="x0")
    weight = process.loss_weight(t)
    ratio = (process.alpha(t) / process.sigma(t)) ** 2
    inside = (ratio > 0.1) & (ratio < 5)
    torch.testing.assert_close(weight[inside], ratio[inside])
    assert weight[0] == 5.0 and weight[-1] == pytest.approx(0.1)
    assert (DiffusionProcess(50, prediction="eps").loss_weight(t) == 1).all()


def test_timesteps_fall_evenly_from_start_to_zero() -> None:
    process = DiffusionProcess(50)
    assert process.timesteps(5) == [49, 37, 24, 12, 0]
    assert process.timesteps(50) == list(range(49, -1, -1))
    assert process.timesteps(1) == [49] and process.timesteps(1, 7) == [7]
    for start in range(50):
        for n_steps in range(2, start + 2):
            steps = process.timesteps(n_steps, start)
            assert len(steps) == n_steps and steps[0] == start and steps[-1] == 0
            assert (np.diff(steps) < 0).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0,), r"n_steps is 0, it must lie in 1\.\.50"),
        ((51,), r"n_steps is 51, it must lie in 1\.\.50"),
        ((5, 3), r"n_steps is 5, it must lie in 1\.\.4 to start from level 3"),
        ((1, 50), r"start is 50, it must lie in 0\.\.49"),
    ],
)
def test_impossible_timesteps_are_refused(arguments: tuple[int, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DiffusionProcess(50).timesteps(*arguments)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"n_diffusion_steps": 1}, "n_diffusion_steps is 1, it must be at least 2"),
        ({"n_diffusion_steps": 10_001}, "n_diffusion_steps is 10001, it must be at most 10000"),
        ({"schedule": "square"}, "schedule is 'square', it must be one of"),
        ({"prediction": "mean"}, "prediction is 'mean', it must be one of"),
    ],
)
def test_a_wrong_process_is_refused(values: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DiffusionProcess(**values)


def test_a_table_of_levels_is_a_process_of_its_own() -> None:
    scheduler = DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    process = DiffusionProcess.from_alphas_cumprod(scheduler.alphas_cumprod.tolist(), "v")
    t = torch.arange(1000)
    torch.testing.assert_close(process.alpha(t) ** 2, scheduler.alphas_cumprod)
    torch.testing.assert_close(process.g_squared(t).cumsum(0), -scheduler.alphas_cumprod.log(), rtol=1e-4, atol=1e-5)
    again = DiffusionProcess(**json.loads(json.dumps(process.to_dict())))
    assert again == process and hash(again) == hash(process) and again.prediction == "v"
    assert repr(process).startswith("DiffusionProcess(1000, 'table ") and len(repr(process)) < 60
    moved = DiffusionProcess.from_alphas_cumprod([*scheduler.alphas_cumprod.tolist()[:-1], 1e-3], "v")
    assert moved != process and moved.schedule != process.schedule
    assert "alphas_cumprod" not in DiffusionProcess(25).to_dict()  # archives of named schedules stay as they were


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([0.9], "n_diffusion_steps is 1, it must be at least 2"),
        ([0.5, 0.9], r"alphas_cumprod runs from 0\.5 to 0\.9, it must fall at every level and stay within \(0, 1\)"),
        ([0.9, 0.9], "it must fall at every level"),
        ([1.0, 0.5], "it must fall at every level"),
        ([0.9, 0.0], "it must fall at every level"),
        ([0.9, float("nan"), 0.1], "it must fall at every level"),
        ([[0.9, 0.5], [0.4, 0.3]], r"alphas_cumprod has shape \(2, 2\), wanted \(2,\)"),
    ],
)
def test_a_table_that_is_none_is_refused(values: list, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DiffusionProcess.from_alphas_cumprod(values)


def test_a_table_under_another_name_is_refused() -> None:
    for name in ("cosine", "table 00000000"):
        with pytest.raises(ValueError, match=f"schedule is '{name}', with this alphas_cumprod it must be 'table "):
            DiffusionProcess(2, name, "eps", [0.9, 0.5])
    with pytest.raises(ValueError, match="schedule is 'table', it must be one of"):
        DiffusionProcess(2, "table")


def test_processes_are_values() -> None:
    process = DiffusionProcess(25, "linear", "v")
    again = DiffusionProcess(**process.to_dict())
    assert again == process and hash(again) == hash(process) and repr(again) == "DiffusionProcess(25, 'linear', 'v')"
    assert process != DiffusionProcess(26, "linear", "v") and process != "DiffusionProcess(25, 'linear', 'v')"
