"""Stable Diffusion XL: what the score model says is what diffusers' own pipeline says, from a folder to scores."""

import functools
import json
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from helpers.pipelines import SCALED, stable_diffusion_parts, write_stable_diffusion_xl
from test_images_cli import fault
from test_images_experts import all_the_way

from rrpolicy.images.pipelines import load_pipeline
from rrpolicy.images.stable_diffusion_xl import StableDiffusionXL


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("world")
    write_stable_diffusion_xl(folder / "xl")
    write_stable_diffusion_xl(folder / "expert", 1)
    (folder / "prompts.txt").write_text("a cat\na photo of blood\n")
    return folder


@pytest.mark.parametrize("zeros", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_it_says_what_the_pipeline_of_diffusers_says(
    zeros: bool, world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The guided prediction that each step of diffusers' own denoising is made with."""
    folder = write_stable_diffusion_xl(tmp_path / "xl", force_zeros_for_empty_prompt=zeros)
    model = load_pipeline(folder)
    assert isinstance(model, StableDiffusionXL) and model.zeros_for_nothing is zeros
    scheduler = diffusers.DDIMScheduler(**SCALED, clip_sample=False)
    theirs = diffusers.StableDiffusionXLPipeline(
        model.codec.vae,
        *model.text_encoders,
        *model.tokenizers,
        model.unet,
        scheduler,
        force_zeros_for_empty_prompt=zeros,
        add_watermarker=False,
    )
    steps = recorded_steps(scheduler, monkeypatch)
    theirs.set_progress_bar_config(disable=True)
    prompts = ["a cat", "a photo of a dog"]
    theirs(prompts, height=16, width=16, num_inference_steps=4, guidance_scale=5.0, output_type="latent")
    guided = model.prompted(prompts, 5.0)
    assert len(steps) == 4
    for x_t, t, wanted in steps:
        torch.testing.assert_close(guided.eps(x_t, t.expand(2)), wanted, rtol=1e-4, atol=1e-4)


def recorded_steps(
    scheduler: Any, monkeypatch: pytest.MonkeyPatch
) -> list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    """(x_t, t, prediction) of each step that a scheduler will be asked to take."""
    steps, step = [], scheduler.step

    def record(prediction: torch.Tensor, t: torch.Tensor, x_t: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        steps.append((x_t.clone(), t.clone(), prediction.clone()))
        return step(prediction, t, x_t, *args, **kwargs)

    monkeypatch.setattr(scheduler, "step", functools.wraps(step)(record))
    return steps


def test_each_prompt_has_its_own_conditions(world: Path) -> None:
    pipeline = load_pipeline(world / "xl")
    hidden, pooled = pipeline.embed(["a cat", "a dog"])
    assert hidden.shape == (2, 24, 64) and pooled.shape == (2, 24)
    x_t, t = torch.randn(5, 4, 8, 8), torch.tensor([0, 10, 500, 700, 999])
    prompts = ["a cat", "a dog", "blood", "a photo", "hate"]
    together = pipeline.prompted(prompts).eps(x_t, t)
    alone = torch.cat([pipeline.prompted(prompt).eps(x_t[i : i + 1], t[i : i + 1]) for i, prompt in enumerate(prompts)])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-4)


def test_it_goes_all_the_way(world: Path, tmp_path: Path) -> None:
    all_the_way(["--base", world / "xl", "--expert", world / "expert"], world / "xl", tmp_path, world / "prompts.txt")
    about = json.loads((tmp_path / "pairs" / "manifest.json").read_text())["about"]
    parts = {name.split("/")[0] for name in about["digests"]["base"]}
    assert parts == {"unet", "vae", "text_encoder", "text_encoder_2"}


@pytest.mark.slow  # an expert goes all the way above, and safety guidance in test_images_experts
def test_safety_guidance_goes_all_the_way(world: Path, tmp_path: Path) -> None:
    all_the_way(["--base", world / "xl", "--safety", "max"], world / "xl", tmp_path, world / "prompts.txt")


def test_half_precision(world: Path) -> None:
    half = load_pipeline(world / "xl", dtype="float16")
    assert half.codec.vae.dtype == torch.float32 and half.network.dtype == torch.float16  # its VAE overflows in half
    assert load_pipeline(world / "xl", dtype="bfloat16").codec.vae.dtype == torch.bfloat16


def test_parts_that_do_not_fit_are_refused(world: Path, tmp_path: Path) -> None:
    pipeline = load_pipeline(world / "xl")
    assert isinstance(pipeline, StableDiffusionXL)
    parts = (pipeline.codec.vae, pipeline.text_encoders, pipeline.tokenizers, pipeline.process)
    config = dict(pipeline.unet.config)
    for changes, reason in (
        ({"cross_attention_dim": 32}, "the text encoders are 64 wide together, the UNet wants 32"),
        ({"addition_embed_type": None}, "does not take the picture's size"),
        ({"projection_class_embeddings_input_dim": 5 * 8 + 24}, "added conditions of 64 numbers, SDXL's base has 72"),
        ({"time_cond_proj_dim": 8}, "as LCM's does: it is distilled"),
    ):
        with pytest.raises(ValueError, match=reason):
            StableDiffusionXL(diffusers.UNet2DConditionModel.from_config({**config, **changes}), *parts)
    folder = tmp_path / "one"
    for name, part in stable_diffusion_parts(folder).items():
        part.save_pretrained(folder / name)
    (folder / "model_index.json").write_text('{"_class_name": "StableDiffusionXLPipeline"}')
    said = fault("sample", "--model", folder, "--prompts", world / "prompts.txt", "--out", tmp_path / "x")
    assert "is no Stable Diffusion XL folder: it lacks text_encoder_2/" in said
