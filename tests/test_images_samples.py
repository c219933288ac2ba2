"""Samples of the two models that a recording keeps, from which the zero of a reward is found, for prompts as well."""

from pathlib import Path

import pytest
import safetensors.torch
import torch
from test_images_recording import EAGER, PROMPTS, folder, pipeline, record_mixtures
from tiny_images import write_stable_diffusion

from rrpolicy.diffusion.sampling import sample
from rrpolicy.images.recording import PromptPair, record_prompts
from rrpolicy.images.stable_diffusion import SafeModel, StableDiffusion

__all__ = ["folder", "pipeline"]  # fixtures


@pytest.mark.parametrize("kind", ["safety", "checkpoints"])
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
    # from the same noise: what the base draws for the last prompt is its own sample, the expert's is another
    base, expert, _ = pair.models(PROMPTS[2:3])
    generator = torch.Generator().manual_seed(1)  # of the second shard
    noise = torch.randn((1, *pair.base.event_shape), generator=generator)
    for drawn, model in zip(found, (base, expert), strict=True):
        denoiser = model.path() if isinstance(model, SafeModel) else model.eps
        wanted = sample(denoiser, model.process, noise, model.process.timesteps(4))
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
    for damage, words in ((torch.zeros(4, 9), "wanted events"), (torch.full((4, 1, 4, 4), torch.nan), "holds NaN"),
                          (torch.zeros(0, 1, 4, 4), "wanted events"), (torch.zeros(4, 1, 4, 4).long(), "wanted events"),
                          ):  # fmt: skip
        safetensors.torch.save_file({**tensors, "expert_samples": damage}, path)
        with pytest.raises(ValueError, match=f"{path.name}: expert_samples.*{words}"):
            pairs.samples()
    safetensors.torch.save_file({name: tensors[name] for name in ("x_t", "t", "eps_difference")}, path)
    assert pairs.samples() is None
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(ValueError, match="truncated, damaged or missing shard"):
        pairs.samples()
