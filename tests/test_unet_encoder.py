"""A reward that starts from the base's U-Net: same features, exact gradients, archives of its own, clear refusals."""

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import idx

from rrpolicy import RewardExtractor
from rrpolicy.diffusion import GaussianMixtureModel, UNetEncoder
from rrpolicy.diffusion.process import DiffusionProcess
from rrpolicy.diffusion.unet_encoder import config_of_model
from rrpolicy.images.codec import PixelCodec
from rrpolicy.images.reward import ImageReward
from rrpolicy.images.sampling import sample_events
from rrpolicy.images.training import ImageDiffusion
from rrpolicy.rewards.on_policy import Visit, on_policy_targets
from rrpolicy.rewards.relative_reward import RelativeReward

CODEC = PixelCodec((1, 8, 8), 2)
UNET = {"block_out_channels": (8, 16), "norm_num_groups": 4, "attention_head_dim": 4}
NETWORK = {"network": "unet-encoder"}


def model(seed: int = 0, **unet: Any) -> ImageDiffusion:
    images, _ = idx.images(16, seed=seed, size=8)
    small = ImageDiffusion(CODEC, n_diffusion_steps=20, batch_size=8, unet_kwargs={**UNET, **unet}, seed=seed)
    return small.learn(images, 5, log_interval=0)


@pytest.fixture(scope="module")
def base() -> ImageDiffusion:
    return model()


def reward_of(base: Any, **kwargs: Any) -> RelativeReward:
    return RelativeReward.for_model(base, heads=["window"], window_kwargs={**NETWORK, **kwargs})


def extractor_of(base: ImageDiffusion, expert: ImageDiffusion) -> RewardExtractor:
    return RewardExtractor(base, expert, window_kwargs=NETWORK, batch_size=8, buffer_size=16, value_coef=0.1, seed=0)


@pytest.fixture
def x_t() -> torch.Tensor:
    return torch.randn(3, 4, 4, 4, generator=torch.Generator().manual_seed(0))


def test_it_sees_what_the_middle_of_the_base_sees(base: ImageDiffusion, x_t: torch.Tensor) -> None:
    t, seen = torch.tensor([0, 7, 19]), []
    hook = base.unet.mid_block.register_forward_hook(lambda module, inputs, output: seen.append(output))
    base.eps(x_t, t)
    hook.remove()
    encoder = reward_of(base).window
    noted = encoder.middle.register_forward_hook(lambda module, inputs, output: seen.append(output.detach()))
    encoder(x_t, t)
    noted.remove()
    torch.testing.assert_close(seen[1], seen[0], rtol=1e-4, atol=1e-5)
    parameters = {id(parameter) for parameter in base.unet.parameters()}
    assert not parameters & {id(parameter) for parameter in encoder.parameters()}  # copies: the base stays as it is


def test_its_gradient_is_that_of_its_value(base: ImageDiffusion, x_t: torch.Tensor) -> None:
    reward, t = reward_of(base).double(), torch.tensor([0, 7, 19])
    x_t = x_t.double()
    direction = torch.randn_like(x_t)
    step = 1e-3  # the library's attention takes its softmax in single precision
    slope = (reward(x_t + step * direction, t) - reward(x_t - step * direction, t)) / (2 * step)
    torch.testing.assert_close((reward.gradient(x_t, t) * direction).flatten(1).sum(dim=1), slope, rtol=1e-3, atol=1e-4)
    assert not torch.allclose(reward(x_t, t), reward(x_t, t.flip(0)))  # it knows the level
    assert not torch.allclose(reward(x_t, t), reward(x_t.flip(-1), t))  # and where things are


LAST, FIRST = ("DownBlock2D", "AttnDownBlock2D"), ("AttnDownBlock2D", "DownBlock2D")


@pytest.mark.parametrize("kinds", [LAST, pytest.param(FIRST, marks=pytest.mark.slow)])
def test_attention_has_a_second_derivative(kinds: tuple[str, str]) -> None:
    attentive, expert = model(down_block_types=kinds), model(1, down_block_types=kinds)
    images, _ = idx.images(16, size=8)
    extractor = extractor_of(attentive, expert)
    before = extractor.module.window.enter.weight.clone()
    extractor.learn(CODEC.encode(images), 2, log_interval=0)
    assert not torch.equal(before, extractor.module.window.enter.weight)


def test_archives_need_no_base(base: ImageDiffusion, x_t: torch.Tensor, tmp_path: Path) -> None:
    extractor = extractor_of(base, model(1))
    assert extractor.window_kwargs == NETWORK  # the architecture is found out, not asked for
    extractor.learn(CODEC.encode(idx.images(16, size=8)[0]), 3, log_interval=0)
    reward, t = ImageReward(extractor.reward, CODEC), torch.tensor([0, 7, 19])
    reward.save(tmp_path / "reward")
    again = ImageReward.load(tmp_path / "reward")
    assert torch.equal(again.reward(x_t, t), reward.reward(x_t, t))
    extractor.save(tmp_path / "extractor")
    resumed = RewardExtractor.load(tmp_path / "extractor", base=base, expert=model(1))
    assert torch.equal(resumed.reward(x_t, t), reward.reward(x_t, t))


def test_a_round_compares_the_models_where_the_steered_base_goes(base: ImageDiffusion) -> None:
    expert, seen = model(1), []
    reward = ImageReward(reward_of(base), CODEC)

    def sample(visit: Visit) -> torch.Tensor:
        return sample_events(base, 6, 4, reward, solver="ddpm", seed=3, visit=visit)

    pairs = on_policy_targets(base, expert, sample, torch.Generator().manual_seed(4))
    x0 = sample_events(base, 6, 4, reward, solver="ddpm", seed=3, visit=lambda x_t, t: seen.append(x_t))
    assert len(pairs) == 24 and torch.equal(pairs.x_t, torch.cat(seen))
    assert pairs.x0 is not None and torch.equal(pairs.x0, x0.repeat(4, 1, 1, 1))
    difference = base.eps(pairs.x_t, pairs.t) - expert.eps(pairs.x_t, pairs.t)
    torch.testing.assert_close(pairs.eps_difference, difference)
    assert pairs.value is not None and pairs.value.shape == (24,) and pairs.t[:6].min() > pairs.t[-6:].max()
    extractor_of(base, expert).learn(x0, 2, log_interval=0, pairs=pairs)


def test_what_does_not_fit_is_refused(base: ImageDiffusion, monkeypatch: pytest.MonkeyPatch) -> None:
    process, config, free = DiffusionProcess(20), config_of_model(base), torch.zeros(4, 4, 4, dtype=torch.bool)
    with pytest.raises(ValueError, match="needs unet_config, or a model whose U-Net"):
        UNetEncoder(process, (4, 4, 4), free)
    with pytest.raises(ValueError, match="cannot be told of pinned entries"):
        UNetEncoder(process, (4, 4, 4), ~free, unet_config=config)
    with pytest.raises(ValueError, match="unet_config has 4 channels, events have 3"):
        UNetEncoder(process, (3, 4, 4), free[:3], unet_config=config)
    with pytest.raises(ValueError, match=r"the U-Net has \['SkipDownBlock2D'\]"):
        UNetEncoder(process, (4, 4, 4), free, unet_config={**config, "down_block_types": ["SkipDownBlock2D"]})
    mixture = GaussianMixtureModel(torch.zeros(1, 2))
    with pytest.raises(ValueError, match="starts from a UNet2DModel, which GaussianMixtureModel has not"):
        reward_of(mixture)
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(ValueError, match=r"pip install 'rrpolicy\[images\]'"):
        UNetEncoder(process, (4, 4, 4), free, unet_config=config)
