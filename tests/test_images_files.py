"""Checkpoints in one file: equal to the folder whose weights they hold, all of them used, and never a pickle."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from helpers.pipelines import (
    stable_diffusion_parts,
    unet,
    write_ddpm,
    write_stable_diffusion,
    write_stable_diffusion_xl,
)
from helpers.single_files import RESNET, pipeline_tensors, renamed, unet_tensors, write_file
from helpers.single_files import UNET as NAMES
from test_images_cli import QUICK, fault, run
from test_images_digests import sha256
from transformers import CLIPTextModel, CLIPTextModelWithProjection

from rrpolicy.evaluation import read_results
from rrpolicy.images import UNetScoreModel, load_pipeline
from rrpolicy.images.original_names import unet_module
from rrpolicy.rewards.recorded import RecordedPairs

X_T, T = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0)), torch.tensor([3, 700])
UNET = "model.diffusion_model."


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pipelines as folders, and the same weights in one file each."""
    folder = tmp_path_factory.mktemp("world")
    for name, encoder, seed in (("sd", "clip", 0), ("sd2", "open", 0), ("expert", "clip", 1)):
        write_stable_diffusion(folder / name, seed)
        parts = stable_diffusion_parts(folder / "x", seed)
        write_file(folder / f"{name}.safetensors", pipeline_tensors(parts, encoder))
    write_stable_diffusion_xl(folder / "xl")
    kinds = {
        "unet": UNet2DConditionModel,
        "vae": AutoencoderKL,
        "text_encoder": CLIPTextModel,
        "text_encoder_2": CLIPTextModelWithProjection,
    }
    parts = {name: kind.from_pretrained(folder / "xl" / name) for name, kind in kinds.items()}
    write_file(folder / "xl.safetensors", pipeline_tensors(parts))
    (folder / "prompts.txt").write_text("a cat\na photo of blood\n")
    return folder


def says(pipeline: Any) -> torch.Tensor:
    predicted: torch.Tensor = pipeline.prompted("a cat").eps(X_T, T)
    return predicted


@pytest.mark.parametrize("name", ["sd", pytest.param("sd2", marks=pytest.mark.slow), "xl"])
def test_a_file_says_what_the_folder_of_its_weights_says(name: str, world: Path) -> None:
    path = world / f"{name}.safetensors"
    folder, file = load_pipeline(world / name), load_pipeline(path, config=world / name)
    assert torch.equal(says(file), says(folder))
    assert file.fingerprint() == folder.fingerprint()  # a digest of the autoencoder's weights is in it
    assert file.digests == {path.name: sha256(path)}
    assert torch.equal(says(folder.with_network(path)), says(folder))


@pytest.mark.parametrize("name", ["sd", "xl"])
def test_networks_are_those_that_diffusers_reads(name: str, world: Path) -> None:
    wanted = UNet2DConditionModel.from_single_file(
        str(world / f"{name}.safetensors"), config=str(world / name), subfolder="unet", local_files_only=True
    ).state_dict()
    got = load_pipeline(world / f"{name}.safetensors", config=world / name).network.state_dict()
    assert set(got) == set(wanted) and all(torch.equal(got[key], value) for key, value in wanted.items())


def test_blocks_are_numbered_as_in_the_published_models() -> None:
    """Facts of Stable Diffusion 1 and XL, whose U-Nets have two layers a block."""
    one = {"layers_per_block": 2, "up_block_types": ["UpBlock2D", *["CrossAttnUpBlock2D"] * 3]}
    for name, original in (
        ("down_blocks.2.attentions.1.proj_in", "input_blocks.8.1.proj_in"),
        ("down_blocks.2.downsamplers.0.conv", "input_blocks.9.0.op"),
        ("mid_block.attentions.0.proj_out", "middle_block.1.proj_out"),
        ("up_blocks.0.upsamplers.0.conv", "output_blocks.2.1.conv"),
        ("up_blocks.1.upsamplers.0.conv", "output_blocks.5.2.conv"),
        ("up_blocks.3.resnets.2.conv_shortcut", "output_blocks.11.0.skip_connection"),
        ("down_blocks.0.resnets.0.other", None),
        ("encoder_hid_proj", None),
    ):
        assert unet_module(name, one) == original
    layer = "transformer_blocks.0.attn1.to_q"
    assert unet_module(f"down_blocks.1.attentions.0.{layer}", one) == f"input_blocks.4.1.{layer}"


def test_layouts_of_a_network_alone(world: Path, tmp_path: Path) -> None:
    """With the original names, with a prefix or without, and with the names of diffusers."""
    other = stable_diffusion_parts(tmp_path / "x", 3)["unet"]
    base = load_pipeline(world / "sd")
    with torch.no_grad():
        hidden = base.embed(["a cat"])[0].expand(2, -1, -1)
        wanted = other(X_T, T, encoder_hidden_states=hidden).sample
    tensors = unet_tensors(other)
    for i, one in enumerate((tensors, {UNET + name: value for name, value in tensors.items()}, other.state_dict())):
        changed = base.with_network(write_file(tmp_path / f"{i}.safetensors", one))
        torch.testing.assert_close(changed.prompted("a cat", 1.0).eps(X_T, T), wanted, rtol=0, atol=1e-5)
    half = {name: value.half() for name, value in tensors.items()}
    rounded = base.with_network(write_file(tmp_path / "half.safetensors", half))
    assert rounded.network.dtype == torch.float32
    torch.testing.assert_close(rounded.prompted("a cat", 1.0).eps(X_T, T), wanted, rtol=0.02, atol=0.02)


def test_averages_tables_and_unused_layers_are_passed_over(world: Path, tmp_path: Path) -> None:
    tensors = safetensors.torch.load_file(world / "sd2.safetensors")
    process = load_pipeline(world / "sd2").process
    last = {
        name.replace("resblocks.1.", "resblocks.2."): value.clone()
        for name, value in tensors.items()
        if "resblocks.1." in name
    }
    more = {
        "model_ema.diffusion_modelout2bias": torch.zeros(4),
        "betas": torch.zeros(1000),
        "logvar": torch.zeros(1000),
        "alphas_cumprod": process.alpha(torch.arange(1000)) ** 2,
        "posterior_variance": torch.zeros(1000),
        "cond_stage_model.model.text_projection": torch.zeros(32, 32),
        "cond_stage_model.model.logit_scale": torch.zeros(()),
    }
    path = write_file(tmp_path / "more.safetensors", {**tensors, **last, **more})
    assert torch.equal(says(load_pipeline(path, config=world / "sd2")), says(load_pipeline(world / "sd2")))


def _without(name: str) -> Callable[[dict[str, Any]], Any]:
    return lambda tensors: tensors.pop(name)


FAULTS: list[tuple[str, Callable[[dict[str, Any]], Any], str]] = [
    (
        "a weight of the U-Net is missing",
        _without(f"{UNET}out.2.bias"),
        "as the unet of .*sd: it lacks model.diffusion_model.out.2.bias",
    ),
    (
        "a weight of the autoencoder is missing",
        _without("first_stage_model.quant_conv.bias"),
        "as the vae of .*sd: it lacks first_stage_model.quant_conv.bias",
    ),
    (
        "no text encoder",
        lambda tensors: [tensors.pop(name) for name in list(tensors) if "cond_stage" in name],
        r"as the text_encoder of .*sd: it lacks .* and \d+ more",
    ),
    (
        "an unknown layer",
        lambda tensors: tensors.update({f"{UNET}input_blocks.9.0.in_layers.0.bias": torch.zeros(4)}),
        "it holds model.diffusion_model.input_blocks.9.0.in_layers.0.bias, which such a model does not have",
    ),
    (
        "a model beside it",
        lambda tensors: tensors.update({"control_model.a": torch.ones(1), "edm_mean": torch.ones(1)}),
        "it holds control_model.a and 1 more, which such a model does not have",
    ),
    (
        "a mask",
        lambda tensors: tensors.update({f"{UNET}input_blocks.0.0.weight": torch.zeros(32, 9, 3, 3)}),
        r"as the unet of .*sd: size mismatch for conv_in.weight",
    ),
    (
        "another prediction",
        lambda tensors: tensors.update(v_pred=torch.zeros(0)),
        "its entry v_pred says that it predicts v",
    ),
    (
        "other noise levels",
        lambda tensors: tensors.update(alphas_cumprod=torch.linspace(0.99, 0.01, 1000)),
        "its noise levels .* are not those of the scheduler",
    ),
    (
        "NaN",
        lambda tensors: tensors[f"{UNET}out.2.bias"].fill_(torch.nan),
        "as the unet of .*sd: its weight conv_out.bias holds NaN or infinite numbers in float32",
    ),
    ("no weights", lambda tensors: tensors.update(x=torch.zeros(1, dtype=torch.uint8)), "holds x of type U8"),
]


@pytest.mark.parametrize(("change", "reason"), [one[1:] for one in FAULTS], ids=[one[0] for one in FAULTS])
def test_files_that_would_be_misread_are_refused(
    change: Callable[[dict[str, Any]], Any], reason: str, world: Path, tmp_path: Path
) -> None:
    tensors = safetensors.torch.load_file(world / "sd.safetensors")
    change(tensors)
    path = write_file(tmp_path / "model.safetensors", tensors)
    with pytest.raises(ValueError, match=reason) as caught:
        load_pipeline(path, config=world / "sd")
    assert str(caught.value).startswith(f"{path}: ") and "\n" not in str(caught.value)


def test_files_of_other_kinds_are_refused(world: Path, tmp_path: Path) -> None:
    xl, sd = world / "xl.safetensors", world / "sd.safetensors"
    for path, config in ((xl, world / "sd"), (sd, world / "xl")):
        with pytest.raises(ValueError, match="could not be read as"):
            load_pipeline(path, config=config)
    with pytest.raises(ValueError, match=r"xl.safetensors: could not be read as a UNet2DConditionModel such as"):
        load_pipeline(world / "sd").with_network(xl)
    (tmp_path / "cut.safetensors").write_bytes(sd.read_bytes()[:5000])
    (tmp_path / "model.ckpt").write_bytes(b"\x80\x04")
    write_file(tmp_path / "empty.safetensors", {})
    for name, reason in (
        ("cut.safetensors", "could not be read"),
        ("model.ckpt", "a .ckpt file is a pickle"),
        ("gone.safetensors", "there is no such file"),
        ("gone.pt", "a .pt file is a pickle"),
        ("empty.safetensors", "holds nothing"),
    ):
        with pytest.raises(ValueError, match=f"{name}: {reason}"):
            load_pipeline(tmp_path / name, config=world / "sd")
        with pytest.raises(ValueError, match=f"{name}: {reason}"):
            load_pipeline(world / "sd").with_network(tmp_path / name)
    with pytest.raises(ValueError, match="which tells no configuration: name a pipeline folder"):
        load_pipeline(sd)
    with pytest.raises(ValueError, match="gone is no folder, wanted one of a pipeline with the configurations of"):
        load_pipeline(sd, config=tmp_path / "gone")
    (tmp_path / "flux").mkdir()
    (tmp_path / "flux" / "model_index.json").write_text('{"_class_name": "FluxPipeline"}')
    with pytest.raises(ValueError, match="is a FluxPipeline, which is not read from one file, wanted one of"):
        load_pipeline(sd, config=tmp_path / "flux")
    with pytest.raises(ValueError, match="sd is none"):
        load_pipeline(world / "sd", config=world / "sd")


# ---------------------------------------------------------------------- the commands


def test_files_go_all_the_way(world: Path, tmp_path: Path) -> None:
    prompts = ("--prompts", world / "prompts.txt")
    shape = ("--n-sampling-steps", 2, "--n-noisings", 1, "--n-value-draws", 1, "--no-progress")
    for name, base, config in (
        ("folder", world / "sd", ()),
        ("file", world / "sd.safetensors", ("--config", world / "sd")),
    ):
        run(
            "record",
            "--base",
            base,
            "--expert",
            world / "expert.safetensors",
            *prompts,
            *shape,
            *config,
            "--out",
            tmp_path / name,
        )
    folder, file = (RecordedPairs.open(tmp_path / name) for name in ("folder", "file"))
    assert torch.equal(folder.shard(0).eps_difference, file.shard(0).eps_difference)
    assert folder.about["digests"]["expert"] == {"expert.safetensors": sha256(world / "expert.safetensors")}
    run("extract", "--recording", tmp_path / "file", "--out", tmp_path / "reward", *QUICK)
    reward, one = ("--reward", tmp_path / "reward" / "reward.zip"), ("--config", world / "sd")
    run(
        "sample",
        "--model",
        world / "sd.safetensors",
        *one,
        *reward,
        *prompts,
        "--n-sampling-steps",
        2,
        "--out",
        tmp_path / "drawn",
    )
    run(
        "score",
        tmp_path / "drawn",
        *reward,
        "--pipeline",
        world / "sd.safetensors",
        *one,
        "--out",
        tmp_path / "scores",
        "--no-progress",
    )
    assert [row["n"] for row in read_results(tmp_path / "scores")] == [2]


def test_a_network_in_one_file_is_an_expert(world: Path, tmp_path: Path) -> None:
    record = (
        "record",
        "--base",
        world / "sd",
        "--prompts",
        world / "prompts.txt",
        "--n-sampling-steps",
        2,
        "--n-noisings",
        2,
        "--no-progress",
    )
    run(*record, "--expert-unet", world / "expert.safetensors", "--out", tmp_path / "pairs")
    pairs = RecordedPairs.open(tmp_path / "pairs")
    assert float(pairs.shard(0).eps_difference.abs().max()) > 1e-3
    assert set(pairs.about["digests"]["expert"]) >= {"expert.safetensors", "text_encoder/model.safetensors"}
    half = {name: value.half() for name, value in safetensors.torch.load_file(world / "expert.safetensors").items()}
    write_file(tmp_path / "half.safetensors", half)
    for option, value, reason in (
        ("--expert", tmp_path / "half.safetensors", "half.safetensors takes the expert's network alone"),
        ("--expert", tmp_path / "x.ckpt", "x.ckpt: a .ckpt file is a pickle"),
        ("--expert-unet", tmp_path / "gone.safetensors", "gone.safetensors: there is no such file"),
    ):
        assert reason in fault(*record, option, value, "--out", tmp_path / "x")
    said = fault(*record, "--expert", world / "expert", "--config", world / "sd", "--out", tmp_path / "x")
    assert "has the configurations of one file of weights (--config)" in said
    base = (
        "record",
        "--base",
        world / "sd.safetensors",
        "--safety",
        "max",
        "--prompts",
        world / "prompts.txt",
        "--no-progress",
    )
    assert "name a pipeline folder of the same kind" in fault(*base, "--out", tmp_path / "x")


def test_models_without_prompts_take_a_file_as_their_expert(tmp_path: Path) -> None:
    write_ddpm(tmp_path / "base")
    write_file(tmp_path / "changed.safetensors", unet(5).state_dict())
    unet(5).save_pretrained(tmp_path / "changed")
    base = UNetScoreModel.from_pretrained(tmp_path / "base")
    x, t = torch.randn(2, 1, 8, 8), torch.tensor([0, 9])
    wanted = base.with_network(tmp_path / "changed").eps(x, t)
    assert torch.equal(base.with_network(tmp_path / "changed.safetensors").eps(x, t), wanted)
    shape = ("--n-samples", 2, "--n-noisings", 2, "--n-sampling-steps", 2, "--no-progress")
    for i, option in enumerate(("--expert", "--expert-unet")):
        run(
            "record",
            "--base",
            tmp_path / "base",
            option,
            tmp_path / "changed.safetensors",
            *shape,
            "--out",
            tmp_path / str(i),
        )
    assert torch.equal(*(RecordedPairs.open(tmp_path / str(i)).shard(0).eps_difference for i in range(2)))
    said = fault(
        "record",
        "--base",
        tmp_path / "changed.safetensors",
        "--expert",
        tmp_path / "base",
        *shape,
        "--out",
        tmp_path / "x",
    )
    assert "changed.safetensors: is one file of weights, wanted a folder" in said


# ---------------------------------------------------------------------- LoRA with the original names


@pytest.mark.parametrize("style", ["kohya", "dotted"])
@pytest.mark.parametrize("model", ["sd", "xl"])
def test_low_rank_changes_by_original_names(style: str, model: str, world: Path, tmp_path: Path) -> None:
    base = load_pipeline(world / model)
    layers = [
        "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q",
        "mid_block.attentions.0.proj_in",
        "up_blocks.0.resnets.1.conv1",
        "down_blocks.0.downsamplers.0.conv",
        "conv_out",
    ]
    tensors, wanted = {}, {}
    for i, name in enumerate(layers):
        weight = base.network.get_submodule(name).weight
        generator = torch.Generator().manual_seed(i)
        down, up = (torch.randn(size, generator=generator) for size in ((2, weight[0].numel()), (len(weight), 2)))
        wanted[f"{name}.weight"] = weight + 0.5 * (up @ down).view_as(weight)
        original = renamed(f"{name}.weight", NAMES, RESNET).removesuffix(".weight")
        key = f"lora_unet_{original.replace('.', '_')}" if style == "kohya" else f"diffusion_model.{original}"
        conv = weight.ndim == 4
        tensors[f"{key}.lora_down.weight"] = down.view(2, *weight.shape[1:]) if conv else down
        tensors[f"{key}.lora_up.weight"] = up[:, :, None, None].contiguous() if conv else up
        tensors[f"{key}.alpha"] = torch.tensor(1.0)
    changed = base.with_lora(write_file(tmp_path / "lora.safetensors", tensors)).network.state_dict()
    for name, value in base.network.state_dict().items():
        torch.testing.assert_close(changed[name], wanted.get(name, value))
