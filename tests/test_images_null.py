"""Where there is nothing to find, that is said: equal models, and spreads that two trainings of one model have, too."""

import re
from html import unescape
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.pipelines import write_codec, write_ddpm
from helpers.program import invoke

from rrpolicy import zoo
from rrpolicy.evaluation import read_results
from rrpolicy.images.audit import write_audit
from rrpolicy.images.codec import PixelCodec
from rrpolicy.images.evidence import Evidence
from rrpolicy.images.folders import write_pictures
from rrpolicy.images.null import NOTHING_BEYOND, Null, models_differ, spread
from rrpolicy.images.recording import record_samples
from rrpolicy.images.reward import NO_DIFFERENCE, NOTHING_FOUND, ImageReward
from rrpolicy.images.unet import UNetScoreModel
from rrpolicy.rewards.relative_reward import RelativeReward

SCORES = np.array([-1.0, 1.0, -1.0, 1.0])
IMAGES_OF_THE_MODEL = np.zeros((2, 8, 8, 1), np.uint8)
IMAGES = np.zeros((4, 4, 4, 1), np.uint8)


def run(*arguments: object, code: int = 0) -> Any:
    result = invoke(["images", *arguments])
    assert result.exit_code == code, result.output
    return result


def record_and_extract(base: Path, expert: Path, out: Path, *options: object) -> str:
    """Record a pair, extract its reward into ``out / "reward"``, and return what was printed."""
    recording = ("--base", base, "--expert", expert, "--n-samples", 4, "--n-noisings", 2, "--n-sampling-steps", 2)
    run("record", *recording, "--out", out / "pairs", "--no-progress")
    extraction = ("--recording", out / "pairs", "--out", out / "reward", "--width", 8, *options)
    return str(run("extract", *extraction, "--no-progress").output)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, eight pictures, and three rewards whose scores spread in the ratio 1 to 2 to 4."""
    folder = tmp_path_factory.mktemp("null")
    write_ddpm(folder / "base", channels=4, size=4)
    write_codec(folder / "base", shape=[1, 8, 8], unshuffle=2)
    model = UNetScoreModel.from_pretrained(folder / "base")
    torch.manual_seed(0)
    kwargs = {"network": "conv", "width": 8, "multipliers": (1, 1)}
    reward = RelativeReward(model.process, model.event_shape, heads=["window"], window_kwargs=kwargs)
    for parameter in reward.parameters():
        parameter.data += 0.2 * torch.randn_like(parameter)
    last = [module for module in reward.modules() if isinstance(module, torch.nn.Linear)][-1]
    for name in ("narrow", "middle", "wide"):
        ImageReward(reward, model.codec, in_nats=True).save(folder / name / "reward.zip")
        last.weight.data *= 2
        last.bias.data *= 2
    ImageReward(reward, model.codec, in_nats=False).save(folder / "order.zip")
    write_pictures(np.random.default_rng(0).integers(0, 256, (8, 8, 8, 1), dtype=np.uint8), folder / "pictures", "a")
    return folder


# ---------------------------------------------------------------------- equal models


def test_a_model_against_itself_does_not_differ(world: Path, tmp_path: Path) -> None:
    said = record_and_extract(world / "base", world / "base", tmp_path, "--total-timesteps", 2, "--batch-size", 4)
    assert f"{NO_DIFFERENCE}: base and expert predict the same at all 16 recorded pairs" in said
    assert [(row["agent"], row["metric"], row["mean"]) for row in read_results(tmp_path / "reward")] == [
        ("models", "difference", 0.0)
    ]
    assert zoo.card(str(tmp_path / "reward"))["difference"] is False
    said = run("audit", world / "pictures", "--reward", tmp_path / "reward", "--out", tmp_path, "--no-progress").output
    assert NO_DIFFERENCE in said
    reward = ImageReward.load(tmp_path / "reward" / "reward.zip")
    assert not reward.difference and NO_DIFFERENCE in reward.nothing and NO_DIFFERENCE in reward.unit
    said = run("score", world / "pictures", "--reward", tmp_path / "reward", "--no-progress").output
    assert f"{NO_DIFFERENCE}: their scores mean nothing" in said and f"rho: no unit, {NO_DIFFERENCE}" in said
    page = (tmp_path / "index.html").read_text()
    assert "<h1>The two models do not differ</h1>" in page and "There is nothing to find" in page
    assert "Below zero" not in page and "What the expert prefers" not in page


def test_models_that_differ_at_one_pair_differ(tmp_path: Path) -> None:
    models = [UNetScoreModel.from_pretrained(write_ddpm(tmp_path / str(i), i)) for i in range(2)]
    codec = PixelCodec((1, 8, 8))
    kwargs: dict[str, Any] = {"n_samples": 2, "n_noisings": 1, "n_sampling_steps": 2, "n_value_draws": 0}
    assert models_differ(record_samples(models[0], models[1], codec, tmp_path / "a", **kwargs))
    assert not models_differ(record_samples(models[0], models[0], codec, tmp_path / "b", **kwargs))


def test_a_reward_that_explains_nothing_says_so(world: Path, tmp_path: Path) -> None:
    write_ddpm(tmp_path / "expert", 1, channels=4, size=4)
    write_codec(tmp_path / "expert", shape=[1, 8, 8], unshuffle=2)
    said = record_and_extract(world / "base", tmp_path / "expert", tmp_path, "--total-timesteps", 0)
    wanted = f"{NOTHING_FOUND} (R² 0.000 on held-out pairs)"
    assert wanted in said
    for command in ("score", "audit"):
        said = run(command, world / "pictures", "--reward", tmp_path / "reward", "--out", tmp_path, "--no-progress")
        assert wanted in said.output
    assert f"N{NOTHING_FOUND[1:]}" in unescape((tmp_path / "index.html").read_text(encoding="utf-8"))
    reward = ImageReward.load(tmp_path / "reward" / "reward.zip")
    assert reward.nothing == wanted and reward.difference and reward.unit == "nats"
    changed = reward.calibrated(IMAGES_OF_THE_MODEL, IMAGES_OF_THE_MODEL)
    assert changed.nothing == wanted


# ---------------------------------------------------------------------- a null


def test_spreads_are_standard_deviations() -> None:
    null = Null(["one", "two"], [2 * SCORES, SCORES / 2 + 7])
    everything, some = np.ones(4, dtype=bool), np.array([True, True, False, False])
    np.testing.assert_allclose(null.spreads(everything), [2 * (4 / 3) ** 0.5, 0.5 * (4 / 3) ** 0.5])
    np.testing.assert_allclose(null.spreads(some), [2 * 2**0.5, 0.5 * 2**0.5])
    assert null.covers(2 * SCORES + 5, everything) and not null.covers(2.01 * SCORES, everything)
    assert spread(np.array([3.0])) == 0.0


@pytest.mark.parametrize(("factor", "beyond"), [(0.5, True), (1.0, False), (3.0, False)])
def test_the_page_says_whether_rho_spreads_beyond_the_null(factor: float, beyond: bool, tmp_path: Path) -> None:
    null = Null(["<b>one</b>", "two"], [factor * SCORES, 0.1 * SCORES])
    page = unescape(write_audit(tmp_path, IMAGES, SCORES, null=null).read_text(encoding="utf-8"))
    here, there = (f"{scale * (4 / 3) ** 0.5:.3f}" for scale in (1, factor))
    assert f"ρ's spread here is {here}, between two trainings of one model {there}, the widest of 2" in page
    assert (f"{there}, the widest of 2: {NOTHING_BEYOND}." in page) is not beyond
    assert ("<h1>What the expert prefers" in page) is beyond
    assert (f"<h1>N{NOTHING_BEYOND[1:]}</h1>" in page) is not beyond
    assert page.index("anything to find") < page.index("Highest ρ")
    assert "anything to find" not in write_audit(tmp_path, IMAGES, SCORES).read_text(encoding="utf-8")


def test_an_audit_takes_rewards_of_equal_trainings(world: Path, tmp_path: Path) -> None:
    (tmp_path / "nulls").mkdir()
    for name in ("narrow", "wide"):
        (tmp_path / "nulls" / name).symlink_to(world / name)

    def audited(*nulls: object) -> tuple[str, dict[tuple[str, str], float]]:
        flags = [part for null in nulls for part in ("--null", null)]
        said = run(
            "audit",
            world / "pictures",
            "--reward",
            world / "middle",
            *flags,
            "--levels",
            0,
            "--out",
            tmp_path / "out",
            "--no-progress",
        ).output
        return said, {(row["agent"], row["metric"]): row["mean"] for row in read_results(tmp_path / "out")}

    said, rows = audited(tmp_path / "nulls")
    widths = [rows[agent, "spread"] for agent in ("null 1", "rho", "null 2")]
    np.testing.assert_allclose(widths, np.multiply(widths[0], [1, 2, 4]), rtol=1e-3)
    assert widths[0] > 0 and NOTHING_BEYOND in said
    assert NOTHING_BEYOND not in audited(world / "narrow")[0] and NOTHING_BEYOND in audited(world / "middle")[0]
    assert NOTHING_BEYOND in audited(world / "narrow", world / "wide" / "reward.zip")[0]
    for name, beyond in (("narrow", True), ("wide", False)):
        said = run(
            "score",
            world / "pictures",
            "--reward",
            world / "middle",
            "--null",
            world / name,
            "--levels",
            "0,3",
            "--no-progress",
        ).output
        assert ("rho spreads beyond the null" in said) is beyond and (NOTHING_BEYOND in said) is not beyond
    table = re.search(
        r"<table><caption>ρ \(nats\) of the same pictures.*?</table>", (tmp_path / "out" / "index.html").read_text()
    )
    assert table is not None and table[0].count('scope="row"') == 3


def test_a_null_that_cannot_be_compared_is_refused(world: Path, tmp_path: Path) -> None:
    def fault(null: Path) -> str:
        said: str = run(
            "audit",
            world / "pictures",
            "--reward",
            world / "middle",
            "--null",
            null,
            "--out",
            tmp_path / "out",
            "--no-progress",
            code=1,
        ).stderr
        assert said.count("\n") == 1 and not (tmp_path / "out").exists()
        return said

    assert "order.zip: gives order at noise level 0, no unit, wanted a null in" in fault(world / "order.zip")
    assert "holds no rewards" in fault(tmp_path)
    assert "no-such" in fault(tmp_path / "no-such")
    with pytest.raises(ValueError, match=r"null has scores \(1, 3\), wanted one for each of 4"):
        write_audit(tmp_path, IMAGES, SCORES, null=Null(["a"], np.zeros((1, 3))))
    with pytest.raises(ValueError, match=r"null has scores \(0,\) of 0 rewards"):
        Null([], [])


def test_equal_models_are_said_before_the_null(tmp_path: Path) -> None:
    null, evidence = Null(["a"], [SCORES]), Evidence(difference=False, has_zero=False)
    page = write_audit(tmp_path, IMAGES, SCORES, null=null, evidence=evidence).read_text(encoding="utf-8")
    assert "<h1>The two models do not differ</h1>" in page
