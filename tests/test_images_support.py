"""Pictures that neither model would make are flagged, by ranges of their samples' statistics, and counted nowhere."""

import csv
import json
import zipfile
from dataclasses import replace
from html import unescape
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.pipelines import write_codec, write_ddpm
from helpers.program import invoke
from PIL import Image

from rrpolicy import zoo
from rrpolicy.diffusion.process import DiffusionProcess
from rrpolicy.evaluation import read_results
from rrpolicy.images.audit import write_audit
from rrpolicy.images.codec import LatentCodec, PixelCodec
from rrpolicy.images.data import FASHION_MNIST_FOLDER, load_images
from rrpolicy.images.evidence import Evidence
from rrpolicy.images.reward import ImageReward
from rrpolicy.images.sampling import sample_events
from rrpolicy.images.support import N_NEEDED, NOT_CHECKED, Support, statistics
from rrpolicy.rewards.recorded import RecordedPairs
from rrpolicy.rewards.relative_reward import RelativeReward

CODEC = PixelCodec((1, 8, 8), 2)
RNG = np.random.default_rng(0)


def odd(size: int) -> dict[str, Any]:
    """Pictures uint8 (n, size, size, 1) that no generator of photographs would make."""
    one = (size, size, 1)
    checks = 255 * (np.indices((size, size)).sum(axis=0) % 2)[None, ..., None]
    return {
        "black": np.zeros((1, *one), np.uint8),
        "white": np.full((1, *one), 255, np.uint8),
        "grey": np.full((1, *one), 128, np.uint8),
        "checks": checks.astype(np.uint8),
        "noise": RNG.integers(0, 256, (20, *one), dtype=np.uint8),
    }


def ramps(n: int) -> Any:
    """Pictures whose grey grows from left to right, from some level by some height."""
    low, high = RNG.uniform(0, 60, (n, 1, 1, 1)), RNG.uniform(120, 255, (n, 1, 1, 1))
    return (low + (high - low) * np.linspace(0, 1, 8)[None, None, :, None] + np.zeros((n, 8, 8, 1))).astype(np.uint8)


def make_reward(support: Support | None) -> ImageReward:
    torch.manual_seed(0)
    network = {"network": "conv", "width": 8, "multipliers": (1, 1)}
    reward = RelativeReward(DiffusionProcess(20), CODEC.event_shape, heads=["window"], window_kwargs=network)
    return ImageReward(reward, CODEC, support=support)


@pytest.fixture(scope="module")
def support() -> Support:
    found = Support.of(CODEC.encode(ramps(400)), CODEC)
    assert found is not None
    return found


# ---------------------------------------------------------------------- statistics and ranges


def test_statistics_are_those_of_the_unfolded_picture() -> None:
    picture = np.tile(np.array([0, 255, 0, 255, 0, 255, 0, 255], np.uint8), (8, 1))[None, ..., None]
    for codec in (CODEC, PixelCodec((1, 8, 8)), PixelCodec((1, 8, 8), 4)):
        found = statistics(codec.encode(picture), codec)
        # columns differ by 2, rows by 0: (4 + 0) / 2 over a variance of 1; two apart nothing differs
        np.testing.assert_allclose(found, [[0.0, 0.0, np.log(2), np.log(1e-5)]], atol=1e-4)
    colour = statistics(torch.zeros(5, 3, 8, 8), PixelCodec((3, 8, 8)))
    assert colour.shape == (5, 12) and len(np.unique(colour, axis=0)) == 1
    assert statistics(torch.zeros(2, 4, 1, 1), PixelCodec((1, 2, 2), 2)).shape == (2, 3)  # nothing is two apart


def test_latents_have_statistics_of_each_channel() -> None:
    codec = LatentCodec(None, (4, 8, 8), (3, 16, 16))
    smooth = torch.nn.functional.interpolate(
        torch.randn(300, 4, 3, 3, generator=torch.Generator().manual_seed(0)), 8, mode="bilinear"
    )
    found = Support.of(smooth[:200], codec)
    assert found is not None and len(found.low) == 16
    noise = torch.randn(50, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    assert found.unlike(smooth[200:], codec).mean() <= 0.05
    assert found.unlike(noise, codec).all() and found.unlike(torch.zeros(1, 4, 8, 8), codec).all()


def test_ranges_are_quantiles_widened_by_a_quarter() -> None:
    grey = torch.linspace(-1, 1, 1001)[:, None, None, None].expand(-1, 1, 8, 8)
    found = Support.of(grey, PixelCodec((1, 8, 8)))
    assert found is not None and found.n == 1001
    np.testing.assert_allclose((found.low[0], found.high[0]), (-0.998 * 1.5, 0.998 * 1.5), rtol=1e-6)
    assert Support.of(grey[: N_NEEDED - 1], PixelCodec((1, 8, 8))) is None
    assert Support.of(grey[:N_NEEDED], PixelCodec((1, 8, 8))) is not None
    with pytest.raises(ValueError, match="support has 4 ranges, events of this codec have 12"):
        found.unlike(torch.zeros(1, 3, 8, 8), PixelCodec((3, 8, 8)))
    with pytest.raises(ValueError, match="support has 1 lower and 0 upper ends"):
        Support(100, (0.0,), ())


def test_pictures_of_the_kind_are_kept_and_others_flagged(support: Support) -> None:
    assert support.unlike(CODEC.encode(ramps(500)), CODEC).mean() <= 0.01
    assert {name: support.unlike(CODEC.encode(images), CODEC).all() for name, images in odd(8).items()} == {
        name: True for name in odd(8)
    }


@pytest.mark.slow  # as pictures that are drawn here, above
@pytest.mark.skipif(not FASHION_MNIST_FOLDER.is_dir(), reason="needs Debian's dataset-fashion-mnist")
def test_black_white_and_noise_are_flagged_and_real_pictures_are_not() -> None:
    models = [zoo.load(f"FashionMNIST/{name}") for name in ("base", "expert")]
    codec = models[0].codec
    samples = torch.cat([sample_events(model, 64, n_sampling_steps=20, seed=1) for model in models])
    found = Support.of(samples, codec)
    assert found is not None
    real = load_images(None, "test")
    flagged = found.unlike(codec.encode(real.images), codec)
    assert len(flagged) == 10_000 and flagged.mean() <= 0.02
    assert max(flagged[real.labels == label].mean() for label in range(10)) <= 0.05
    for name, images in odd(16).items():
        assert found.unlike(codec.encode(images), codec).all(), name


# ---------------------------------------------------------------------- archives


def test_ranges_stay_with_the_reward(support: Support, tmp_path: Path) -> None:
    reward = make_reward(support)
    reward.save(tmp_path / "reward.zip")
    assert ImageReward.load(tmp_path / "reward.zip").support == support
    reward.in_nats = True
    assert reward.calibrated(ramps(4), ramps(4)).support == support
    make_reward(None).save(tmp_path / "none.zip")
    assert ImageReward.load(tmp_path / "none.zip").support is None
    assert zoo.load("FashionMNIST/reward").support is None  # written before there were any
    with pytest.raises(ValueError, match="support has 3 ranges, events of this codec have 4"):
        make_reward(replace(support, low=support.low[:3], high=support.high[:3]))


@pytest.mark.parametrize(
    "change", [{"n": -1}, {"low": []}, {"low": ["a"] * 4}, {"high": [0.0] * 2**15}, {"high": [0.0]}, {"path": "x"}]
)
def test_forged_ranges_are_refused(change: dict[str, Any], support: Support, tmp_path: Path) -> None:
    make_reward(support).save(tmp_path / "reward.zip")
    with zipfile.ZipFile(tmp_path / "reward.zip") as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    header = json.loads(members["config.json"])
    header["config"]["support"].update(change)
    members["config.json"] = json.dumps(header).encode()
    with zipfile.ZipFile(tmp_path / "forged.zip", "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    with pytest.raises(ValueError, match=r"forged\.zip.*support"):
        ImageReward.load(tmp_path / "forged.zip")


# ---------------------------------------------------------------------- commands and page


def run(*arguments: object) -> Any:
    result = invoke(["images", *arguments])
    assert result.exit_code == 0, result.output
    return result


def test_extract_takes_the_ranges_from_the_recording(tmp_path: Path) -> None:
    for i, name in enumerate(("base", "expert")):
        write_ddpm(tmp_path / name, i, channels=4, size=4)
        write_codec(tmp_path / name, shape=[1, 8, 8], unshuffle=2)
    for values in (0, 1):
        run(
            "record",
            "--base",
            tmp_path / "base",
            "--expert",
            tmp_path / "expert",
            "--n-samples",
            52,
            "--n-noisings",
            1,
            "--n-sampling-steps",
            2,
            "--n-value-draws",
            values,
            "--out",
            tmp_path / f"pairs{values}",
            "--no-progress",
        )
        run(
            "extract",
            "--recording",
            tmp_path / f"pairs{values}",
            "--out",
            tmp_path / "out",
            "--total-timesteps",
            0,
            "--batch-size",
            4,
            "--width",
            8,
            "--no-progress",
        )
        samples = RecordedPairs.open(tmp_path / f"pairs{values}").samples()
        reward = ImageReward.load(tmp_path / "out" / "reward.zip")
        assert samples is not None and reward.in_nats is bool(values) and reward.support is not None
        assert replace(reward.support, errors=None) == Support.of(torch.cat(samples), CODEC) and reward.support.n == 104


def test_flagged_pictures_are_in_no_mean(support: Support, tmp_path: Path) -> None:
    make_reward(support).save(tmp_path / "reward.zip")
    for label, images in (
        ("fine", ramps(4)),
        ("mixed", np.concatenate([ramps(2), odd(8)["noise"][:3]])),
        ("odd", odd(8)["black"]),
    ):
        (tmp_path / "pictures" / label).mkdir(parents=True)
        for i, image in enumerate(images):
            Image.fromarray(image[..., 0]).save(tmp_path / "pictures" / label / f"{i}.png")
    options = ("--reward", tmp_path / "reward.zip", "--out", tmp_path / "out", "--no-progress")
    for command, more in (("score", ()), ("audit", ("--unwanted", "mixed", "--levels", 0))):
        said = run(command, tmp_path / "pictures", *options, *more).output
        assert "4 of 10 pictures are unlike anything the two models make: flagged, not counted" in said
        rows = {(row["agent"], row["metric"]): row["n"] for row in read_results(tmp_path / "out")}
        assert rows.pop(("wanted", "auroc"), 6) == rows.pop(("wanted", "auroc_t0"), 6) == 6
        assert rows == {("fine", "rho"): 4, ("mixed", "rho"): 2}
        lines = list(csv.DictReader((tmp_path / "out" / "scores.csv").read_text().splitlines()))
        flags = [line["flags"] for line in lines]
        assert flags == [""] * 6 + ["unlike"] * 4 and [line["label"] for line in lines] == ["fine"] * 4 + [
            "mixed"
        ] * 5 + ["odd"]
    page = unescape((tmp_path / "out" / "index.html").read_text())
    assert "4 of 10 images are flagged." in page and support.rule in page
    assert "lies outside the range that holds 99.8% of 400 samples of both models, widened by 25%" in support.rule


def test_the_page_counts_what_is_not_flagged(tmp_path: Path) -> None:
    images = np.repeat(np.arange(6, dtype=np.uint8), 16).reshape(6, 4, 4, 1)
    scores, flags = np.array([-90.0, -1.0, 1.0, 2.0, 3.0, 80.0]), np.array([True, False, False, False, False, True])
    page = unescape(write_audit(tmp_path, images, scores, unlike=flags).read_text(encoding="utf-8"))
    assert "<dt>Below zero</dt><dd>25%<small>of 4 images" in page and "<dt>Flagged</dt><dd>2<small>" in page
    assert "<dd>+3.00<small>" in page and "<dd>−1.00<small>" in page
    assert page.split('id="distribution"')[1].count("<td>4</td><td>+1.25</td>") == 1
    assert page.count("<small>flagged</small>") == 2
    highest = page.split('id="extremes"')[1].split("</section>")[0]
    assert "80.00" not in highest and "80.00" in page.split('id="unlike"')[1].split("</section>")[0]


def test_a_page_of_flagged_pictures_alone_has_no_numbers(tmp_path: Path) -> None:
    page = write_audit(
        tmp_path,
        np.zeros((2, 4, 4, 1), np.uint8),
        [-1.0, 1.0],
        labels=["a", "b"],
        unwanted=["a"],
        per_level=([0], [[0.0, 1.0]]),
        unlike=np.ones(2, bool),
    ).read_text()
    assert "<dt>Flagged</dt><dd>2<small>" in page
    for absent in ("AUROC", "Below zero", "Highest", 'id="distribution"'):
        assert absent not in page
    with pytest.raises(ValueError, match=r"unlike is float64 \(2,\), wanted booleans \(2,\)"):
        write_audit(tmp_path, np.zeros((2, 4, 4, 1), np.uint8), [-1.0, 1.0], unlike=np.zeros(2))


def test_a_reward_without_ranges_says_that_it_did_not_look(tmp_path: Path) -> None:
    evidence = Evidence.of(make_reward(None), {})
    page = unescape(write_audit(tmp_path, np.zeros((1, 4, 4, 1), np.uint8), [1.0], evidence=evidence).read_text())
    assert NOT_CHECKED in page and "images are flagged" not in page
