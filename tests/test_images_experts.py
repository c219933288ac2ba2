"""Experts as people have them, each all the way: a network alone, a LoRA, half-precision variants, class labels."""

import json
import re
from html import unescape
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from diffusers import DDPMScheduler, UNet2DConditionModel
from helpers.pipelines import stable_diffusion_parts, unet, write_ddpm, write_stable_diffusion
from PIL import Image
from test_images_cli import QUICK, fault, run
from test_images_digests import WEIGHTS, sha256

from rrpolicy.evaluation import read_results
from rrpolicy.images.lora import with_lora
from rrpolicy.images.reward import ImageReward
from rrpolicy.images.sampling import sample_images
from rrpolicy.images.stable_diffusion import SafeModel, StableDiffusion
from rrpolicy.images.unet import UNetScoreModel
from rrpolicy.rewards.recorded import RecordedPairs

QUERY = "up_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
OUT = "up_blocks.0.attentions.0.transformer_blocks.0.attn1.to_out.0"
CONV = "conv_in"
SHORT = ("--n-noisings", 2, "--n-value-draws", 1, "--n-sampling-steps", 2, "--no-progress")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("world")
    write_stable_diffusion(folder / "sd")
    (folder / "prompts.txt").write_text("a cat\na photo of blood\n")
    return folder


@pytest.fixture(scope="module")
def pipeline(world: Path) -> StableDiffusion:
    return StableDiffusion.from_pretrained(world / "sd")


def all_the_way(record: list[object], model: Path, out: Path, prompts: Path | None, *options: object) -> str:
    """Record, extract, sample with steering, and score what was drawn; what is printed of the recording."""
    more: list[object] = ["--prompts", prompts] if prompts else ["--n", 2]
    shape: list[object] = [*(more if prompts else ["--n-samples", 2]), "--n-noisings", 2, "--n-value-draws", 1]
    shown = run("record", *record, *shape, *options, "--n-sampling-steps", 2, "--out", out / "pairs", "--no-progress")
    run("extract", "--recording", out / "pairs", "--out", out / "reward", *QUICK)
    reward = out / "reward" / "reward.zip"
    run(
        "sample", "--model", model, "--reward", reward, *more, *options, "--n-sampling-steps", 2, "--out", out / "drawn"
    )
    pipeline: list[object] = ["--pipeline", model] if prompts else []
    run("score", out / "drawn", "--reward", reward, *pipeline, "--out", out / "scores", "--no-progress")
    assert [row["n"] for row in read_results(out / "scores")] == [2]
    return str(shown.output)


# ---------------------------------------------------------------------- a network alone


def test_a_network_alone_takes_the_place_of_the_base_s(world: Path, pipeline: StableDiffusion, tmp_path: Path) -> None:
    other = stable_diffusion_parts(tmp_path / "parts", 3)["unet"]
    other.save_pretrained(tmp_path / "dpo")
    expert = pipeline.with_network(tmp_path / "dpo")
    x_t, t = torch.randn(2, 4, 8, 8), torch.tensor([3, 700])
    hidden = pipeline.embed(["a cat"])[0].expand(2, -1, -1)
    with torch.no_grad():
        wanted = other(x_t, t, encoder_hidden_states=hidden).sample
    torch.testing.assert_close(expert.prompted("a cat", 1.0).eps(x_t, t), wanted, rtol=0, atol=1e-5)
    assert expert.codec is pipeline.codec and pipeline.unet is not expert.unet
    assert expert.digests == {**pipeline.digests, WEIGHTS: sha256(tmp_path / "dpo" / Path(WEIGHTS).name)}
    given = ("--expert-unet", tmp_path / "dpo", "--prompts", world / "prompts.txt")
    run("record", "--base", world / "sd", *given, *SHORT, "--out", tmp_path / "pairs")
    about = RecordedPairs.open(tmp_path / "pairs").about
    assert about["models"]["expert"] == f"{world / 'sd'} with the network of {tmp_path / 'dpo'}"
    assert about["digests"]["expert"] == expert.digests


def test_a_network_alone_without_prompts_has_the_base_s_levels(tmp_path: Path) -> None:
    write_ddpm(tmp_path / "base")
    unet(5).save_pretrained(tmp_path / "changed")
    record = ["--base", tmp_path / "base", "--expert-unet", tmp_path / "changed"]
    all_the_way(record, tmp_path / "base", tmp_path, None)
    pairs = RecordedPairs.open(tmp_path / "pairs")
    shard = pairs.shard(0)
    process = pairs.model.process
    base, expert = (UNetScoreModel.from_pretrained(tmp_path / name, process) for name in ("base", "changed"))
    wanted = base.eps(shard.x_t, shard.t) - expert.eps(shard.x_t, shard.t)
    torch.testing.assert_close(shard.eps_difference, wanted, rtol=1e-4, atol=1e-4)


def test_networks_of_another_shape_are_refused(world: Path, pipeline: StableDiffusion, tmp_path: Path) -> None:
    config = {**pipeline.unet.config, "layers_per_block": 2}
    UNet2DConditionModel.from_config(config).save_pretrained(tmp_path / "larger")
    with pytest.raises(ValueError, match="larger: its UNet2DConditionModel has weights of other shapes"):
        pipeline.with_network(tmp_path / "larger")
    record = [
        "record",
        "--base",
        world / "sd",
        "--prompts",
        world / "prompts.txt",
        "--out",
        tmp_path / "x",
        "--no-progress",
    ]
    assert "neither a folder of a diffusers model" in fault(*record, "--expert-unet", tmp_path / "gone")
    both = fault(*record, "--expert-unet", tmp_path, "--expert-lora", tmp_path)
    assert "--expert-unet and --expert-lora each name an expert" in both
    assert "--class-label is for models without" in fault(*record, "--expert-unet", tmp_path, "--class-label", 1)


# ---------------------------------------------------------------------- LoRA


def factors(rank: int = 2) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """For each changed layer of the tiny network: down (r, in) and up (out, r)."""
    generator = torch.Generator().manual_seed(0)
    shapes = {QUERY: ((rank, 64), (64, rank)), OUT: ((rank, 64), (64, rank)), CONV: ((rank, 4, 3, 3), (32, rank, 1, 1))}
    return {
        name: (torch.randn(down, generator=generator), torch.randn(up, generator=generator))
        for name, (down, up) in shapes.items()
    }


def old_name(name: str) -> str:
    return name.removesuffix(".0").replace("attn1.", "attn1.processor.")


FORMATS: dict[str, Any] = {
    "peft in diffusers": (lambda name: (f"unet.{name}.lora_A.weight", f"unet.{name}.lora_B.weight"), None),
    "the network's own": (lambda name: (f"{name}.lora_A.default.weight", f"{name}.lora_B.default.weight"), None),
    "diffusers": (lambda name: (f"unet.{name}.lora.down.weight", f"unet.{name}.lora.up.weight"), None),
    "old diffusers": (
        lambda name: (
            (f"{old_name(name)}_lora.down.weight", f"{old_name(name)}_lora.up.weight")
            if "attn" in name
            else (f"{name}.lora.down.weight", f"{name}.lora.up.weight")
        ),
        None,
    ),
    "kohya": (
        lambda name: (
            f"lora_unet_{name.replace('.', '_')}.lora_down.weight",
            f"lora_unet_{name.replace('.', '_')}.lora_up.weight",
        ),
        "alpha",
    ),
    "header": (lambda name: (f"unet.{name}.lora_A.weight", f"unet.{name}.lora_B.weight"), "header"),
    "peft": (
        lambda name: (f"base_model.model.{name}.lora_A.weight", f"base_model.model.{name}.lora_B.weight"),
        "beside",
    ),
}


def write_lora(path: Path, kind: str, rank: int = 2) -> float:
    """A LoRA in one of the formats, and its scale."""
    names, alpha = FORMATS[kind]
    tensors, metadata = {}, None
    for name, pair in factors(rank).items():
        for key, value in zip(names(name), pair, strict=True):
            tensors[key] = value
        if alpha == "alpha":
            tensors[names(name)[0].replace("lora_down.weight", "alpha")] = torch.tensor(1.0)
    if alpha == "header":
        metadata = {"lora_adapter_metadata": json.dumps({"unet.lora_alpha": 1, "unet.r": rank})}
    if alpha == "beside":
        config = {"lora_alpha": 1, "r": rank, "use_rslora": True}
        path.with_name("adapter_config.json").write_text(json.dumps(config))
    safetensors.torch.save_file(tensors, path, metadata)
    return {None: 1.0, "beside": 1 / rank**0.5}.get(alpha, 1 / rank)


@pytest.mark.parametrize("kind", FORMATS)
def test_a_low_rank_change_is_added_to_the_weights(kind: str, pipeline: StableDiffusion, tmp_path: Path) -> None:
    scale = write_lora(tmp_path / "lora.safetensors", kind)
    changed = pipeline.with_lora(tmp_path / "lora.safetensors")
    before, after = (dict(network.named_parameters()) for network in (pipeline.unet, changed.unet))
    for name, (down, up) in factors().items():
        wanted = before[f"{name}.weight"] + scale * (up.flatten(1) @ down.flatten(1)).view_as(before[f"{name}.weight"])
        torch.testing.assert_close(after[f"{name}.weight"], wanted)
    same = [torch.equal(after[name], value) for name, value in before.items()]
    assert same.count(False) == 3
    assert changed.digests == {**pipeline.digests, "lora.safetensors": sha256(tmp_path / "lora.safetensors")}


def test_a_low_rank_change_is_recorded(world: Path, tmp_path: Path) -> None:
    write_lora(tmp_path / "lora.safetensors", "diffusers")
    expert = ("--expert-lora", tmp_path / "lora.safetensors")
    run(
        "record",
        "--base",
        world / "sd",
        *expert,
        "--prompts",
        world / "prompts.txt",
        *SHORT,
        "--out",
        tmp_path / "pairs",
    )
    pairs = RecordedPairs.open(tmp_path / "pairs")
    assert pairs.about["digests"]["expert"]["lora.safetensors"] == sha256(tmp_path / "lora.safetensors")
    assert float(pairs.shard(0).eps_difference.abs().max()) > 1e-3


def _replaced(tensors: dict[str, torch.Tensor], **changes: Any) -> dict[str, torch.Tensor]:
    return {**tensors, **changes}


LORA_FAULTS: list[tuple[dict[str, Any], str]] = [
    (
        {"unet.nowhere.lora_A.weight": torch.zeros(2, 4), "unet.nowhere.lora_B.weight": torch.zeros(4, 2)},
        "changes nowhere, which is no layer of this UNet2DConditionModel",
    ),
    ({"text_encoder.q.lora_A.weight": torch.zeros(2, 4)}, "changes the text encoder as well, wanted one of the unet"),
    ({"unet.conv_in.lora_magnitude_vector": torch.zeros(2)}, "holds unet.conv_in.lora_magnitude_vector, wanted pairs"),
    ({f"unet.{QUERY}.lora_A.weight": torch.zeros(2, 64)}, "lacks one of the pair of up_blocks"),
    (
        {f"unet.{QUERY}.lora_A.weight": torch.zeros(2, 63), f"unet.{QUERY}.lora_B.weight": torch.zeros(64, 2)},
        r"is changed by \(64, 2\) times \(2, 63\), which does not make weights \(64, 64\)",
    ),
    (
        {
            f"unet.{QUERY}.lora_A.weight": torch.zeros(2, 64),
            f"unet.{QUERY}.lora_B.weight": torch.full((64, 2), torch.nan),
        },
        "is changed by NaN",
    ),
    ({f"unet.{QUERY}.lora_A.weight": torch.zeros(2, 64), f"{QUERY}.lora_A.weight": torch.zeros(2, 64)}, "twice"),
]


@pytest.mark.parametrize(("tensors", "reason"), LORA_FAULTS)
def test_other_changes_are_refused(
    tensors: dict[str, Any], reason: str, pipeline: StableDiffusion, tmp_path: Path
) -> None:
    path = tmp_path / "lora.safetensors"
    safetensors.torch.save_file(tensors, path)
    with pytest.raises(ValueError, match=reason) as caught:
        with_lora(pipeline.unet, path, "unet")
    assert str(caught.value).startswith(f"{path}: ") and len(str(caught.value)) <= 300


def test_files_that_hold_no_change_are_refused(pipeline: StableDiffusion, tmp_path: Path) -> None:
    (tmp_path / "lora.bin").write_bytes(b"")
    (tmp_path / "damaged.safetensors").write_bytes(b"x" * 100)
    safetensors.torch.save_file({}, tmp_path / "empty.safetensors")
    for name, reason in (
        ("lora.bin", "wanted a file of safetensors"),
        ("gone.safetensors", "no such file"),
        ("damaged.safetensors", "is no LoRA"),
        ("empty.safetensors", "holds nothing"),
    ):
        with pytest.raises(ValueError, match=f"{name}: is no LoRA that can be added.*{reason[-20:]}|{reason}"):
            pipeline.with_lora(tmp_path / name)
    write_lora(tmp_path / "lora.safetensors", "peft")
    for config in ({"use_dora": True}, {"alpha_pattern": {"a": 1}}, {"lora_alpha": "x"}, [1]):
        (tmp_path / "adapter_config.json").write_text(json.dumps(config))
        with pytest.raises(ValueError, match=r"alpha_pattern or use_dora|lora_alpha is x"):
            pipeline.with_lora(tmp_path / "lora.safetensors")


# ---------------------------------------------------------------------- samples of the two models


def test_samples_are_of_the_experts_that_a_recording_names(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``sample`` and ``audit`` take the options of ``record``, and draw what their pipelines draw."""
    monkeypatch.setattr("rrpolicy.cli.images_audit.N_STEPS_OF_PROMPTS", 2)
    lora = tmp_path / "lora.safetensors"
    write_lora(lora, "diffusers")
    stable_diffusion_parts(tmp_path / "parts", 3)["unet"].save_pretrained(tmp_path / "dpo")
    write_stable_diffusion(tmp_path / "whole", 1)
    sd, prompts = StableDiffusion.from_pretrained(world / "sd"), ["a cat", "a photo of blood"]
    experts = {
        "--expert": (tmp_path / "whole", StableDiffusion.from_pretrained(tmp_path / "whole").prompted(prompts, 3.0)),
        "--expert-unet": (tmp_path / "dpo", sd.with_network(tmp_path / "dpo").prompted(prompts, 3.0)),
        "--expert-lora": (lora, sd.with_lora(lora).prompted(prompts, 3.0)),
        "--safety": ("max", SafeModel(sd.prompted(prompts, 3.0), "max")),
    }
    more = ("--base", world / "sd", "--prompts", world / "prompts.txt", "--guidance-scale", 3)
    drawn = set()
    for option, (value, model) in experts.items():
        folder = tmp_path / option
        run("sample", *more, option, value, "--n-sampling-steps", 2, "--out", folder)
        paths = sorted(folder.glob("*.png"))
        wanted = sample_images(model, 2, n_sampling_steps=2)
        got = np.stack([np.asarray(Image.open(path)) for path in paths])
        assert np.abs(got.astype(int) - wanted).max() <= 1  # pictures in one batch or another
        drawn.add(got.tobytes())
    assert len(drawn) == 4
    all_the_way(["--base", world / "sd", "--safety", "max"], world / "sd", tmp_path, world / "prompts.txt")
    reward = tmp_path / "reward" / "reward.zip"
    audit = ("audit", tmp_path / "drawn", "--reward", reward, "--no-progress", "--scales", 0)
    for option, (value, _) in list(experts.items())[2:]:
        run(*audit, *more, option, value, "--out", tmp_path / "page")
        page = unescape((tmp_path / "page" / "index.html").read_text(encoding="utf-8"))
        assert re.findall("<figcaption>(model alone|expert)<", page) == ["model alone", "expert"] * 2
        assert f"{world / 'sd'} and {world / 'sd'} with" in page
    said = fault(*audit, *more, "--safety", "max", "--expert-lora", lora, "--out", tmp_path)
    assert "each name an expert" in said


# ---------------------------------------------------------------------- variants


def test_weights_in_half_precision_alone_are_read(world: Path, tmp_path: Path) -> None:
    """Folders with ``variant="fp16"``, in one file or several, are those of the full precision, rounded."""
    parts = stable_diffusion_parts(tmp_path / "fp16")
    for name, part in parts.items():
        options = {"variant": "fp16"} if name in ("unet", "vae", "text_encoder") else {}
        (part.half() if options else part).save_pretrained(tmp_path / "fp16" / name, **options)
    assert not (tmp_path / "fp16" / WEIGHTS).exists()
    rounded, exact = (StableDiffusion.from_pretrained(folder) for folder in (tmp_path / "fp16", world / "sd"))
    assert set(rounded.digests) == {name.replace(".safetensors", ".fp16.safetensors") for name in exact.digests}
    x_t, t = torch.randn(1, 4, 8, 8), torch.tensor([500])
    got, wanted = (pipeline.prompted("a cat", 1.0).eps(x_t, t) for pipeline in (rounded, exact))
    torch.testing.assert_close(got, wanted, rtol=0.02, atol=0.02)
    parts["unet"].save_pretrained(tmp_path / "sharded", variant="fp16", max_shard_size="100KB")
    assert len(list(tmp_path.glob("sharded/*.safetensors"))) > 1
    sharded = rounded.with_network(tmp_path / "sharded")
    torch.testing.assert_close(sharded.prompted("a cat", 1.0).eps(x_t, t), got)
    assert len(sharded.digests) > len(rounded.digests)
    run(
        "record",
        "--base",
        tmp_path / "fp16",
        "--safety",
        "max",
        "--prompts",
        world / "prompts.txt",
        *SHORT,
        "--out",
        tmp_path / "pairs",
    )
    pairs = RecordedPairs.open(tmp_path / "pairs")
    assert pairs.about["digests"]["base"] == rounded.digests and float(pairs.shard(0).eps_difference.abs().max()) > 1e-3


# ---------------------------------------------------------------------- class labels


def test_models_with_class_labels_go_all_the_way(tmp_path: Path) -> None:
    for i, name in enumerate(("base", "expert")):
        unet(i, num_class_embeds=3).save_pretrained(tmp_path / name / "unet")
        DDPMScheduler(num_train_timesteps=20).save_pretrained(tmp_path / name / "scheduler")
    record = ["--base", tmp_path / "base", "--expert", tmp_path / "expert"]
    all_the_way(record, tmp_path / "base", tmp_path, None, "--class-label", 2)
    pairs = RecordedPairs.open(tmp_path / "pairs")
    base, expert = (UNetScoreModel.from_pretrained(tmp_path / name, class_label=2) for name in ("base", "expert"))
    shard = pairs.shard(0)
    wanted = base.eps(shard.x_t, shard.t) - expert.eps(shard.x_t, shard.t)
    torch.testing.assert_close(shard.eps_difference, wanted, rtol=1e-4, atol=1e-4)
    assert pairs.about["models"]["class_label"] == 2
    plain = base.without_labels()
    assert plain.class_label is None and plain.unet.class_embedding is None and plain.without_labels() is plain
    torch.testing.assert_close(plain.eps(shard.x_t, shard.t), base.eps(shard.x_t, shard.t), rtol=1e-5, atol=1e-5)
    run(
        "extract",
        "--recording",
        tmp_path / "pairs",
        "--start-from",
        tmp_path / "base",
        "--out",
        tmp_path / "begun",
        "--total-timesteps",
        0,
        "--batch-size",
        4,
        "--no-progress",
    )
    begun = ImageReward.load(tmp_path / "begun" / "reward.zip").reward.window
    assert torch.equal(begun.enter.weight, base.unet.conv_in.weight)
    said = fault("record", *record, "--n-samples", 2, "--out", tmp_path / "x", "--no-progress")
    assert "class_label is None, wanted one of 0..2" in said
