"""Safety guidance against the pipeline that published it, kept by diffusers among its deprecated classes."""

import functools
import warnings
from copy import deepcopy
from dataclasses import replace
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler
from diffusers.pipelines.deprecated.stable_diffusion_safe import SafetyConfig as Published
from diffusers.pipelines.deprecated.stable_diffusion_safe import StableDiffusionPipelineSafe
from helpers.pipelines import SCALED, stable_diffusion_parts

from rrpolicy.diffusion.sampling import sample
from rrpolicy.diffusion.schedulers import process_of
from rrpolicy.images.safety import SAFETY_CONCEPT, STRENGTHS, SafetyConfig, safety_config, safety_guidance
from rrpolicy.images.stable_diffusion import SafeModel, StableDiffusion

PROMPTS = ["a cat", "a photo of blood, weapons, hate"]
N_STEPS = 10
PUBLISHED_NAMES = {"momentum_beta": "mom_beta"}


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    # less noise than Stable Diffusion has: an untrained network removes none of it, latents would reach 35
    scheduler = DDIMScheduler(clip_sample=False, steps_offset=1, **{**SCALED, "beta_end": 0.003})
    return {**stable_diffusion_parts(tmp_path_factory.mktemp("parts")), "scheduler": scheduler}


def precise(parts: dict[str, Any]) -> dict[str, Any]:
    """The same in float64: guidance scales what float32 rounds off by up to 5000."""

    def to_double(unet: Any, args: Any, kwargs: Any) -> Any:
        return tuple(map(doubled, args)), {name: doubled(value) for name, value in kwargs.items()}

    unet, vae = (deepcopy(parts[name]).double() for name in ("unet", "vae"))
    unet.register_forward_pre_hook(to_double, with_kwargs=True)
    return {**parts, "unet": unet, "vae": vae}


def doubled(value: Any) -> Any:
    return value.double() if isinstance(value, torch.Tensor) and value.is_floating_point() else value


def pipeline_of(parts: dict[str, Any]) -> StableDiffusion:
    networks = {name: part for name, part in parts.items() if name != "scheduler"}
    return StableDiffusion(**networks, process=process_of(parts["scheduler"]))


@pytest.fixture(scope="module")
def pipeline(parts: dict[str, Any]) -> StableDiffusion:
    return pipeline_of(parts)


def oracle(parts: dict[str, Any], noise: torch.Tensor, **options: Any) -> torch.Tensor:
    """Latents of the deprecated pipeline after each step (N_STEPS, B, 4, 8, 8)."""
    safe = StableDiffusionPipelineSafe(
        **parts, safety_checker=None, feature_extractor=None, requires_safety_checker=False
    )
    safe.set_progress_bar_config(disable=True)
    latents: list[torch.Tensor] = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of the deprecated class about itself
        safe(
            PROMPTS,
            16,
            16,
            N_STEPS,
            latents=noise.clone(),
            output_type="np",
            callback=lambda i, t, x: latents.append(x.clone()),
            **options,
        )
    return torch.stack(latents)


def test_the_strengths_are_the_published_ones() -> None:
    for name, config in STRENGTHS.items():
        published = dict(getattr(Published, name.upper()))
        assert published == {f"sld_{PUBLISHED_NAMES.get(key, key)}": value for key, value in vars(config).items()}


LESS = [pytest.param(strength, marks=pytest.mark.slow) for strength in ("weak", "medium", "strong")]


@pytest.mark.parametrize("strength", [*LESS, "max", "early"])
def test_denoising_equals_the_published_pipeline(strength: str, parts: dict[str, Any]) -> None:
    parts = precise(parts)
    pipeline = pipeline_of(parts)
    config = STRENGTHS.get(strength, replace(STRENGTHS["medium"], warmup_steps=3))
    options = {f"sld_{PUBLISHED_NAMES.get(name, name)}": value for name, value in vars(config).items()}
    noise = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0)).double()
    wanted = oracle(parts, noise, **options)
    levels = [int(t) for t in parts["scheduler"].timesteps]
    path, visited = SafeModel(pipeline.prompted(PROMPTS), config).path(), []
    last = sample(path, pipeline.process, noise, levels, visit=lambda x, t: visited.append(x))
    torch.testing.assert_close(torch.stack([*visited[1:], last]), wanted, rtol=0, atol=1e-4)
    if config.warmup_steps < N_STEPS:  # and it is the guidance that was compared
        plain = sample(pipeline.prompted(PROMPTS).eps, pipeline.process, noise, levels)
        assert float((last - plain).abs().max()) > 1e-2


def test_one_pass_gives_base_and_safe(pipeline: StableDiffusion) -> None:
    base = pipeline.prompted(PROMPTS)
    safe = SafeModel(base, SafetyConfig(5000, 0, 1.0, 0.0, 0.0))
    x_t, t = torch.randn(2, 4, 8, 8), torch.tensor([700, 700])
    plain, pushed = safe.path().both(x_t, t)
    torch.testing.assert_close(plain, base.eps(x_t, t), rtol=0, atol=1e-5)
    torch.testing.assert_close(pushed, safe.eps(x_t, t), rtol=0, atol=1e-5)  # without momentum the path is no memory
    assert not torch.allclose(plain, pushed, atol=1e-3)


def test_without_a_path_the_warm_up_is_a_part_of_the_levels(pipeline: StableDiffusion) -> None:
    base = pipeline.prompted("a cat")
    x_t, t = torch.randn(2, 4, 8, 8), torch.tensor([799, 800])
    change = (SafeModel(base, "medium").eps(x_t, t) - base.eps(x_t, t)).flatten(1).abs().amax(dim=1)
    assert change[0] > 1e-3 > 1e-5 > change[1]  # 10 of 50 steps


def test_entries_that_the_prompt_does_not_share_with_the_concept_are_left_alone() -> None:
    config = SafetyConfig(10, 0, 0.5, 0.5, 0.75)
    unconditional, concept, momentum = torch.zeros(4), torch.ones(4), torch.full((4,), 2.0)
    text = concept + torch.tensor([0.5, 0.05, -0.05, -3.0])
    push, kept = safety_guidance(config, unconditional, text, concept, momentum)
    assert push.tolist() == pytest.approx([1.0, 1.5, 1.5, 2.0])  # scale 0, .5, .5, 1, plus half the momentum
    assert kept.tolist() == pytest.approx([1.75, 1.875, 1.875, 2.0])


def test_wrong_configurations_are_refused() -> None:
    assert safety_config("max") is safety_config(STRENGTHS["max"])
    with pytest.raises(ValueError, match="safety is 'huge', it must be one of"):
        safety_config("huge")
    make = functools.partial(SafetyConfig, threshold=0.0)
    for values, message in (
        ({"guidance_scale": 0}, "guidance_scale is 0, it must be positive"),
        ({"warmup_steps": -1}, "warmup_steps is -1, it must not be negative"),
        ({"momentum_scale": -0.1}, "momentum_scale is -0.1, it must not be negative"),
        ({"momentum_beta": 1.0}, "momentum_beta is 1.0, it must be below 1"),
    ):
        with pytest.raises(ValueError, match=message):
            make(**{"guidance_scale": 20, "warmup_steps": 0, "momentum_scale": 0, "momentum_beta": 0, **values})


def test_the_concept_is_the_published_one(parts: dict[str, Any]) -> None:
    safe = StableDiffusionPipelineSafe(
        **parts, safety_checker=None, feature_extractor=None, requires_safety_checker=False
    )
    assert safe.safety_concept == SAFETY_CONCEPT
