"""Image rewards: one number per image, the same for every way of asking; and steering, for pixels and for latents."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.pipelines import write_ddpm, write_stable_diffusion
from PIL import Image

from rrpolicy.diffusion.sampling import sample
from rrpolicy.images.codec import PixelCodec
from rrpolicy.images.reward import ImageReward
from rrpolicy.images.sampling import ImageModel, sample_events, sample_images
from rrpolicy.images.stable_diffusion import SafeModel, StableDiffusion
from rrpolicy.images.unet import UNetScoreModel
from rrpolicy.rewards.relative_reward import RelativeReward

IMAGES = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 1), dtype=np.uint8)
PROMPTS = ["a cat", "a dog"]


def make_reward(model: Any, codec: Any = None) -> ImageReward:
    """An untrained reward that knows levels and places."""
    torch.manual_seed(0)
    kwargs = {"network": "conv", "width": 8, "multipliers": (1, 1)}
    reward = RelativeReward(model.process, model.event_shape, heads=["window"], window_kwargs=kwargs)
    for parameter in reward.parameters():
        parameter.data += 0.2 * torch.randn_like(parameter)
    return ImageReward(reward.requires_grad_(False).eval(), codec or model.codec)


@pytest.fixture(scope="module")
def unet_model(tmp_path_factory: pytest.TempPathFactory) -> UNetScoreModel:
    return UNetScoreModel.from_pretrained(write_ddpm(tmp_path_factory.mktemp("ddpm")))


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> StableDiffusion:
    return StableDiffusion.from_pretrained(write_stable_diffusion(tmp_path_factory.mktemp("sd") / "sd"))


@pytest.fixture(params=["pixels", "latents"])
def model(request: pytest.FixtureRequest) -> ImageModel:
    if request.param == "pixels":
        return request.getfixturevalue("unet_model")
    return request.getfixturevalue("pipeline").prompted(PROMPTS)


# ---------------------------------------------------------------------- scores


def test_every_kind_of_image_scores_alike(unet_model: UNetScoreModel) -> None:
    reward = make_reward(unet_model)
    scores = reward.predict(IMAGES)
    assert scores.shape == (3,) and scores.dtype == np.float32 and len(np.unique(scores)) == 3
    for images in (
        [Image.fromarray(image[..., 0]) for image in IMAGES],
        IMAGES / 255,
        torch.as_tensor(IMAGES).permute(0, 3, 1, 2),
    ):
        np.testing.assert_allclose(reward.predict(images), scores, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(reward.predict(IMAGES[0]), scores[:1], rtol=1e-4, atol=1e-5)


def test_a_score_is_rho_of_the_clean_image(unet_model: UNetScoreModel) -> None:
    reward = make_reward(unet_model)
    x0 = unet_model.codec.encode(IMAGES)
    t = torch.zeros(3, dtype=torch.int64)
    alpha = unet_model.process.alpha(0)
    np.testing.assert_allclose(reward.predict(IMAGES), reward.reward(alpha * x0, t), rtol=1e-5)
    levels = reward.per_level(IMAGES, [0, 5, 10])
    assert levels.shape == (3, 3)
    np.testing.assert_allclose(levels[0], reward.predict(IMAGES), rtol=1e-5)
    np.testing.assert_allclose(levels.mean(axis=0), reward.predict(IMAGES, [0, 5, 10]), rtol=1e-5)


def test_the_zero_lies_between_samples_and_is_kept(unet_model: UNetScoreModel, tmp_path: Path) -> None:
    order = make_reward(unet_model)
    assert not order.in_nats and "no unit" in order.unit
    with pytest.raises(ValueError, match="learned without values: it orders images, and has no zero"):
        order.calibrated(IMAGES[:1], IMAGES[1:2])
    reward = ImageReward(order.reward, order.codec, in_nats=True)
    before = reward.per_level(IMAGES, [0, 10])
    found = reward.calibrated(IMAGES[:1], IMAGES[1:2])
    assert found.predict(IMAGES[:2]).sum() == pytest.approx(0, abs=1e-4)  # of one image each it is the middle
    assert found.calibrated(IMAGES[:1], IMAGES[1:2]).zero == pytest.approx(found.zero, abs=1e-4)
    np.testing.assert_allclose(found.per_level(IMAGES, [0, 10]), before - found.zero, rtol=1e-4, atol=1e-5)
    found.save(tmp_path / "reward")
    loaded = ImageReward.load(tmp_path / "reward")
    np.testing.assert_array_equal(loaded.predict(IMAGES), found.predict(IMAGES))
    assert loaded.in_nats and loaded.unit == "nats" and loaded.level == 0
    assert ImageReward.load(tmp_path / "reward", None, "cpu").zero == loaded.zero
    with pytest.raises(ValueError, match="env was given, and an ImageReward knows no environment"):
        ImageReward.load(tmp_path / "reward", "Pendulum-v1")  # type: ignore[arg-type]
    events = [reward.codec.encode(images) for images in (IMAGES[:1], IMAGES[1:2])]
    assert reward.calibrated_from_events(*events).zero == pytest.approx(found.zero, abs=1e-4)


def test_an_order_is_taken_at_its_own_level_and_has_no_zero(unet_model: UNetScoreModel, tmp_path: Path) -> None:
    order = make_reward(unet_model)
    middle = ImageReward(order.reward, order.codec, in_nats=False, level=10)
    np.testing.assert_array_equal(middle.predict(IMAGES), order.per_level(IMAGES, [10])[0])
    middle.save(tmp_path / "order")
    loaded = ImageReward.load(tmp_path / "order")
    assert (loaded.level, loaded.in_nats, loaded.zero) == (10, False, 0.0)
    for wrong, words in (
        ({"level": -1}, "level is -1"),
        ({"level": 10**6}, "level is 1000000"),
        ({"level": 1.5}, "level is 1.5"),
        ({"zero": 1.0}, "zero is 1.0, wanted 0"),
    ):
        with pytest.raises(ValueError, match=words):
            ImageReward(order.reward, order.codec, in_nats=False, **wrong)


def test_noised_copies_average_to_the_expectation(unet_model: UNetScoreModel) -> None:
    reward = make_reward(unet_model)
    few, again, many = (reward.per_level(IMAGES, [10], n)[0] for n in (1, 1, 400))
    np.testing.assert_array_equal(few, again)  # seeded
    x0, process = unet_model.codec.encode(IMAGES), unet_model.process
    noise = torch.randn(2000, *x0.shape, generator=torch.Generator().manual_seed(5))
    noised = process.alpha(10) * x0 + process.sigma(10) * noise
    values = reward.reward(noised.flatten(0, 1), torch.full((6000,), 10)).view(2000, 3)
    error = 5 * values.std(dim=0) / 400**0.5
    assert (np.abs(many - values.mean(dim=0).numpy()) < error.numpy()).all()


def test_noise_is_the_picture_s_own(model: ImageModel) -> None:
    reward, shape = make_reward(model), model.codec.image_shape
    images = np.random.default_rng(1).integers(0, 256, (4, *shape[1:], shape[0]), dtype=np.uint8)
    close = {"rtol": 1e-4, "atol": 1e-4}
    scores = reward.per_level(images, [5, 10], 2)
    assert np.ptp(scores, axis=1).min() > 0.01
    np.testing.assert_allclose(reward.per_level(images[::-1], [5, 10], 2), scores[:, ::-1], **close)  # order
    np.testing.assert_allclose(reward.per_level(images[2:3], [10], 2)[0], scores[1, 2:3], **close)  # other levels
    many = reward.per_level(np.repeat(images[:1], 130, axis=0), [5, 10], 2)  # in several chunks
    np.testing.assert_allclose(many, np.repeat(scores[:, :1], 130, axis=1), **close)
    pictures = [Image.fromarray(image.squeeze()) for image in images]
    for kind in (pictures, images / 255, torch.as_tensor(images).permute(0, 3, 1, 2)):
        np.testing.assert_allclose(reward.per_level(kind, [5, 10], 2), scores, **close)
    assert not np.allclose(reward.per_level(images, [5, 10], 2, seed=1), scores, atol=1e-3)
    x0 = model.codec.encode(images)
    events = reward.of_events(x0, [5], 2)
    np.testing.assert_allclose(reward.of_events(x0.flip(0), [5], 2), events[:, ::-1], **close)


def test_pixels_are_encoded_a_few_at_a_time(unet_model: UNetScoreModel, monkeypatch: pytest.MonkeyPatch) -> None:
    reward, sizes = make_reward(unet_model), []
    images = np.repeat(IMAGES, 5, axis=0)
    kinds = [
        images,
        images[..., 0],
        list(images),
        torch.as_tensor(images).permute(0, 3, 1, 2),
        IMAGES[0],
        [Image.fromarray(image[..., 0]) for image in images],
        IMAGES[0, ..., 0],
    ]
    wanted = [reward.predict(kind) for kind in kinds]
    monkeypatch.setattr("rrpolicy.images.codec.CHUNK_VALUES", 4 * 64)
    encode = reward.codec.encode
    monkeypatch.setattr(reward.codec, "encode", lambda part: sizes.append(len(part)) or encode(part))
    for kind, scores in zip(kinds, wanted, strict=True):
        np.testing.assert_allclose(reward.predict(kind), scores, rtol=1e-5, atol=1e-6)
        assert sum(sizes) == len(scores) and max(sizes) <= 4
        sizes.clear()


def test_gradients_are_taken_a_few_at_a_time(model: ImageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    reward, sizes, n = make_reward(model), [], 2
    wanted = sample_events(model, n, 3, reward, solver="ddpm")
    gradient = reward.reward.gradient
    monkeypatch.setattr("rrpolicy.images.sampling.GRADIENT_VALUES", 1)
    monkeypatch.setattr(reward.reward, "gradient", lambda x_t, t: sizes.append(len(x_t)) or gradient(x_t, t))
    torch.testing.assert_close(sample_events(model, n, 3, reward, solver="ddpm"), wanted, rtol=1e-4, atol=1e-5)
    assert sizes == [1] * 6


def test_wrong_levels_and_codecs_are_refused(unet_model: UNetScoreModel, tmp_path: Path) -> None:
    reward = make_reward(unet_model)
    with pytest.raises(ValueError, match=r"images have shape \(0, 1, 8, 8\)"):
        reward.calibrated(IMAGES, IMAGES[:0])
    for levels in ([], [20], [-1]):
        with pytest.raises(ValueError, match=r"levels is \[.*\], wanted some of 0\.\.19"):
            reward.predict(IMAGES, levels)
    with pytest.raises(ValueError, match=r"the codec's events have shape \(4, 4, 4\), the reward's \(1, 8, 8\)"):
        ImageReward(reward.reward, PixelCodec((1, 8, 8), 2))
    reward.save(tmp_path / "reward")
    with pytest.raises(ValueError, match=r"reward\.zip: it was made for .*, the codec given is"):
        ImageReward.load(tmp_path / "reward", codec=PixelCodec((1, 16, 16), 2))


def test_an_archive_scores_alike(model: ImageModel, tmp_path: Path) -> None:
    reward = make_reward(model)
    images = sample_images(model, 2, n_sampling_steps=2)
    reward.save(tmp_path / "reward", card={"note": "untrained"})
    reward.save(tmp_path / "half", half=True)
    again = ImageReward.load(tmp_path / "reward", codec=model.codec)
    np.testing.assert_array_equal(again.predict(images), reward.predict(images))
    np.testing.assert_allclose(
        ImageReward.load(tmp_path / "half", codec=model.codec).predict(images),
        reward.predict(images),
        rtol=0.1,
        atol=0.05,
    )
    with pytest.raises(ValueError, match="holds a 'image-reward', wanted 'reward'"):
        RelativeReward.load(tmp_path / "reward")
    if model.clip is None:  # latents: the archive alone cannot read images
        with pytest.raises(ValueError, match="give the pipeline they belong to"):
            ImageReward.load(tmp_path / "reward").predict(images)


# ---------------------------------------------------------------------- steering


def test_steering_raises_the_reward(model: ImageModel) -> None:
    reward, t = make_reward(model), torch.zeros(2, dtype=torch.int64)
    scores = []
    for scale in (-1.0, 0.0, 1.0):
        events = sample_events(model, 2, 5, reward, scale)
        assert events.shape == (2, *model.event_shape)
        scores.append(float(reward.reward(events, t).sum()))
    assert scores[0] < scores[1] < scores[2]


def test_without_steering_it_is_the_model_itself(model: ImageModel) -> None:
    noise = torch.randn((2, *model.event_shape), generator=torch.Generator().manual_seed(3))
    own = sample(model.eps, model.process, noise, model.process.timesteps(4), clip=model.clip)
    for reward in (None, make_reward(model)):
        assert torch.equal(sample_events(model, 2, 4, reward, 0.0, seed=3), own)
    images = sample_images(model, 2, n_sampling_steps=4, seed=3)
    assert images.dtype == np.uint8 and images.shape[1:] == (*model.codec.image_shape[1:], model.codec.image_shape[0])
    np.testing.assert_array_equal(images, model.codec.decode(own))


def test_pixels_stay_within_their_bounds(unet_model: UNetScoreModel) -> None:
    events = sample_events(unet_model, 4, 5, make_reward(unet_model), 50.0, solver="ddpm")
    assert float(events.abs().max()) <= 1.0
    again = sample_events(unet_model, 4, 5, make_reward(unet_model), 50.0, solver="ddpm")
    assert torch.equal(events, again)  # ancestral noise is seeded, too


def test_a_safe_model_is_sampled_along_its_path(pipeline: StableDiffusion) -> None:
    safe = SafeModel(pipeline.prompted(PROMPTS), "max")
    noise = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    wanted = sample(safe.path(), safe.process, noise, safe.process.timesteps(3))
    torch.testing.assert_close(sample_events(safe, 2, 3), wanted)
    assert not torch.allclose(wanted, sample_events(safe.base, 2, 3), atol=1e-2)


def test_a_reward_of_another_kind_does_not_steer(unet_model: UNetScoreModel, tmp_path: Path) -> None:
    other = UNetScoreModel.from_pretrained(write_ddpm(tmp_path / "a", n_steps=30))
    with pytest.raises(ValueError, match=r"made for noise levels .*30, 'cosine'.*, the model has .*20, 'cosine'"):
        sample_events(unet_model, 1, 2, make_reward(other))
    small = UNetScoreModel.from_pretrained(write_ddpm(tmp_path / "b", size=4))
    with pytest.raises(ValueError, match=r"made for events of shape \(1, 4, 4\), the model has \(1, 8, 8\)"):
        sample_events(unet_model, 1, 2, make_reward(small))
