"""Samples of the two models that a recording keeps, from which the zero of a reward is found, for prompts as well."""

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import safetensors.torch
import torch
from helpers.pipelines import write_stable_diffusion
from test_images_recording import EAGER, PROMPTS, folder, pipeline, record_mixtures

from rrpolicy import RewardExtractor, zoo
from rrpolicy.common.stats import auroc
from rrpolicy.diffusion.sampling import sample
from rrpolicy.images.data import load_images
from rrpolicy.images.recording import PromptPair, finished_reward, record_prompts
from rrpolicy.images.stable_diffusion import SafeModel, StableDiffusion

__all__ = ["folder", "pipeline"]  # fixtures


@pytest.mark.parametrize("kind", ["safety", pytest.param("checkpoints", marks=pytest.mark.slow)])
def test_by_default_prompts_leave_values_and_samples_of_both_models(
    kind: str, pipeline: StableDiffusion, tmp_path: Path
) -> None:
    pair = PromptPair(pipeline, safety=EAGER)
    if kind == "checkpoints":
        pair = PromptPair(pipeline, StableDiffusion.from_pretrained(write_stable_diffusion(tmp_path / "other", 1)))
    pairs = record_prompts(pair, PROMPTS[:3], tmp_path / "pairs", 4, n_noisings=3, shard_size=2)
    assert [rows for _, rows in pairs.shards] == [12, 6] and pairs.about["n_value_draws"] == 1
    found = pairs.samples()
    assert found is not None and found[0].shape == found[1].shape == (3, *pair.base.event_shape)
    # what each draws for the last prompt, from noise of its own
    base, expert, _ = pair.models(PROMPTS[2:3])
    generator = torch.Generator().manual_seed(1)  # of the second shard
    for drawn, model in zip(found, (base, expert), strict=True):
        noise = torch.randn((1, *pair.base.event_shape), generator=generator)
        denoiser = model.path() if isinstance(model, SafeModel) else model.eps
        wanted = sample(
            denoiser,
            model.process,
            noise,
            model.process.timesteps(4),
            solver="ddpm",
            noise=lambda x: torch.randn(x.shape, generator=generator),
        )
        torch.testing.assert_close(drawn[2:], wanted, rtol=1e-3, atol=1e-3)
    assert not torch.equal(*found)
    shard = pairs.shard(1)
    assert shard.value is not None and shard.value.abs().max() > 0
    difference = base.eps(shard.x_t, shard.t) - expert.eps(shard.x_t, shard.t)
    torch.testing.assert_close(shard.eps_difference, difference, rtol=1e-3, atol=1e-3)


def test_samples_are_checked_when_they_are_read(tmp_path: Path) -> None:
    pairs = record_mixtures(tmp_path)
    found = pairs.samples(7)
    assert found is not None and len(found[0]) == len(found[1]) == 7
    path = tmp_path / pairs.shards[0][0]
    tensors = safetensors.torch.load_file(path)
    torch.testing.assert_close(found[0][:4], tensors["base_samples"])
    for damage, words in (
        (torch.zeros(4, 9), "wanted events"),
        (torch.full((4, 1, 4, 4), torch.nan), "holds NaN"),
        (torch.zeros(0, 1, 4, 4), "wanted events"),
        (torch.zeros(4, 1, 4, 4).long(), "wanted events"),
    ):
        safetensors.torch.save_file({**tensors, "expert_samples": damage}, path)
        with pytest.raises(ValueError, match=f"{path.name}: expert_samples.*{words}"):
            pairs.samples()
    safetensors.torch.save_file({name: tensors[name] for name in ("x_t", "t", "eps_difference")}, path)
    assert pairs.samples() is None
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(ValueError, match="truncated, damaged or missing shard"):
        pairs.samples()


class ZooPair:
    """The zoo's base and expert as if they had prompts, which they do not read."""

    def __init__(self) -> None:
        self.base_model, self.expert_model = (zoo.load(f"FashionMNIST/{name}") for name in ("base", "expert"))
        model = self.base_model
        self.expert = None
        self.base = SimpleNamespace(codec=model.codec, event_shape=model.event_shape, prompted=lambda text: model)

    def models(self, prompts: Sequence[str]) -> tuple[Any, Any, Any]:
        return self.base_model, self.expert_model, None

    def to_dict(self) -> dict[str, Any]:
        return {}


@pytest.mark.slow
def test_clean_pictures_are_ranked_by_a_reward_of_prompts(tmp_path: Path) -> None:
    """By default settings of a recording with prompts, a pass on clean pictures tells removed classes from others."""
    try:
        test = load_images(None, "test")
    except FileNotFoundError:
        pytest.skip("needs Debian's package dataset-fashion-mnist")
    pair: Any = ZooPair()
    pairs = record_prompts(pair, [str(i) for i in range(512)], tmp_path, shard_size=64)
    train, held_out = pairs.split()
    extractor = RewardExtractor(
        pair.base_model,
        pair.expert_model,
        ["window"],
        batch_size=64,
        value_coef=0.3,
        value_units=True,
        window_kwargs={"network": "unet-encoder"},
        seed=0,
    )
    extractor.learn(train, 1500, log_interval=0)
    reward, facts = finished_reward(extractor, pairs, held_out, pair.base.codec)
    assert facts["calibration"] == "512 samples of the base and 512 of the expert" and reward.in_nats
    wanted = ~test.mask(zoo.card("FashionMNIST/reward")["unwanted"])[:2000]
    area = auroc(reward.predict(test.images[:2000]), wanted)
    assert area.value >= 0.96, area
