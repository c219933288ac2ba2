"""The bridges: what a score model says is what its network says, under the noise levels of its own scheduler."""

import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from diffusers import DDIMScheduler, DDPMScheduler, PNDMScheduler, UNet2DModel
from helpers.pipelines import SCALED, stable_diffusion_parts, unet, write_codec, write_ddpm, write_stable_diffusion

from rrpolicy.diffusion.process import DiffusionProcess
from rrpolicy.diffusion.sampling import sample
from rrpolicy.diffusion.schedulers import process_of
from rrpolicy.diffusion.score_model import ScoreModel, check_compatible
from rrpolicy.images.codec import PixelCodec
from rrpolicy.images.stable_diffusion import StableDiffusion
from rrpolicy.images.unet import UNetScoreModel

X_T, T = torch.randn(5, 1, 8, 8, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 3, 7, 12, 19])


@pytest.fixture(scope="module")
def pipeline_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_stable_diffusion(tmp_path_factory.mktemp("pipelines") / "sd")


@pytest.fixture(scope="module")
def pipeline(pipeline_folder: Path) -> StableDiffusion:
    return StableDiffusion.from_pretrained(pipeline_folder)


# ---------------------------------------------------------------------- noise levels


@pytest.mark.parametrize(
    ("scheduler", "schedule"),
    [
        (DDPMScheduler(num_train_timesteps=200, beta_schedule="squaredcos_cap_v2"), "cosine"),
        (DDPMScheduler(), "linear"),
        (DDPMScheduler(num_train_timesteps=10), "table"),
        (DDPMScheduler(num_train_timesteps=50, beta_schedule="sigmoid", prediction_type="sample"), "table"),
        (DDIMScheduler(**SCALED), "table"),
        (PNDMScheduler(**SCALED, prediction_type="v_prediction"), "table"),
    ],
)
def test_a_process_has_the_levels_of_its_scheduler(scheduler: Any, schedule: str) -> None:
    process = process_of(scheduler)
    levels = torch.arange(len(scheduler.alphas_cumprod))
    torch.testing.assert_close(process.alpha(levels) ** 2, scheduler.alphas_cumprod, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(process.sigma(levels) ** 2, 1 - scheduler.alphas_cumprod, rtol=1e-3, atol=1e-6)
    assert process.schedule.split()[0] == schedule
    predictions = {"epsilon": "eps", "sample": "x0", "v_prediction": "v"}
    assert process.prediction == predictions[scheduler.config.prediction_type]


def test_levels_without_signal_and_unknown_predictions_are_refused() -> None:
    with pytest.raises(ValueError, match=r"alphas_cumprod runs from .* to 0\.0, it must fall at every level"):
        process_of(DDIMScheduler(num_train_timesteps=5, trained_betas=[0.1, 0.2, 0.3, 0.4, 1.0]))
    scheduler = DDPMScheduler()
    scheduler.register_to_config(prediction_type="flow")
    with pytest.raises(ValueError, match="prediction_type is 'flow', it must be one of"):
        process_of(scheduler)


# ---------------------------------------------------------------------- unconditional models


@pytest.mark.parametrize("prediction", ["epsilon", "sample", "v_prediction"])
def test_it_says_what_the_network_says(prediction: str, tmp_path: Path) -> None:
    network = unet()
    scheduler = DDPMScheduler(num_train_timesteps=20, beta_schedule="scaled_linear", prediction_type=prediction)
    network.save_pretrained(tmp_path / "unet")
    scheduler.save_pretrained(tmp_path / "scheduler")
    model = UNetScoreModel.from_pretrained(tmp_path)
    model.batch_size = 2  # in parts
    with torch.no_grad():
        output = network(X_T, T).sample
    alpha, sigma = (
        level.view(-1, 1, 1, 1)
        for level in (scheduler.alphas_cumprod[T] ** 0.5, (1 - scheduler.alphas_cumprod[T]) ** 0.5)
    )
    x0 = {"epsilon": (X_T - sigma * output) / alpha, "sample": output, "v_prediction": alpha * X_T - sigma * output}
    torch.testing.assert_close(model.eps(X_T, T), (X_T - alpha * x0[prediction]) / sigma, rtol=1e-4, atol=1e-4)
    assert isinstance(model, ScoreModel) and model.event_shape == (1, 8, 8)


def test_denoising_is_that_of_the_pipeline(tmp_path: Path) -> None:
    """DDIM over a few levels, clipped, against diffusers' own scheduler."""
    model = UNetScoreModel.from_pretrained(write_ddpm(tmp_path))
    levels = model.process.timesteps(20)
    ours = sample(model.eps, model.process, X_T, levels, clip=model.clip)
    scheduler = DDIMScheduler(num_train_timesteps=20, beta_schedule="squaredcos_cap_v2", timestep_spacing="linspace")
    scheduler.set_timesteps(20)
    theirs = X_T
    with torch.no_grad():
        for t in scheduler.timesteps:
            theirs = scheduler.step(model.unet(theirs, t).sample, t, theirs, use_clipped_model_output=True).prev_sample
    torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-3)


def test_a_folder_may_name_its_codec_or_hold_the_network_alone(tmp_path: Path) -> None:
    write_ddpm(tmp_path / "folded", channels=4, size=(3, 4))
    write_codec(tmp_path / "folded", shape=[1, 6, 8], unshuffle=2)
    model = UNetScoreModel.from_pretrained(tmp_path / "folded")
    assert model.codec.image_shape == (1, 6, 8) and model.event_shape == (4, 3, 4) and model.clip == 1.0
    unet().save_pretrained(tmp_path / "alone")
    process = DiffusionProcess(20, "cosine", "eps")
    alone = UNetScoreModel.from_pretrained(tmp_path / "alone", process)
    assert alone.fingerprint() == UNetScoreModel.from_pretrained(write_ddpm(tmp_path / "whole")).fingerprint()
    with pytest.raises(ValueError, match=r"alone: could not be read as a DDPMScheduler"):
        UNetScoreModel.from_pretrained(tmp_path / "alone")


def test_half_precision_computes_in_half_and_answers_in_single(tmp_path: Path) -> None:
    write_ddpm(tmp_path)
    exact, rounded = (UNetScoreModel.from_pretrained(tmp_path, dtype=dtype) for dtype in ("float32", "bfloat16"))
    assert next(rounded.unet.parameters()).dtype == torch.bfloat16
    got = rounded.eps(X_T, T)
    assert got.dtype == torch.float32 and not torch.equal(got, exact.eps(X_T, T))
    torch.testing.assert_close(got, exact.eps(X_T, T), rtol=0.1, atol=0.1)


# ---------------------------------------------------------------------- Stable Diffusion


def test_guidance_moves_from_no_prompt_to_the_prompt_and_beyond(
    pipeline: StableDiffusion, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.backends.mkldnn, "enabled", False)  # its rounding may depend on the size of a batch
    x_t, t = torch.randn(5, 4, 8, 8), torch.tensor([0, 10, 500, 700, 999])
    prompts = ["a cat", "a dog", "blood", "a photo of a cat", "hate"]
    nothing, text, twice = (
        pipeline.prompted(some, scale).eps(x_t, t) for some, scale in (("", 1.0), (prompts, 1.0), (prompts, 2.0))
    )
    hidden = pipeline.text_encoder(
        pipeline.tokenizer(prompts, padding="max_length", max_length=24, return_tensors="pt").input_ids
    )[0]
    with torch.no_grad():
        torch.testing.assert_close(text, pipeline.unet(x_t, t, encoder_hidden_states=hidden).sample, rtol=0, atol=1e-5)
    torch.testing.assert_close(twice, 2 * text - nothing, rtol=0, atol=1e-5)
    assert not torch.allclose(text, nothing, atol=1e-3)
    one_by_one = torch.cat(
        [pipeline.prompted(prompt).eps(x_t[i : i + 1], t[i : i + 1]) for i, prompt in enumerate(prompts)]
    )
    # float32 rounds otherwise in a batch, on some processors by 1.2e-5; another prompt differs by more than 1e-3
    torch.testing.assert_close(pipeline.prompted(prompts).eps(x_t, t), one_by_one, rtol=0, atol=1e-4)


def test_images_go_through_the_autoencoder(pipeline: StableDiffusion) -> None:
    codec = pipeline.codec
    assert codec.image_shape == (3, 16, 16) and codec.event_shape == (4, 8, 8) and codec.clip is None
    images = np.random.default_rng(0).integers(0, 256, (9, 16, 16, 3), dtype=np.uint8)
    pixels = torch.as_tensor(images).permute(0, 3, 1, 2) / 127.5 - 1
    latents = codec.encode(images)
    with torch.no_grad():
        wanted = codec.vae.encode(pixels).latent_dist.mean * codec.vae.config.scaling_factor
        shown = codec.vae.decode(latents / codec.vae.config.scaling_factor).sample
    torch.testing.assert_close(latents, wanted, rtol=0, atol=1e-5)
    np.testing.assert_allclose(codec.decode(latents), ((shown / 2 + 0.5).clamp(0, 1) * 255).permute(0, 2, 3, 1), atol=1)


def test_too_long_a_prompt_is_cut_off(pipeline: StableDiffusion) -> None:
    torch.testing.assert_close(pipeline.embed(["cat " * 50]), pipeline.embed(["cat " * 60]))


def test_prompts_and_events_must_match(pipeline: StableDiffusion) -> None:
    with pytest.raises(ValueError, match="x_t has 3 events for 2 prompts"):
        pipeline.prompted(["a cat", "a dog"]).eps(torch.zeros(3, 4, 8, 8), torch.zeros(3, dtype=torch.int64))
    with pytest.raises(ValueError, match="prompts is empty"):
        pipeline.prompted([])


# ---------------------------------------------------------------------- what is refused


def test_pickles_are_not_opened(tmp_path: Path, pipeline_folder: Path) -> None:
    unet().save_pretrained(tmp_path / "unet", safe_serialization=False)
    DDPMScheduler().save_pretrained(tmp_path / "scheduler")
    message = r"unet holds its weights as pickles only \(diffusion_pytorch_model\.bin\), which may run code: not opened"
    with pytest.raises(ValueError, match=message):
        UNetScoreModel.from_pretrained(tmp_path)
    shutil.copytree(pipeline_folder, tmp_path / "sd")
    (tmp_path / "sd" / "text_encoder" / "model.safetensors").rename(tmp_path / "sd" / "text_encoder" / "model.ckpt")
    with pytest.raises(ValueError, match=r"text_encoder holds its weights as pickles only \(model\.ckpt\)"):
        StableDiffusion.from_pretrained(tmp_path / "sd")


def _truncate(folder: Path) -> None:
    weights = next(folder.rglob("*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:1000])


def _write(name: str, text: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_text(text) and None


def _nan(folder: Path) -> None:
    path = next(folder.rglob("*.safetensors"))
    tensors = safetensors.torch.load_file(path)
    tensors["conv_out.bias"].fill_(torch.nan)
    safetensors.torch.save_file(tensors, path)


DAMAGES: list[tuple[Callable[[Path], Any], str]] = [
    (_truncate, "unet: could not be read as a UNet2DModel"),
    (_nan, "unet: could not be read as a UNet2DModel: its weight conv_out.bias holds NaN or infinite numbers"),
    (_write("unet/config.json", "{"), "unet: could not be read as a UNet2DModel"),
    (lambda folder: shutil.rmtree(folder / "scheduler"), "scheduler: could not be read as a DDPMScheduler"),
    (lambda folder: (folder / "unet" / "diffusion_pytorch_model.safetensors").unlink(), "could not be read as a UNet"),
    (_write("rrpolicy.json", "{}"), "rrpolicy.json: holds no codec"),
    (_write("rrpolicy.json", '{"codec": {"shape": [1, 4, 4]}}'), r"events have shape \(1, 8, 8\), the codec's have"),
]


@pytest.mark.parametrize(("damage", "message"), DAMAGES)
def test_damaged_folders_are_refused(damage: Callable[[Path], Any], message: str, tmp_path: Path) -> None:
    damage(write_ddpm(tmp_path))
    with pytest.raises(ValueError, match=message) as error:
        UNetScoreModel.from_pretrained(tmp_path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["nowhere", "a/b/c", "./a", "/no/such/folder"])
def test_what_is_neither_a_folder_nor_a_hub_name_is_refused(name: str) -> None:
    for bridge in (UNetScoreModel, StableDiffusion):
        with pytest.raises(ValueError, match="is neither a folder of a diffusers model nor a hub name"):
            bridge.from_pretrained(name)


def test_a_misspelt_folder_is_not_asked_of_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "models" / "base").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)

    def asked(*_: Any, **__: Any) -> None:
        raise AssertionError("the network was asked")

    monkeypatch.setattr("huggingface_hub.HfApi.model_info", asked)
    for bridge in (UNetScoreModel, StableDiffusion):
        with pytest.raises(ValueError, match="there is no folder models/bsae; as models/ is here"):
            bridge.from_pretrained("models/bsae")
        with pytest.raises(ValueError, match="there is no folder modles/base, but models/base"):
            bridge.from_pretrained("modles/base")
        for hub in ("owner/base", "modles/other"):  # nothing here is called so
            with pytest.raises(AssertionError, match="the network was asked"):
                bridge.from_pretrained(hub)
        with pytest.raises(ValueError, match="neither a folder"):
            bridge.from_pretrained("models2/")


def test_networks_of_another_kind_are_refused(tmp_path: Path) -> None:
    process, codec = DiffusionProcess(20, "cosine", "eps"), PixelCodec((1, 8, 8))
    for label in (None, -1, 3):
        with pytest.raises(ValueError, match=rf"class labels and class_label is {label}, wanted one of 0\.\.2"):
            UNetScoreModel(unet(num_class_embeds=3), process, codec, class_label=label)
    with pytest.raises(ValueError, match="conditioned by a class embedding of type 'timestep'"):
        UNetScoreModel(unet(class_embed_type="timestep"), process, codec, class_label=0)
    with pytest.raises(ValueError, match="class_label is 0, but the UNet is not conditioned"):
        UNetScoreModel(unet(), process, codec, class_label=0)
    with pytest.raises(ValueError, match="the UNet's config has no sample_size"):
        UNetScoreModel(unet(size=None), process, codec)
    variances = UNet2DModel(
        sample_size=8,
        in_channels=1,
        out_channels=2,
        block_out_channels=(8,),
        norm_num_groups=4,
        down_block_types=("DownBlock2D",),
        up_block_types=("UpBlock2D",),
    )
    with pytest.raises(ValueError, match="the UNet has 1 channels in and 2 out"):
        UNetScoreModel(variances, process, codec)
    with pytest.raises(ValueError, match="it lacks unet/"):
        StableDiffusion.from_pretrained(tmp_path)
    with pytest.raises(ValueError, match="dtype is 'int8', it must be one of"):
        UNetScoreModel.from_pretrained(write_ddpm(tmp_path), dtype="int8")


def test_parts_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    process = DiffusionProcess.from_alphas_cumprod([0.9, 0.5])
    parts = stable_diffusion_parts(tmp_path)
    parts.pop("scheduler")
    for name, field, value, message in (
        ("text_encoder", "hidden_size", 64, "the text encoder is 64 wide, the UNet wants 32"),
        ("unet", "addition_embed_type", "text_time", "as SDXL's does"),
        ("vae", "latent_channels", 16, "the autoencoder has 16 channels, the UNet wants 4"),
    ):
        broken = dict(parts, **{name: _Changed(parts[name], **{field: value})})
        with pytest.raises(ValueError, match=message):
            StableDiffusion(**broken, process=process)


class _Changed:
    def __init__(self, part: Any, **changes: Any) -> None:
        values = {**dict(part.config if not hasattr(part.config, "to_dict") else part.config.to_dict()), **changes}
        self.config = type("Config", (dict,), {"__getattr__": dict.__getitem__})(values)


def test_pairs_that_do_not_share_their_space_are_refused(tmp_path: Path) -> None:
    base = UNetScoreModel.from_pretrained(write_ddpm(tmp_path / "base"))
    others = {"event_shape": {"size": 4}, r"process\.n_diffusion_steps": {"n_steps": 30}}
    for i, (field, changes) in enumerate(others.items()):
        other = UNetScoreModel.from_pretrained(write_ddpm(tmp_path / str(i), **changes))
        with pytest.raises(ValueError, match=f"differ in {field}"):
            check_compatible(base, other)
    table = UNetScoreModel(base.unet, DiffusionProcess.from_alphas_cumprod([*np.linspace(0.9, 0.1, 20)]), base.codec)
    with pytest.raises(ValueError, match=r"differ in process\.schedule: base has cosine, expert has table"):
        check_compatible(base, table)


@pytest.mark.parametrize("missing", ["diffusers", "transformers"])
def test_a_missing_extra_is_named(missing: str, monkeypatch: pytest.MonkeyPatch, pipeline_folder: Path) -> None:
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(ValueError, match=r"images extra: pip install 'rrpolicy\[images\]'"):
        StableDiffusion.from_pretrained(pipeline_folder)


def test_index_of_the_folder_is_not_trusted(tmp_path: Path) -> None:
    """Whatever a folder names as its classes, only ours are imported."""
    write_ddpm(tmp_path)
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": "Evil", "unet": ["os", "system"]}))
    assert UNetScoreModel.from_pretrained(tmp_path).event_shape == (1, 8, 8)


# ---------------------------------------------------------------------- folders of strangers


def _changed(name: str, **values: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        path = folder / name
        path.write_text(json.dumps({**json.loads(path.read_text()), **values}))

    return change


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_changed("unet/config.json", block_out_channels=[16_384, 16_384]), "unet: .*bytes of weights or more"),
        (_changed("unet/config.json", layers_per_block=10**6), "layers_per_block is 1000000, at most 256"),
        (_changed("unet/config.json", sample_size=10**9), "sample_size is 1000000000, at most"),
        (_changed("unet/config.json", block_out_channels=[8] * 1000), "has 1000 entries, at most 256"),
        (_changed("unet/config.json", norm_num_groups=0), "is no configuration of a UNet2DModel"),
        (_changed("scheduler/scheduler_config.json", num_train_timesteps=10**9), "scheduler: .*at most 10000 is read"),
        (_changed("scheduler/scheduler_config.json", trained_betas=[0.1] * 10_001), "trained_betas has 10001 entries"),
        (_write("unet/config.json", "[" * 10**5), "unet: .*levels deep"),
        (_write("rrpolicy.json", '{"codec": {"kind": "pixels", "shape": [1, 8, 8], "path": "/"}}'), "path: Extra"),
    ],
)
def test_configurations_of_strangers_are_compared_with_their_weights(
    damage: Callable[[Path], Any], message: str, tmp_path: Path
) -> None:
    folder = write_ddpm(tmp_path / "model")
    UNetScoreModel.from_pretrained(folder)
    damage(folder)
    with pytest.raises(ValueError, match=message) as caught:
        UNetScoreModel.from_pretrained(folder)
    assert str(folder) in str(caught.value) and len(str(caught.value)) <= 300 and str(caught.value).isprintable()


INDEX = "unet/diffusion_pytorch_model.safetensors.index.json"


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_changed("text_encoder/config.json", _attn_implementation="evil/kernel"), "_attn_implementation is not"),
        (_changed("text_encoder/config.json", attn_implementation="evil/kernel"), "attn_implementation is not"),
        (_changed("text_encoder/config.json", auto_map={"AutoModel": "evil--x.Y"}), "auto_map is not followed"),
        (_changed("unet/config.json", quantization_config={"quant_method": "x"}), "quantization_config is not"),
        (_changed("unet/config.json", weights_path="/etc/passwd"), "entry weights_path, which a UNet2DConditionModel"),
        (_changed("tokenizer/tokenizer_config.json", vocab_file="/dev/zero"), "vocab_file is not followed"),
        (_changed("tokenizer/tokenizer_config.json", tokenizer_file="../x.json"), "tokenizer_file is not followed"),
        (_write(INDEX, '{"weight_map": {"a": "/other/w.safetensors"}}'), "said to be in /other/w.safetensors"),
        (_write(INDEX, '{"weight_map": {"a": "w.bin"}}'), "said to be in w.bin"),
        (_write(INDEX, '{"weight_map": {"a": "../vae/diffusion_pytorch_model.safetensors"}}'), "said to be in .*vae"),
        (lambda folder: os.mkfifo(folder / "unet" / "x.safetensors"), "x.safetensors: is no regular file"),
        (_write("tokenizer/vocab.json", "x" * 2**24), "vocab.json: has more than 8388608 bytes"),
    ],
)
def test_folders_of_strangers_lead_nowhere_else(
    damage: Callable[[Path], Any], message: str, pipeline_folder: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(pipeline_folder, tmp_path / "sd")
    damage(folder)
    with pytest.raises(ValueError, match=message):
        StableDiffusion.from_pretrained(folder)
