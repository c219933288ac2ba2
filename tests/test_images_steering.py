"""A reward in the user's own pipeline: their call stays, and each step is made with the steered prediction."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from helpers.flow_pipelines import write_flux, write_sd3
from helpers.pipelines import SCALED, write_ddpm, write_stable_diffusion, write_stable_diffusion_xl
from test_images_flows import packed, theirs, unpacked
from test_images_xl import recorded_steps

from rrpolicy.images.codec import PixelCodec
from rrpolicy.images.pipelines import load_pipeline
from rrpolicy.images.reward import ImageReward
from rrpolicy.images.stable_diffusion import StableDiffusion
from rrpolicy.images.steering import steer
from rrpolicy.images.unet import UNetScoreModel
from rrpolicy.rewards.guidance import guided
from rrpolicy.rewards.relative_reward import RelativeReward

SCALE = 50.0  # far beyond what rounding changes
PROMPTS = ["a cat", "a photo of a dog"]
STEPS = {"height": 16, "width": 16, "num_inference_steps": 3, "output_type": "latent"}


def reward_of(model: Any) -> ImageReward:
    torch.manual_seed(0)
    network = {"network": "conv", "width": 8}
    rho = RelativeReward(model.process, model.event_shape, heads=["window"], window_kwargs=network)
    for parameter in rho.parameters():  # a new head is zero
        torch.nn.init.normal_(parameter, std=0.3)
    return ImageReward(rho, model.codec)


def diffusers_sd(model: StableDiffusion, scheduler: Any) -> Any:
    pipeline = diffusers.StableDiffusionPipeline(
        vae=model.codec.vae,
        text_encoder=model.text_encoder,
        tokenizer=model.tokenizer,
        unet=model.unet,
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> StableDiffusion:
    return StableDiffusion.from_pretrained(write_stable_diffusion(tmp_path_factory.mktemp("sd") / "sd"))


@pytest.mark.parametrize("prediction", ["epsilon", pytest.param("sample", marks=pytest.mark.slow), "v_prediction"])
def test_each_step_is_made_with_the_steered_prediction(
    prediction: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_stable_diffusion(tmp_path / "sd")
    scheduler = diffusers.DDIMScheduler(**SCALED, clip_sample=False, prediction_type=prediction)
    scheduler.save_pretrained(folder / "scheduler")
    model = StableDiffusion.from_pretrained(folder)
    reward, pipeline = reward_of(model), diffusers_sd(model, scheduler)
    steps = recorded_steps(scheduler, monkeypatch)
    with steer(pipeline, reward, SCALE):
        pipeline(PROMPTS, guidance_scale=4.0, **STEPS)
    steered = guided(model.prompted(PROMPTS, 4.0).eps, reward.reward, model.process, SCALE)
    plain = model.prompted(PROMPTS, 4.0).eps
    assert len(steps) == 3
    for x_t, t, output in steps:
        got = model.process.eps_from_output(x_t, t.expand(2), output)
        wanted = steered(x_t, t.expand(2))
        torch.testing.assert_close(got, wanted, rtol=1e-3, atol=1e-3)
        assert float((wanted - plain(x_t, t.expand(2))).abs().max()) > 0.01


def test_other_samplers_stay_on_the_path(model: StableDiffusion, monkeypatch: pytest.MonkeyPatch) -> None:
    """Euler's latents are scaled before the network sees them: their noise is changed by the same amount."""
    scheduler = diffusers.EulerDiscreteScheduler(**SCALED, timestep_spacing="leading", steps_offset=1)
    reward, pipeline = reward_of(model), diffusers_sd(model, scheduler)
    steps = recorded_steps(scheduler, monkeypatch)
    with steer(pipeline, reward, SCALE):
        pipeline(PROMPTS, guidance_scale=4.0, **STEPS)
    steered = guided(model.prompted(PROMPTS, 4.0).eps, reward.reward, model.process, SCALE)
    for x, t, output in steps:
        level = t.long().expand(2)
        x_t = x * model.process.alpha(level).view(-1, 1, 1, 1)  # x0 + σ ε of Euler, divided by √(1 + σ²)
        torch.testing.assert_close(output, steered(x_t, level), rtol=2e-3, atol=2e-3)


def test_steering_ends_with_its_handle(model: StableDiffusion) -> None:
    reward, pipeline = reward_of(model), diffusers_sd(model, diffusers.DDIMScheduler(**SCALED, clip_sample=False))

    def draw() -> Any:
        return pipeline("a cat", generator=torch.Generator().manual_seed(0), **STEPS).images

    before = draw()
    with steer(pipeline, reward, 1.0):
        assert not torch.equal(draw(), before)
    assert torch.equal(draw(), before)
    handle = steer(pipeline, reward, 0.0)
    torch.testing.assert_close(draw(), before)
    handle.remove()


def test_a_larger_scale_is_a_larger_reward(model: StableDiffusion) -> None:
    reward, pipeline = reward_of(model), diffusers_sd(model, diffusers.DDIMScheduler(**SCALED, clip_sample=False))
    scores = []
    for scale in (-1.0, 0.0, 1.0):
        with steer(pipeline, reward, scale):
            drawn = pipeline(PROMPTS, generator=torch.Generator().manual_seed(0), **STEPS).images
        scores.append(float(reward.of_events(drawn, [0]).sum()))
    assert scores[0] < scores[1] < scores[2]


def test_xl_and_unconditional_pipelines_are_steered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    xl: Any = load_pipeline(write_stable_diffusion_xl(tmp_path / "xl"))
    scheduler = diffusers.DDIMScheduler(**SCALED, clip_sample=False)
    pipeline = diffusers.StableDiffusionXLPipeline(
        xl.codec.vae, *xl.text_encoders, *xl.tokenizers, xl.unet, scheduler, add_watermarker=False
    )
    pipeline.set_progress_bar_config(disable=True)
    reward, steps = reward_of(xl), recorded_steps(scheduler, monkeypatch)
    with steer(pipeline, reward, SCALE):
        pipeline(PROMPTS, guidance_scale=4.0, **STEPS)
    steered = guided(xl.prompted(PROMPTS, 4.0).eps, reward.reward, xl.process, SCALE)
    for x_t, t, output in steps:
        torch.testing.assert_close(output, steered(x_t, t.expand(2)), rtol=1e-3, atol=1e-3)
    small = UNetScoreModel.from_pretrained(write_ddpm(tmp_path / "ddpm"))
    ddpm = diffusers.DDPMPipeline(
        small.unet, diffusers.DDPMScheduler(num_train_timesteps=20, beta_schedule="squaredcos_cap_v2")
    )
    ddpm.set_progress_bar_config(disable=True)
    steps, reward = recorded_steps(ddpm.scheduler, monkeypatch), reward_of(small)
    with steer(ddpm, reward, SCALE):
        ddpm(batch_size=2, num_inference_steps=4)
    steered = guided(small.eps, reward.reward, small.process, SCALE)
    for x_t, t, output in steps:
        torch.testing.assert_close(output, steered(x_t, t.expand(2)), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("kind", "write"), [pytest.param("sd3", write_sd3, marks=pytest.mark.slow), ("flux", write_flux)]
)
def test_flows_are_steered(
    kind: str, write: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model: Any = load_pipeline(write(tmp_path / kind, shift=1.0, use_dynamic_shifting=False))
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=1.0)
    reward, pipeline, steps = reward_of(model), theirs(model, scheduler), recorded_steps(scheduler, monkeypatch)
    levels = [999, 700, 300]
    alpha, sigma = model.process.alpha(torch.tensor(levels)), model.process.sigma(torch.tensor(levels))
    s = sigma / (alpha + sigma)
    noise = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    with steer(pipeline, reward, SCALE):
        pipeline(
            PROMPTS, sigmas=np.array(s), guidance_scale=4.0, latents=packed(noise) if kind == "flux" else noise, **STEPS
        )
    steered = guided(model.prompted(PROMPTS, 4.0).eps, reward.reward, model.process, SCALE)
    for i, (x, _, v) in enumerate(steps):
        x, v = (unpacked(one) if kind == "flux" else one for one in (x, v))
        wanted = steered(x * (alpha + sigma)[i], torch.full((2,), levels[i]))
        torch.testing.assert_close(x + (1 - s[i]) * v, wanted, rtol=2e-3, atol=2e-3)


def test_what_does_not_fit_is_refused(model: StableDiffusion, tmp_path: Path) -> None:
    reward, scheduler = reward_of(model), diffusers.DDIMScheduler(**SCALED, clip_sample=False)
    pipeline = diffusers_sd(model, scheduler)
    with pytest.raises(ValueError, match="scale is nan, it must be finite"):
        steer(pipeline, reward, float("nan"))
    with pytest.raises(ValueError, match="pipeline is a StableDiffusion, wanted one of diffusers with a unet"):
        steer(object.__new__(StableDiffusion), reward)
    with pytest.raises(ValueError, match=r"made for noise levels .*table .*, the pipeline's scheduler has .*'linear'"):
        steer(diffusers_sd(model, diffusers.DDIMScheduler()), reward)
    other = StableDiffusion.from_pretrained(write_stable_diffusion(tmp_path / "other", vae_seed=1))
    with pytest.raises(ValueError, match=r"the reward was made for latents of the autoencoder .* with other weights"):
        steer(diffusers_sd(other, scheduler), reward)
    pixels = ImageReward(reward.reward, reward.codec)
    pixels.codec = PixelCodec((1, 16, 16), 2)
    with pytest.raises(ValueError, match="the reward was made for pixels, the pipeline has an autoencoder"):
        steer(pipeline, pixels)
    with steer(pipeline, reward), pytest.raises(ValueError, match=r"has events of shape \(4, 4, 4\), the reward was"):
        pipeline("a cat", **{**STEPS, "height": 8, "width": 8})
    flow: Any = load_pipeline(write_sd3(tmp_path / "sd3", with_t5=False))
    broken = theirs(flow, diffusers.FlowMatchEulerDiscreteScheduler())
    broken.scheduler = scheduler
    with pytest.raises(ValueError, match="the pipeline's scheduler is a DDIMScheduler, wanted one of FlowMatchEuler"):
        steer(broken, reward_of(flow))
