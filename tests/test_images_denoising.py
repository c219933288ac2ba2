"""Pictures that the base denoises as it does no sample are flagged, where the base is there to be asked."""

import json
from html import unescape
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.pipelines import write_codec, write_ddpm, write_stable_diffusion
from test_images_cli import fault, run
from torch import Tensor

from rrpolicy import zoo
from rrpolicy.diffusion.process import DiffusionProcess
from rrpolicy.images.data import FASHION_MNIST_FOLDER, load_images
from rrpolicy.images.denoising_error import FILE, ErrorRanges, denoising_errors, kept_errors, levels_of
from rrpolicy.images.folders import write_pictures
from rrpolicy.images.reward import ImageReward
from rrpolicy.images.sampling import sample_events
from rrpolicy.images.support import Support
from rrpolicy.images.unet import UNetScoreModel
from rrpolicy.rewards.recorded import RecordedPairs


class Gaussian:
    """The exact model of independent normal pixels of one spread."""

    event_shape = (1, 16, 16)

    def __init__(self, spread: float = 0.5) -> None:
        self.process, self.spread = DiffusionProcess(100), spread

    def eps(self, x_t: Tensor, t: Tensor) -> Tensor:
        alpha, sigma = self.process.levels(x_t, t)
        return sigma * x_t / (alpha**2 * self.spread**2 + sigma**2)

    def fingerprint(self) -> str:
        return "gaussian"


def drawn(n: int, spread: float, seed: int = 0) -> Tensor:
    return spread * torch.randn((n, 1, 16, 16), generator=torch.Generator().manual_seed(seed))


def test_errors_are_those_of_the_exact_model() -> None:
    model, levels = Gaussian(), [5, 30, 70]
    found = denoising_errors(model, drawn(400, 0.5), levels)
    alpha, sigma = (part(torch.tensor(levels)).double() for part in (model.process.alpha, model.process.sigma))
    signal = alpha**2 * 0.5**2
    np.testing.assert_allclose(np.exp(found).mean(axis=0), signal / (signal + sigma**2), rtol=0.02)
    one = denoising_errors(model, drawn(400, 0.5)[7:8], levels)
    np.testing.assert_allclose(one[0], found[7], rtol=1e-5)  # noise of the event's own


def test_what_no_sample_is_like_is_flagged_on_both_sides() -> None:
    model = Gaussian()
    levels = levels_of(model)
    assert levels == [5, 15, 30, 50]
    ranges = ErrorRanges.of(denoising_errors(model, drawn(200, 0.5), levels), levels)
    assert ranges.unlike(model, drawn(500, 0.5, 1)).mean() <= 0.01
    assert ranges.unlike(model, drawn(50, 1.0, 2)).all() and ranges.unlike(model, torch.zeros(1, 1, 16, 16)).all()
    assert ErrorRanges.from_dict(json.loads(json.dumps(ranges.to_dict()))) == ranges
    with pytest.raises(ValueError, match="errors have 1 levels, 1 lower and 0 upper ends"):
        ErrorRanges(100, (1,), (0.0,), ())


@pytest.mark.slow
@pytest.mark.skipif(not FASHION_MNIST_FOLDER.is_dir(), reason="needs Debian's dataset-fashion-mnist")
def test_odd_pictures_are_flagged_and_real_ones_are_not() -> None:
    """A negative has the contrast and the texture of its picture; upside down, most of Fashion-MNIST is not told."""
    base, expert = (zoo.load(f"FashionMNIST/{name}") for name in ("base", "expert"))
    samples = [sample_events(model, 64, n_sampling_steps=20, seed=1, solver="ddpm") for model in (base, expert)]
    levels = levels_of(base)
    ranges = ErrorRanges.of(denoising_errors(base, torch.cat(samples), levels), levels)
    real, rng = load_images(None, "test").images[:150], np.random.default_rng(0)
    pictures = {
        "real": real,
        "negative": 255 - real,
        "black": 0 * real[:5],
        "white": 0 * real[:5] + 255,
        "noise": rng.integers(0, 256, (20, 16, 16, 1), dtype=np.uint8),
        "upside down": real[:, ::-1].copy(),
    }
    shares = {name: ranges.unlike(base, base.codec.encode(images)).mean() for name, images in pictures.items()}
    assert shares["real"] <= 0.03 and shares["real"] < shares["upside down"] < 0.5
    assert min(shares["black"], shares["white"], shares["noise"]) == 1.0 and shares["negative"] >= 0.95


# ---------------------------------------------------------------------- commands


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("world")
    for i, name in enumerate(("base", "expert")):
        write_ddpm(folder / name, i, channels=4, size=4)
        write_codec(folder / name, shape=[1, 8, 8], unshuffle=2)
    run(
        "record",
        "--base",
        folder / "base",
        "--expert",
        folder / "expert",
        "--n-samples",
        52,
        "--n-noisings",
        1,
        "--n-sampling-steps",
        4,
        "--n-value-draws",
        0,
        "--out",
        folder / "pairs",
        "--no-progress",
    )
    run(
        "extract",
        "--recording",
        folder / "pairs",
        "--out",
        folder / "reward",
        "--total-timesteps",
        0,
        "--width",
        8,
        "--batch-size",
        4,
        "--no-progress",
    )
    model = UNetScoreModel.from_pretrained(folder / "base")
    write_pictures(model.codec.decode(sample_events(model, 4, n_sampling_steps=4)), folder / "pictures" / "own", "a")
    return folder


def test_ranges_go_from_the_recording_into_the_reward(world: Path) -> None:
    base = UNetScoreModel.from_pretrained(world / "base")
    samples = RecordedPairs.open(world / "pairs").samples()
    assert samples is not None
    kept, levels = kept_errors(world / "pairs"), levels_of(base)
    wanted = ErrorRanges.of(np.concatenate([denoising_errors(base, one, levels) for one in samples]), levels)
    assert kept is not None and kept.n == 104 and kept.levels == wanted.levels
    np.testing.assert_allclose((kept.low, kept.high), (wanted.low, wanted.high), rtol=1e-4)
    support = ImageReward.load(world / "reward" / "reward.zip").support
    assert support is not None and support.errors == kept
    before = (world / "pairs" / FILE).read_text()
    (world / "pairs" / FILE).unlink()  # stopped before it was written
    run(
        "record",
        "--base",
        world / "base",
        "--expert",
        world / "expert",
        "--n-samples",
        52,
        "--n-noisings",
        1,
        "--n-sampling-steps",
        4,
        "--n-value-draws",
        0,
        "--out",
        world / "pairs",
        "--no-progress",
    )
    assert (world / "pairs" / FILE).read_text() == before


@pytest.mark.parametrize(
    "content",
    [
        "{",
        "[]",
        '{"n": 1}',
        '{"n": 1, "levels": [1], "low": [0.0], "high": [-1.0]}',
        '{"n": 1, "levels": [1], "low": [0.0], "high": [1.0], "path": "x"}',
    ],
)
def test_damaged_ranges_are_refused(content: str, tmp_path: Path) -> None:
    (tmp_path / FILE).write_text(content)
    with pytest.raises(ValueError, match=r"denoising\.json: "):
        kept_errors(tmp_path)


def test_pictures_are_flagged_by_the_base_s_error_where_it_is_given(world: Path, tmp_path: Path) -> None:
    reward = ImageReward.load(world / "reward" / "reward.zip")
    support = reward.support
    assert support is not None and support.errors is not None
    wide = tuple(1e6 for _ in support.low)
    n_levels = len(support.errors.levels)
    none = ErrorRanges(support.errors.n, support.errors.levels, (5.0,) * n_levels, (6.0,) * n_levels)
    everything = Support(support.n, tuple(-one for one in wide), wide, none)
    card = zoo.card(str(world / "reward"))
    ImageReward(reward.reward, reward.codec, in_nats=False, support=everything).save(tmp_path / "reward.zip", card=card)
    options = (world / "pictures", "--reward", tmp_path / "reward.zip", "--out", tmp_path / "out", "--no-progress")
    audit = ("audit", *options, "--levels", 0, "--n", 1)

    def flags() -> dict[str, str]:
        lines = (tmp_path / "out" / "scores.csv").read_text().splitlines()[1:]
        return {line.split(",")[0]: line.split(",")[-1] for line in lines}

    def page() -> str:
        return unescape((tmp_path / "out" / "index.html").read_text(encoding="utf-8"))

    run(*audit)
    assert set(flags().values()) == {""} and none.rule not in page()
    run(*audit, "--base", world / "base")
    assert none.rule in page() and set(flags().values()) == {"unlike"}
    run("score", *options, "--base", world / "base")
    assert set(flags().values()) == {"unlike"}
    run(*audit, "--base", world / "base", "--no-denoising")
    assert not any(flags().values())
    said = run(*audit, "--base", world / "expert").output
    assert "the model given is not the recorded base" in said and not any(flags().values())
    assert "--denoising needs the base: give --model" in fault(*audit, "--denoising")
    for option, value in (("--class-label", 1), ("--config", world / "base")):
        assert "--class-label and --config are for --base" in fault("score", *options, option, value)
        assert "--guidance-scale, --class-label and --config are for --model" in fault(*audit, option, value)


def test_recordings_with_prompts_keep_the_errors_without_a_prompt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("denoising_error", "support"):
        monkeypatch.setattr(f"rrpolicy.images.{module}.N_NEEDED", 4)
    write_stable_diffusion(tmp_path / "sd")
    write_stable_diffusion(tmp_path / "expert", 1)
    (tmp_path / "prompts.txt").write_text("a cat\n" * 2)
    more: tuple[Any, ...] = ("--prompts", tmp_path / "prompts.txt", "--no-progress")
    run(
        "record",
        "--base",
        tmp_path / "sd",
        "--expert",
        tmp_path / "expert",
        "--n-sampling-steps",
        1,
        "--n-noisings",
        1,
        "--n-value-draws",
        0,
        "--guidance-scale",
        1,
        "--out",
        tmp_path / "pairs",
        *more,
    )
    assert kept_errors(tmp_path / "pairs") is not None
    run(
        "extract",
        "--recording",
        tmp_path / "pairs",
        "--out",
        tmp_path / "reward",
        "--total-timesteps",
        0,
        "--width",
        8,
        "--batch-size",
        4,
        "--no-progress",
    )
    write_pictures(np.zeros((1, 16, 16, 3), np.uint8), tmp_path / "pictures", "a")
    said = run(
        "score",
        tmp_path / "pictures",
        "--reward",
        tmp_path / "reward",
        "--base",
        tmp_path / "sd",
        "--pipeline",
        tmp_path / "sd",
        "--no-progress",
    ).output
    assert "by statistics alone" not in said
