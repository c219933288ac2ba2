"""Weights by their digests: what was recorded with others is not gone on with, and another autoencoder is refused."""

import hashlib
import json
import shutil
import zipfile
from pathlib import Path

import huggingface_hub
import numpy as np
import pytest
import safetensors.torch
import torch
from helpers.pipelines import unet, write_ddpm, write_stable_diffusion
from test_images_cli import QUICK, fault, run

from rrpolicy.diffusion.score_model import check_compatible
from rrpolicy.images.codec import LatentCodec, codec_from_dict
from rrpolicy.images.parts import digests_of, weights_digest
from rrpolicy.images.reward import ImageReward
from rrpolicy.images.stable_diffusion import StableDiffusion
from rrpolicy.images.unet import UNetScoreModel
from rrpolicy.rewards.relative_reward import RelativeReward

WEIGHTS = "unet/diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pipelines with equal and with other autoencoders, and a pair of models without prompts."""
    folder = tmp_path_factory.mktemp("world")
    write_stable_diffusion(folder / "sd")
    write_stable_diffusion(folder / "expert", 1)
    write_stable_diffusion(folder / "other", 1, vae_seed=1)
    write_ddpm(folder / "small")
    write_ddpm(folder / "small expert", 1)
    (folder / "prompts.txt").write_text("a cat\n")
    return folder


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


# ---------------------------------------------------------------------- files


def test_digests_are_those_of_the_files_that_were_read(world: Path, tmp_path: Path) -> None:
    files = {WEIGHTS, "vae/diffusion_pytorch_model.safetensors", "text_encoder/model.safetensors"}
    wanted = {name: sha256(world / "sd" / name) for name in files}
    assert StableDiffusion.from_pretrained(world / "sd").digests == wanted
    assert UNetScoreModel.from_pretrained(world / "small").digests == {WEIGHTS: sha256(world / "small" / WEIGHTS)}
    folder = shutil.copytree(world / "small", tmp_path / "variant")
    (folder / "unet" / "diffusion_pytorch_model.fp16.safetensors").write_bytes(b"")  # beside the others: not read
    assert digests_of(folder, ["unet"]) == {WEIGHTS: sha256(folder / WEIGHTS)}


def test_weights_in_several_files_have_a_digest_each(tmp_path: Path) -> None:
    unet().save_pretrained(tmp_path, max_shard_size="20KB")
    shards = sorted(tmp_path.glob("*.safetensors"))
    assert len(shards) > 1
    assert digests_of(tmp_path, [""]) == {path.name: sha256(path) for path in shards}


def test_digests_of_a_model_of_the_hub_are_those_of_its_cache(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path / "models--owner--name"
    shutil.copytree(world / "small", cache / "snapshots" / ("a" * 40))
    (cache / "refs").mkdir()
    (cache / "refs" / "main").write_text("a" * 40)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    assert digests_of("owner/name", ["unet"]) == {WEIGHTS: sha256(world / "small" / WEIGHTS)}
    with pytest.raises(ValueError, match="owner/gone: its weights are not in the hub's cache"):
        digests_of("owner/gone", ["unet"])


# ---------------------------------------------------------------------- recordings


@pytest.mark.parametrize("kind", ["samples", pytest.param("prompts", marks=pytest.mark.slow)])
def test_a_recording_is_not_gone_on_with_by_other_weights(kind: str, world: Path, tmp_path: Path) -> None:
    names = ("small", "small expert") if kind == "samples" else ("sd", "expert")
    for mine, name in zip(("base", "expert"), names, strict=True):
        shutil.copytree(world / name, tmp_path / mine)
    arguments = [
        "record",
        "--base",
        tmp_path / "base",
        "--expert",
        tmp_path / "expert",
        "--n-sampling-steps",
        2,
        "--out",
        tmp_path / "pairs",
        "--no-progress",
    ]
    arguments += (
        ["--n-samples", 2, "--n-noisings", 2]
        if kind == "samples"
        else ["--prompts", world / "prompts.txt", "--n-noisings", 1]
    )
    run(*arguments)
    settings = json.loads((tmp_path / "pairs" / "settings.json").read_text())
    wanted = sha256(tmp_path / "expert" / WEIGHTS)
    assert settings["about"]["digests"]["expert"][WEIGHTS] == wanted
    before = (tmp_path / "pairs" / "shard-00000.safetensors").read_bytes()
    (tmp_path / "pairs" / "manifest.json").unlink()
    run(*arguments)  # stopped before the end, and with the same weights
    run("extract", "--recording", tmp_path / "pairs", "--out", tmp_path / "reward", *QUICK)
    with zipfile.ZipFile(tmp_path / "reward" / "reward.zip") as archive:
        card = json.loads(archive.read("card.json"))
    assert card["recording"]["digests"] == settings["about"]["digests"]
    path = tmp_path / "expert" / WEIGHTS  # another model under the same name
    changed = {name: tensor + 1e-3 for name, tensor in safetensors.torch.load_file(path).items()}
    safetensors.torch.save_file(changed, path)
    said = fault(*arguments)
    assert "holds a recording with" in said and f"there it was {wanted[:20]}" in said
    assert (tmp_path / "pairs" / "shard-00000.safetensors").read_bytes() == before


# ---------------------------------------------------------------------- autoencoders


def test_pipelines_with_another_autoencoder_are_no_pair(world: Path) -> None:
    base, expert, other = (StableDiffusion.from_pretrained(world / name) for name in ("sd", "expert", "other"))
    check_compatible(base.prompted(""), expert.prompted(""))
    digests = [weights_digest(pipeline.codec.vae)[:16] for pipeline in (base, other)]
    assert digests[0] != digests[1]
    with pytest.raises(ValueError, match=f"autoencoder={digests[0]} against autoencoder={digests[1]}$"):
        check_compatible(base.prompted(""), other.prompted(""))
    said = fault(
        "record",
        "--base",
        world / "sd",
        "--expert",
        world / "other",
        "--prompts",
        world / "prompts.txt",
        "--out",
        world / "refused",
        "--no-progress",
    )
    assert "have autoencoders of different weights" in said and not (world / "refused").exists()


def test_an_autoencoder_is_the_same_however_it_is_stored_and_computes(world: Path, tmp_path: Path) -> None:
    exact, rounded = (StableDiffusion.from_pretrained(world / "sd", dtype=dtype) for dtype in ("float32", "float16"))
    assert rounded.codec.vae.dtype == torch.float16 and rounded.codec.to_dict() == exact.codec.to_dict()
    folder = shutil.copytree(world / "sd", tmp_path / "sd")
    path = folder / "vae" / "diffusion_pytorch_model.safetensors"
    before = sha256(path)
    safetensors.torch.save_file(safetensors.torch.load_file(path), path, {"format": "pt", "note": "saved again"})
    assert sha256(path) != before
    assert StableDiffusion.from_pretrained(folder).codec.to_dict() == exact.codec.to_dict()
    weights = exact.codec.vae.state_dict()
    first = next(iter(weights))
    weights[first].flatten()[0] += 1e-6
    assert weights_digest(exact.codec.vae) != exact.codec.digest


@pytest.fixture(scope="module")
def archive(world: Path) -> Path:
    """A reward of the first pipeline's latents."""
    pipeline = StableDiffusion.from_pretrained(world / "sd")
    torch.manual_seed(0)
    network = {"network": "conv", "width": 8}
    rho = RelativeReward(pipeline.process, pipeline.event_shape, heads=["window"], window_kwargs=network)
    ImageReward(rho, pipeline.codec).save(world / "reward.zip")
    return world / "reward.zip"


def test_a_reward_is_not_read_with_another_autoencoder(world: Path, archive: Path) -> None:
    codecs = [StableDiffusion.from_pretrained(world / name).codec for name in ("expert", "other")]
    assert ImageReward.load(archive, codec=codecs[0]).codec is codecs[0]
    with pytest.raises(ValueError, match=r"for latents of the autoencoder .* one with other weights") as caught:
        ImageReward.load(archive, codec=codecs[1])
    assert len(str(caught.value)) <= len(str(archive)) + 200
    said = fault(
        "sample",
        "--model",
        world / "other",
        "--prompts",
        world / "prompts.txt",
        "--reward",
        archive,
        "--out",
        world / "steered",
    )
    assert "one with other weights" in said


def test_rewards_from_before_digests_are_read_as_before(world: Path, archive: Path, tmp_path: Path) -> None:
    pipeline = StableDiffusion.from_pretrained(world / "sd")
    reward = ImageReward.load(archive, codec=pipeline.codec)
    old = LatentCodec(None, pipeline.codec.event_shape, pipeline.codec.image_shape, pipeline.codec.scaling_factor)
    assert "digest" not in old.to_dict() and codec_from_dict(old.to_dict()).to_dict() == old.to_dict()
    ImageReward(reward.reward, old).save(tmp_path / "old")
    images = np.random.default_rng(0).integers(0, 256, (2, 16, 16, 3), dtype=np.uint8)
    again = ImageReward.load(tmp_path / "old", codec=pipeline.codec)
    np.testing.assert_array_equal(again.predict(images), reward.predict(images))


def test_codecs_tell_their_shift_and_digest() -> None:
    codec = LatentCodec(None, (4, 8, 8), (3, 16, 16), 1.5, 0.25, "0" * 64)
    assert codec.to_dict()["shift_factor"] == 0.25 and codec.to_dict()["digest"] == "0" * 64
    assert codec_from_dict(codec.to_dict()).to_dict() == codec.to_dict()
