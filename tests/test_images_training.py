"""Small image models learn, resume exactly, and come back from their folder as the same score model."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDPMPipeline
from helpers import idx
from helpers.forged import forge

from rrpolicy.common.archive import read_archive
from rrpolicy.diffusion.score_model import ScoreModel, check_compatible
from rrpolicy.images.codec import PixelCodec
from rrpolicy.images.training import ImageDiffusion
from rrpolicy.images.unet import CODEC_FILE, UNetScoreModel

CODEC = PixelCodec((1, 8, 8), 2)
UNET = {"block_out_channels": (8, 8), "norm_num_groups": 4, "attention_head_dim": 4}
PIXELS, LABELS = idx.images(32, size=8)


def model(**changes: Any) -> ImageDiffusion:
    arguments = {"n_diffusion_steps": 20, "batch_size": 8, "unet_kwargs": UNET, "seed": 0, **changes}
    return ImageDiffusion(CODEC, **arguments)


@pytest.fixture(scope="module")
def trained() -> ImageDiffusion:
    return model(learning_rate=1e-2, ema_decay=0.9, batch_size=32).learn(PIXELS, 60, log_interval=0)


def same(one: ImageDiffusion, other: ImageDiffusion) -> bool:
    mine, others = (learner.averaged.state_dict().values() for learner in (one, other))
    return all(torch.equal(a, b) for a, b in zip(mine, others, strict=True))


def noised(t: int, n: int = 32) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    levels = torch.full((n,), t)
    noise = torch.randn((n, *CODEC.event_shape), generator=torch.Generator().manual_seed(1))
    return model().process.q_sample(CODEC.encode(PIXELS[:n]), levels, noise), levels, noise


def test_it_learns_to_denoise(trained: ImageDiffusion) -> None:
    x_t, t, noise = noised(10)
    before, after = (float(((one.eps(x_t, t) - noise) ** 2).mean()) for one in (model(), trained))
    assert after < 0.5 * before
    assert not trained.eps(x_t, t).requires_grad


def test_it_is_a_score_model_of_the_cosine_schedule(trained: ImageDiffusion) -> None:
    assert isinstance(trained, ScoreModel) and trained.event_shape == (4, 4, 4) and trained.clip == 1.0
    assert trained.process.to_dict()["schedule"] == "cosine" and trained.process.prediction == "eps"
    check_compatible(trained, trained.fine_tuned())
    with pytest.raises(ValueError, match="n_diffusion_steps"):
        check_compatible(trained, model(n_diffusion_steps=21))


def test_the_usual_network_fits_into_two_megabytes(tmp_path: Path) -> None:
    usual = ImageDiffusion(PixelCodec((1, 16, 16), 2), seed=0)
    usual.save(tmp_path / "half", resumable=False, half=True)
    assert 0.5e6 < sum(p.numel() for p in usual.module.parameters()) < 0.7e6
    assert (tmp_path / "half.zip").stat().st_size < 1.5e6


def test_fine_tuning_starts_from_the_averaged_weights(trained: ImageDiffusion) -> None:
    expert = trained.fine_tuned(learning_rate=1e-3, seed=5)
    assert same(expert, trained) and expert.num_timesteps == 0
    assert (expert.learning_rate, expert.seed, expert.batch_size) == (1e-3, 5, 32)
    expert.learn(PIXELS[LABELS != 1], 2, log_interval=0)
    assert not same(expert, trained)


def test_continued_equals_uninterrupted(tmp_path: Path) -> None:
    whole = model().learn(PIXELS, 6, log_interval=0)
    path = tmp_path / "part.zip"

    def stop(variables: dict[str, Any], _: dict[str, Any]) -> bool:
        return bool(variables["self"].num_timesteps < 4)

    model().learn(PIXELS, 6, callback=stop, log_interval=0, checkpoint_path=path)
    part = ImageDiffusion.load(path)
    assert part.num_timesteps == 4
    part.learn(PIXELS, 2, log_interval=0, reset_num_timesteps=False)
    assert same(part, whole)


def test_half_an_archive_is_nearly_the_model(trained: ImageDiffusion, tmp_path: Path) -> None:
    trained.save(tmp_path / "half.zip", resumable=False, half=True)
    loaded = ImageDiffusion.load(tmp_path / "half")
    x_t, t, _ = noised(5)
    torch.testing.assert_close(loaded.eps(x_t, t), trained.eps(x_t, t), atol=2e-2, rtol=0)
    assert loaded.fingerprint() == trained.fingerprint() and loaded.codec.to_dict() == CODEC.to_dict()


def test_a_folder_comes_back_as_the_same_score_model(trained: ImageDiffusion, tmp_path: Path) -> None:
    folder = trained.save_pretrained(tmp_path / "new" / "folder")
    loaded = UNetScoreModel.from_pretrained(folder)
    assert loaded.fingerprint() == trained.fingerprint()
    x_t, t, _ = noised(7)
    torch.testing.assert_close(loaded.eps(x_t, t).detach(), trained.eps(x_t, t), atol=1e-5, rtol=0)
    assert json.loads((folder / CODEC_FILE).read_text()) == {"codec": CODEC.to_dict()}
    assert not [path for path in folder.rglob("*") if path.suffix in (".bin", ".pt", ".pkl")]
    pipeline = DDPMPipeline.from_pretrained(folder)
    table = torch.as_tensor(pipeline.scheduler.alphas_cumprod)
    torch.testing.assert_close(table.sqrt(), trained.process.alpha(torch.arange(20)), atol=1e-5, rtol=0)


def test_the_codec_checks_images() -> None:
    with pytest.raises(ValueError, match=r"images have shape \(2, 1, 9, 9\), wanted \(B, 1, 8, 8\)"):
        model().learn(np.zeros((2, 9, 9), np.uint8), 1)
    with pytest.raises(TypeError, match="lacks total_timesteps"):
        model().learn(PIXELS)


def test_an_archive_of_latents_is_refused(trained: ImageDiffusion, tmp_path: Path) -> None:
    latents = {"kind": "latents", "event_shape": [4, 4, 4], "image_shape": [3, 8, 8], "scaling_factor": 1.0}
    trained.save(tmp_path / "images")
    archive = read_archive(tmp_path / "images")
    forged = forge(tmp_path / "forged.zip", archive.kind, {**archive.config, "codec": latents}, archive.tensors)
    with pytest.raises(ValueError, match="Input should be 'pixels', got latents"):
        ImageDiffusion.load(forged)


def test_events_need_not_be_square() -> None:
    wide = ImageDiffusion(PixelCodec((3, 8, 16), 4), n_diffusion_steps=5, unet_kwargs=UNET, seed=0)
    assert wide.eps(torch.zeros(2, 48, 2, 4), torch.zeros(2, dtype=torch.int64)).shape == (2, 48, 2, 4)
