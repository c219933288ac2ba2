"""Flow-matching transformers: what the score model says is what the pipelines of diffusers denoise with."""

import functools
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import safetensors.torch
import torch
from helpers.flow_pipelines import write_flux, write_sd3
from test_images_cli import fault
from test_images_experts import all_the_way
from test_images_xl import recorded_steps

from rrpolicy.diffusion.sampling import sample
from rrpolicy.images.flow_models import MAX_LEVEL, FlowTransformer, Flux, StableDiffusion3, flow_process
from rrpolicy.images.pipelines import load_pipeline

PROMPTS = ["a cat", "a photo of a dog"]
EULER = {"_class_name": "FlowMatchEulerDiscreteScheduler"}
WRITE: dict[str, Callable[..., Path]] = {
    "sd3": write_sd3,
    "sd3 without T5": functools.partial(write_sd3, with_t5=False),
    "flux": write_flux,
}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("world")
    for kind, write in WRITE.items():
        for i, name in enumerate(("base", "expert")):
            write(folder / kind / name, i)
    (folder / "prompts.txt").write_text("a cat\na photo of blood\n")
    return folder


# ---------------------------------------------------------------------- levels


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_levels_are_those_of_the_flow(shift: float) -> None:
    """ᾱ = (1 - s)² / ((1 - s)² + s²), with s shifted as the scheduler does it and never 1."""
    process = flow_process({**EULER, "shift": shift}, 16)
    s = process.sigma(torch.arange(1000)) / (process.alpha(torch.arange(1000)) + process.sigma(torch.arange(1000)))
    assert float(s[-1]) == pytest.approx(MAX_LEVEL, abs=1e-5)
    last = MAX_LEVEL / (shift - (shift - 1) * MAX_LEVEL)
    spread = last * torch.arange(1, 1001) / 1000
    torch.testing.assert_close(s, shift * spread / (1 + (shift - 1) * spread), rtol=1e-3, atol=1e-5)
    assert process.prediction == "eps" and process.n_diffusion_steps == 1000


def test_a_dynamic_shift_depends_on_the_size() -> None:
    config = {**EULER, "use_dynamic_shifting": True, "base_shift": 0.5, "max_shift": 1.15}
    for n_tokens, mu in ((256, 0.5), (4096, 1.15), (2176, 0.825)):
        assert flow_process(config, n_tokens) == flow_process({**EULER, "shift": math.exp(mu)}, 1)
        linear = flow_process({**config, "time_shift_type": "linear"}, n_tokens)
        assert linear == flow_process({**EULER, "shift": mu}, 1)


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ({"_class_name": "DDPMScheduler"}, "_class_name is DDPMScheduler, wanted one of FlowMatchEuler"),
        ({"_class_name": "FlowMatchLCMScheduler"}, "wanted one of .*: it is distilled"),
        ({}, "_class_name is None"),
        ({**EULER, "invert_sigmas": True}, "its time runs from noise to pictures"),
        ({**EULER, "shift": 0}, "a shift of 0, wanted a positive one"),
        ({**EULER, "shift": "x"}, "names no levels of a flow"),
        ({**EULER, "use_dynamic_shifting": True, "max_image_seq_len": 256}, "names no levels of a flow"),
    ],
)
def test_other_levels_are_refused(config: dict[str, Any], reason: str, tmp_path: Path, world: Path) -> None:
    with pytest.raises(ValueError, match=reason):
        flow_process(config, 16)
    folder = write_sd3(tmp_path / "sd3", with_t5=False)
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(config))
    said = fault("sample", "--model", folder, "--prompts", world / "prompts.txt", "--out", tmp_path / "x")
    assert "scheduler_config.json: " in said


# ---------------------------------------------------------------------- predictions


def test_a_wrapped_flow_of_gaussians_is_exact(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """x0 ~ N(m, v): the exact velocity becomes the exact noise of the variance-preserving path."""
    model, mean, variance = load_pipeline(world / "sd3 without T5" / "base"), 0.7, 0.3
    assert isinstance(model, FlowTransformer)

    def velocity(x: torch.Tensor, level: torch.Tensor, condition: Any) -> torch.Tensor:
        s = level.view(-1, 1, 1, 1)
        x0 = mean + (1 - s) * variance / ((1 - s) ** 2 * variance + s**2) * (x - (1 - s) * mean)
        return (x - x0) / s

    monkeypatch.setattr(model, "velocity", velocity)
    x_t, t = torch.randn(4, 4, 8, 8), torch.tensor([0, 300, 700, 999])
    alpha, sigma = model.process.levels(x_t, t)
    wanted = sigma * (x_t - alpha * mean) / (alpha**2 * variance + sigma**2)
    torch.testing.assert_close(model.prompted("").eps(x_t, t), wanted, rtol=1e-3, atol=2e-4)


def theirs(model: Any, scheduler: Any) -> Any:
    """The pipeline of diffusers with the same parts."""
    words, encoders = list(model.tokenizers), list(model.text_encoders)
    if isinstance(model, Flux):
        pipeline = diffusers.FluxPipeline(
            scheduler, model.codec.vae, encoders[0], words[0], encoders[1], words[1], model.network
        )
    else:
        assert isinstance(model, StableDiffusion3)
        encoders, words = [*encoders, None][:3], [*words, None][:3]
        named = [part for pair in zip(encoders, words, strict=True) for part in pair]
        pipeline = diffusers.StableDiffusion3Pipeline(model.network, scheduler, model.codec.vae, *named)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.mark.parametrize("kind", WRITE)
def test_denoising_is_that_of_the_pipeline_of_diffusers(
    kind: str, world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each guided velocity, and the latents after Euler's steps: DDIM of the wrapped model (MODELS: rectified flow)."""
    plain = {"shift": 1.0, "use_dynamic_shifting": False}
    folder = WRITE[kind](tmp_path / "model", **plain)
    model, scheduler = load_pipeline(folder), diffusers.FlowMatchEulerDiscreteScheduler(shift=1.0)
    levels, guided = [999, 700, 300, 0], model.prompted(PROMPTS, 4.0)
    alpha, sigma = (
        level[levels] for level in (model.process.alpha(torch.arange(1000)), model.process.sigma(torch.arange(1000)))
    )
    s = sigma / (alpha + sigma)
    steps = recorded_steps(scheduler, monkeypatch)
    noise = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    given = noise if "sd3" in kind else packed(noise)
    options = {} if "sd3" in kind else {"max_sequence_length": 512}
    latents = theirs(model, scheduler)(
        PROMPTS,
        height=16,
        width=16,
        num_inference_steps=4,
        sigmas=np.array(s),
        guidance_scale=4.0,
        latents=given,
        output_type="latent",
        **options,
    ).images
    assert len(steps) == 4
    for (x, _, v), t in zip(steps, levels, strict=True):
        x, v = (one if "sd3" in kind else unpacked(one) for one in (x, v))
        level = s[levels.index(t)]
        got = guided.eps(x * (alpha + sigma)[levels.index(t)], torch.full((2,), t))
        torch.testing.assert_close(got, x + (1 - level) * v, rtol=1e-3, atol=1e-3)
    ours = sample(guided.eps, model.process, noise * (alpha + sigma)[0], levels)
    torch.testing.assert_close(ours, latents if "sd3" in kind else unpacked(latents), rtol=1e-3, atol=1e-3)


def packed(x: torch.Tensor) -> torch.Tensor:
    """Latents as Flux's pipeline has them: patches of 2 × 2 in a row."""
    return diffusers.FluxPipeline._pack_latents(x, len(x), 4, 8, 8)


def unpacked(x: torch.Tensor) -> torch.Tensor:
    return diffusers.FluxPipeline._unpack_latents(x, 16, 16, 2)


def test_images_go_through_the_shifted_autoencoder(world: Path) -> None:
    codec = load_pipeline(world / "sd3 without T5" / "base").codec
    assert codec.to_dict()["shift_factor"] == 0.25 and codec.to_dict()["scaling_factor"] == 1.5
    images = np.random.default_rng(0).integers(0, 256, (2, 16, 16, 3), dtype=np.uint8)
    with torch.no_grad():
        mean = codec.vae.encode(torch.as_tensor(images).permute(0, 3, 1, 2) / 127.5 - 1).latent_dist.mean
        shown = codec.vae.decode(mean).sample
    latents = codec.encode(images)
    torch.testing.assert_close(latents, 1.5 * (mean - 0.25), rtol=0, atol=1e-5)
    np.testing.assert_allclose(codec.decode(latents), ((shown / 2 + 0.5).clamp(0, 1) * 255).permute(0, 2, 3, 1), atol=1)


# ---------------------------------------------------------------------- all the way


@pytest.mark.parametrize(
    "kind", [*(pytest.param(one, marks=pytest.mark.slow) for one in ("sd3", "sd3 without T5")), "flux"]
)
def test_it_goes_all_the_way(kind: str, world: Path, tmp_path: Path) -> None:
    base, expert = (world / kind / name for name in ("base", "expert"))
    said = all_the_way(["--base", base, "--expert", expert], base, tmp_path, world / "prompts.txt")
    statement = "note: Flux has its guidance distilled into it: the reward compares two guided models"
    assert (statement in said) == (kind == "flux")
    about = json.loads((tmp_path / "pairs" / "manifest.json").read_text())["about"]
    assert about["pair"]["guidance_scale"] == (3.5 if kind == "flux" else 7.0)
    assert ("guidance distilled into it" in about["models"].get("note", "")) == (kind == "flux")
    assert "transformer/diffusion_pytorch_model.safetensors" in about["digests"]["expert"]


@pytest.mark.parametrize("kind", [pytest.param("sd3", marks=pytest.mark.slow), "flux"])
def test_half_precision_and_a_low_rank_change(kind: str, world: Path, tmp_path: Path) -> None:
    """T5 keeps the layers in float32 that overflow in half precision; a LoRA is found by the transformer's names."""
    exact, half = (load_pipeline(world / kind / "base", dtype=dtype) for dtype in ("float32", "float16"))
    assert isinstance(half, StableDiffusion3 | Flux) and half.network.dtype == torch.float16
    assert half.text_encoders[-1].encoder.block[0].layer[-1].DenseReluDense.wo.weight.dtype == torch.float32
    x_t, t = torch.randn(2, 4, 8, 8), torch.tensor([10, 900])
    got, wanted = (model.prompted(PROMPTS).eps(x_t, t) for model in (half, exact))
    torch.testing.assert_close(got, wanted, rtol=0.1, atol=0.1)
    name = "transformer_blocks.0.attn.to_q"
    size = exact.network.get_submodule(name).weight.shape[0]
    down, up = torch.randn(2, size), torch.randn(size, 2)
    lora = {f"transformer.{name}.lora_A.weight": down, f"transformer.{name}.lora_B.weight": up}
    safetensors.torch.save_file(lora, tmp_path / "lora.safetensors")
    changed = exact.with_lora(tmp_path / "lora.safetensors")
    got = changed.network.get_submodule(name).weight - exact.network.get_submodule(name).weight
    torch.testing.assert_close(got, up @ down, rtol=1e-4, atol=1e-5)


# ---------------------------------------------------------------------- what is refused


def test_a_flux_without_guidance_is_the_distilled_one(world: Path, tmp_path: Path) -> None:
    folder = write_flux(tmp_path / "schnell", guidance_embeds=False)
    with pytest.raises(ValueError, match=r"without guidance_embeds, as schnell's, is distilled to denoise"):
        load_pipeline(folder)


def test_a_unet_with_a_flow_s_levels_and_missing_parts_are_refused(world: Path, tmp_path: Path) -> None:
    for name, kind, part in (("sd3", "Stable Diffusion 3", "text_encoder_2"), ("flux", "Flux", "text_encoder_2")):
        folder = WRITE[name](tmp_path / name)
        (folder / part).rename(folder / "elsewhere")
        with pytest.raises(ValueError, match=f"is no {kind} folder: it lacks {part}/"):
            load_pipeline(folder)


def test_parts_that_do_not_fit_are_refused(world: Path) -> None:
    sd3, flux = (load_pipeline(world / name / "base") for name in ("sd3", "flux"))
    assert isinstance(sd3, StableDiffusion3) and isinstance(flux, Flux)
    for model, changes, reason in (
        (sd3, {"pooled_projection_dim": 40}, "pooled prompts have 48 numbers, the transformer wants 40"),
        (sd3, {"joint_attention_dim": 48}, "the text encoders are too wide, or not the 48"),
        (flux, {"joint_attention_dim": 32}, r"the text encoders are \(32, 64\) wide, the transformer wants \(32, 32\)"),
        (flux, {"out_channels": 8}, "takes more than a picture's latents"),
    ):
        network = type(model.network).from_config({**model.network.config, **changes})
        with pytest.raises(ValueError, match=reason):
            type(model)(network, model.codec.vae, model.text_encoders, model.tokenizers, model.process)
