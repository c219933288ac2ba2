"""Samplers, number for number against diffusers' schedulers, and by the moments of what they draw.

The analytic mixture is the model, so nothing is trained and the true distribution is known.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, DPMSolverMultistepScheduler

from rrpolicy.diffusion.analytic import GaussianMixtureModel
from rrpolicy.diffusion.process import DiffusionProcess, Schedule
from rrpolicy.diffusion.sampling import Noise, SolverName, Step, ddim, sample, sample_model, solver_of

T = 50
BETA_SCHEDULES = {"cosine": "squaredcos_cap_v2", "linear": "linear"}
TOLERANCE: dict[str, float] = {"rtol": 0.0, "atol": 1e-5}


def mixture(schedule: Schedule) -> GaussianMixtureModel:
    means = 0.5 * torch.randn(3, 4, 2, generator=torch.Generator().manual_seed(0))
    return GaussianMixtureModel(means, 0.5, process=DiffusionProcess(T, schedule))


def scheduler_arguments(schedule: Schedule) -> dict[str, Any]:
    stretch = 1000 / T
    return {
        "num_train_timesteps": T,
        "beta_schedule": BETA_SCHEDULES[schedule],
        "beta_start": 1e-4 * stretch,
        "beta_end": 0.02 * stretch,
    }


def seeded_noise(seed: int = 1) -> Noise:
    generator = torch.Generator().manual_seed(seed)
    return lambda x: torch.randn(x.shape, generator=generator)


def with_diffusers(scheduler: Any, model: GaussianMixtureModel, x_t: torch.Tensor, **kwargs: Any) -> torch.Tensor:
    """What diffusers' own loop makes of the same model and noise."""
    generator = torch.Generator().manual_seed(1)
    for t in scheduler.timesteps.tolist():
        eps = model.eps(x_t, torch.full((len(x_t),), t))
        x_t = scheduler.step(eps, t, x_t, generator=generator, **kwargs).prev_sample
    return x_t


def start(model: GaussianMixtureModel, level: int | None) -> torch.Tensor:
    """Noise, or for a warm start re-noised samples at ``level``."""
    generator = torch.Generator().manual_seed(2)
    noise = torch.randn(16, 4, 2, generator=generator)
    if level is None:
        return noise
    return model.process.q_sample(model.sample(16, generator), torch.full((16,), level), noise)


@pytest.mark.parametrize("clip", [None, 1.5])
@pytest.mark.parametrize(("n_steps", "level"), [(T, None), (10, None), (5, None), (4, 30), (1, None)])
@pytest.mark.parametrize("schedule", ["cosine", "linear"])
def test_ddpm_equals_diffusers(schedule: Schedule, n_steps: int, level: int | None, clip: float | None) -> None:
    model = mixture(schedule)
    timesteps = model.process.timesteps(n_steps, level)
    scheduler = DDPMScheduler(
        **scheduler_arguments(schedule), clip_sample=clip is not None, clip_sample_range=clip or 1.0
    )
    scheduler.set_timesteps(timesteps=timesteps)
    # its float32 table loses 1e-5 where it subtracts neighbouring levels; the same numbers in float64 do not
    scheduler.alphas_cumprod = (-model.process.g_squared(torch.arange(T)).double().cumsum(0)).exp()
    x_t = start(model, level)
    drawn = sample(model.eps, model.process, x_t, timesteps, solver="ddpm", noise=seeded_noise(), clip=clip)
    torch.testing.assert_close(drawn, with_diffusers(scheduler, model, x_t), **TOLERANCE)


@pytest.mark.parametrize("clip", [None, 1.5])
@pytest.mark.parametrize("n_steps", [T, 10, 5, 2])
@pytest.mark.parametrize("schedule", ["cosine", "linear"])
def test_ddim_equals_diffusers(schedule: Schedule, n_steps: int, clip: float | None) -> None:
    model = mixture(schedule)
    scheduler = DDIMScheduler(
        **scheduler_arguments(schedule),
        clip_sample=clip is not None,
        clip_sample_range=clip or 1.0,
        timestep_spacing="trailing",
    )
    scheduler.set_timesteps(n_steps)
    x_t = start(model, None)
    drawn = sample(model.eps, model.process, x_t, scheduler.timesteps.tolist(), solver="ddim", clip=clip)
    wanted = with_diffusers(scheduler, model, x_t, use_clipped_model_output=True)
    torch.testing.assert_close(drawn, wanted, **TOLERANCE)


@pytest.mark.parametrize("schedule", ["cosine", "linear"])
def test_a_warm_started_ddim_equals_diffusers(schedule: Schedule) -> None:
    model = mixture(schedule)
    scheduler = DDIMScheduler(**scheduler_arguments(schedule), clip_sample=False, timestep_spacing="trailing")
    scheduler.set_timesteps(10)
    scheduler.timesteps = scheduler.timesteps[4:]
    levels = scheduler.timesteps.tolist()
    x_t = start(model, levels[0])
    drawn = sample(model.eps, model.process, x_t, levels)
    torch.testing.assert_close(drawn, with_diffusers(scheduler, model, x_t), **TOLERANCE)


@pytest.mark.parametrize(("n_steps", "level"), [(T, None), (10, None), (5, None), (4, 30), (1, 30)])
@pytest.mark.parametrize("schedule", ["cosine", "linear"])
def test_dpm_solver_equals_diffusers(schedule: Schedule, n_steps: int, level: int | None) -> None:
    model = mixture(schedule)
    timesteps = model.process.timesteps(n_steps, level)
    scheduler = DPMSolverMultistepScheduler(
        **scheduler_arguments(schedule), algorithm_type="dpmsolver++", solver_order=2, final_sigmas_type="zero"
    )
    scheduler.set_timesteps(timesteps=timesteps)
    # in float64: cosine's noisiest level divides by α = 0.001, which makes up to 7e-5 of what float32 rounds off
    alphas_cumprod = (-model.process.g_squared(torch.arange(T)).double().cumsum(0)).exp()[timesteps]
    scheduler.sigmas = torch.cat([(1 / alphas_cumprod - 1).sqrt(), torch.zeros(1)])
    x_t = start(model, level).double()
    for name, tensor in list(vars(model).items()):
        if isinstance(tensor, torch.Tensor) and tensor.is_floating_point():
            setattr(model, name, tensor.double())
    drawn = sample(model.eps, model.process, x_t, timesteps, solver="dpm++")
    torch.testing.assert_close(drawn, with_diffusers(scheduler, model, x_t), **TOLERANCE)


@pytest.mark.parametrize(("solver", "n_steps"), [("ddpm", T), ("ddim", T), ("dpm++", 25)])
def test_samples_have_the_model_s_moments(solver: SolverName, n_steps: int) -> None:
    weights = torch.tensor([0.3, 0.7])
    model = GaussianMixtureModel(torch.tensor([[-1.0, 0.5], [1.0, -0.5]]), 0.05, weights)
    x_t = torch.randn(8000, 2, generator=torch.Generator().manual_seed(0))
    levels = model.process.timesteps(n_steps)
    drawn = sample(model.eps, model.process, x_t, levels, solver=solver, noise=seeded_noise())
    right = drawn[:, 0] > 0
    assert float(right.float().mean()) == pytest.approx(0.7, abs=0.03)
    for component, chosen in ((0, ~right), (1, right)):
        torch.testing.assert_close(drawn[chosen].mean(0), model.means[component], rtol=0, atol=0.02)
        torch.testing.assert_close(drawn[chosen].T.cov(), 0.05 * torch.eye(2), rtol=0, atol=0.015)


def test_a_warm_start_stays_near_the_earlier_sample() -> None:
    model = mixture("cosine")
    x0 = model.sample(500, torch.Generator().manual_seed(0))
    errors = []
    for level in (5, 20, 49):
        x_t = model.process.q_sample(x0, torch.full((500,), level), torch.randn(x0.shape))
        errors.append(float((sample(model.eps, model.process, x_t, model.process.timesteps(5, level)) - x0).std()))
    assert errors[0] < 0.5 * errors[1] < 0.5 * errors[2]


def test_pinned_entries_are_clean_before_every_prediction_and_in_the_result() -> None:
    model = mixture("cosine")
    visited: list[torch.Tensor] = []
    mask = torch.zeros(4, 2, dtype=torch.bool)
    mask[0] = True

    def pin(x: torch.Tensor) -> torch.Tensor:
        return torch.where(mask, 7.0, x)

    levels = model.process.timesteps(5)
    drawn = sample(
        model.eps, model.process, start(model, None), levels, pin=pin, visit=lambda x_t, t: visited.append(x_t)
    )
    assert len(visited) == 5
    assert all((x_t[:, 0] == 7).all() for x_t in [*visited, drawn])
    assert (drawn[:, 1:] != 7).all()


def test_every_level_is_visited_once_in_order() -> None:
    model = mixture("cosine")
    asked: list[int] = []
    sample(model.eps, model.process, start(model, None), [40, 20, 3], visit=lambda x_t, t: asked.append(int(t[0])))
    assert asked == [40, 20, 3]


def test_estimates_are_clipped() -> None:
    model = mixture("cosine")
    drawn = sample(model.eps, model.process, start(model, None), [49, 20, 0], clip=0.3)
    assert float(drawn.abs().max()) == pytest.approx(0.3)


@pytest.mark.parametrize("solver", ["ddim", "dpm++"])
def test_deterministic_solvers_draw_no_noise(solver: SolverName) -> None:
    def refuse(x: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("noise was drawn")

    model = mixture("cosine")
    before = torch.get_rng_state()
    arguments: tuple[Callable, DiffusionProcess, torch.Tensor, list[int]] = (
        model.eps,
        model.process,
        start(model, None),
        [49, 20, 0],
    )
    one, other = (sample(*arguments, solver=solver, noise=refuse) for _ in range(2))
    assert torch.equal(one, other) and torch.equal(before, torch.get_rng_state())


def test_the_start_is_not_changed() -> None:
    model = mixture("cosine")
    x_t = start(model, None)
    copy = x_t.clone()
    sample(model.eps, model.process, x_t, [49, 0], solver="ddpm")
    assert torch.equal(x_t, copy)


def test_wrong_arguments_are_refused() -> None:
    model = mixture("cosine")
    with pytest.raises(ValueError, match="sampler is 'euler', it must be one of"):
        solver_of("euler")
    with pytest.raises(ValueError, match=r"the solver returned \(1,\), wanted events of shape"):
        sample(model.eps, model.process, start(model, None), [49, 0], solver=lambda step: torch.zeros(1))
    with pytest.raises(ValueError, match="timesteps is empty"):
        sample(model.eps, model.process, start(model, None), [])


# ---------------------------------------------------------------------- own solvers, samples of a model


def test_a_function_of_a_step_is_a_solver() -> None:
    """One that writes DDIM down once more draws the same samples, bit for bit, and sees every level once."""
    model, seen = mixture("cosine"), []

    def own(step: Step) -> torch.Tensor:
        seen.append((step.t, step.s, None if step.previous is None else step.previous[0]))
        return step.process.alpha(step.s) * step.x0 + step.process.sigma(step.s) * step.eps

    x_t = start(model, None)
    drawn = sample(model.eps, model.process, x_t, [49, 20, 5, 0], solver=own)
    assert torch.equal(drawn, sample(model.eps, model.process, x_t, [49, 20, 5, 0], solver="ddim"))
    assert seen == [(49, 20, None), (20, 5, 49), (5, 0, 20)] and solver_of("ddim") is ddim


@pytest.mark.parametrize("solver", ["ddim", "ddpm", "dpm++"])
def test_samples_of_a_model_are_a_function_of_their_generator(solver: SolverName) -> None:
    model = mixture("cosine")

    def drawn(**options: Any) -> torch.Tensor:
        return sample_model(model, 6, generator=torch.Generator().manual_seed(1), solver=solver, **options)

    assert drawn().shape == (6, *model.event_shape) and torch.equal(drawn(), drawn(denoiser=model.eps))
    noise = seeded_noise(1)
    x_t = noise(torch.zeros(6, *model.event_shape))
    wanted = sample(model.eps, model.process, x_t, model.process.timesteps(20), solver=solver, noise=noise)
    assert torch.equal(drawn(), wanted)


def test_a_number_or_clean_events_are_needed() -> None:
    with pytest.raises(ValueError, match="n is None, wanted a number of events"):
        sample_model(mixture("cosine"), generator=torch.Generator())
