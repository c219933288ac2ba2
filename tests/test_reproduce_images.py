"""The image experiment on made-up images with tiny models: units, archives, what is measured, tables and figures."""

import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import idx
from helpers.pictures import small_pictures
from helpers.program import invoke
from helpers.recipes import toml
from helpers.rows import short_key
from PIL import Image

from rrpolicy import RewardExtractor
from rrpolicy.experiments.images import (
    ArtifactStore,
    Unit,
    draw,
    read_results,
    reproduction,
    select,
    summary,
    variant_named,
    with_pairs,
)
from rrpolicy.experiments.images.artifacts import Samples
from rrpolicy.experiments.images.measure import Measurements, sample_sheet
from rrpolicy.experiments.recipes import read_recipe
from rrpolicy.experiments.results import Result
from rrpolicy.experiments.store import load_or_create
from rrpolicy.images.data import load_images
from rrpolicy.images.reward import ImageReward
from rrpolicy.rewards.calibration import bennett_offset
from rrpolicy.rewards.targets import Targets

NORTH = ("north west", "north east")
CLASSES = (*NORTH, "south west", "south east")  # the quarter that is lit
SMALL = {"total_timesteps": 4}
RECIPE: dict[str, Any] = {
    "name": "fashion_mnist",
    "data": {"size": 8},
    "model": {
        "unshuffle": 2,
        "n_diffusion_steps": 20,
        "batch_size": 8,
        "unet_kwargs": {"block_out_channels": [8, 8], "norm_num_groups": 4, "attention_head_dim": 4},
    },
    "base": SMALL,
    "fine_tuned": {**SMALL, "learning_rate": 1e-3},
    "scratch": SMALL,
    "samples": {"n": 12, "n_sampling_steps": 2, "solver": "ddpm"},
    "extraction": {
        **SMALL,
        "heads": ["window"],
        "batch_size": 8,
        "buffer_size": 32,
        "n_value_draws": 1,
        "value_coef": 0.3,
        "value_units": True,
        "window_kwargs": {"network": "conv", "width": 8, "multipliers": [1, 2]},
    },
    "judge": {"total_timesteps": 30, "width": 8},
    "evaluation": {
        "n_test": 32,
        "levels": [0, 10],
        "n_noisings": 1,
        "n_elbo": 16,
        "n_elbo_draws": 1,
        "scales": [1.0, 2.0],
        "n_steered": 8,
    },
    "pairs": {"removed": [list(NORTH), ["south west"]]},
    "lookalikes": {"north west": ["north east", "south west"], "south west": ["south east"]},
}
TUNED, SCRATCH = Unit(NORTH, "fine-tuned", 1), Unit(NORTH, "scratch", 1)
CONTROL = Unit((), "fine-tuned", 1)


@pytest.fixture(scope="module", autouse=True)
def small() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        small_pictures(patch)
        yield


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of a user's own, with a sub-folder for each class."""
    folder = tmp_path_factory.mktemp("photos")
    for part, n in (("train", 48), ("test", 40)):
        pixels, labels = idx.images(n, seed=n, size=8)
        for i, (image, label) in enumerate(zip(pixels, labels, strict=True)):
            path = folder / part / CLASSES[label] / f"{i:02d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(path)
    return folder


def run(folder: Path, photos: Path, units: Sequence[Unit], variant: str | None = None, **more: Any) -> list[Result]:
    return reproduction(units, RECIPE, folder / "r.csv", folder / "work", photos, variant_named(variant), **more).run()


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory, photos: Path) -> Path:
    """A finished run of a pair with both experts, and of the control."""
    folder = tmp_path_factory.mktemp("done")
    run(folder, photos, [TUNED, SCRATCH, CONTROL])
    return folder


def values(folder: Path, unit: Unit, variant: str = "") -> dict[tuple[str, str], float]:
    return {
        short_key(one, True): one.value
        for one in read_results(folder / "r.csv")
        if one.unit == unit.key and one.variant == variant
    }


def test_units_are_chosen() -> None:
    everything = select(RECIPE)
    assert len(everything) == 2 * (2 * 2 + 1) and [unit.seed for unit in everything[::5]] == [13, 14]
    assert [str(unit) for unit in select(RECIPE, quick=True)] == [
        "north west+north east fine-tuned seed 13",
        "none fine-tuned seed 13",
    ]
    assert select(RECIPE, ["south west"], ["scratch"], [7, 7]) == [Unit(("south west",), "scratch", 7)]
    assert select(RECIPE, ["none"], ["scratch"]) == []  # nothing was ever removed from the control
    assert TUNED.name == "north-west-north-east_fine-tuned_seed-1"
    with pytest.raises(ValueError, match=r"pair must be one of north west\+north east, south west, none, got 'east'"):
        select(RECIPE, ["east"])
    with pytest.raises(ValueError, match="case must be one of fine-tuned, scratch, got 'x'"):
        select(RECIPE, cases=["x"])
    with pytest.raises(ValueError, match=r"section \[pairs\]: removed is None, wanted lists of class names"):
        select({**RECIPE, "pairs": {}})
    with pytest.raises(ValueError, match="variant must be one of gradients-only, convolutions, no-round, got 'x'"):
        variant_named("x")


def test_other_pairs_take_the_place_of_the_recipes() -> None:
    for known in (None, ["south west"], ["none", "north west+north east"]):
        assert with_pairs(RECIPE, known) is RECIPE  # so that its results go on counting
    other = with_pairs(RECIPE, ["cat+dog", "none", "south west", "cat+dog"])
    assert other["pairs"] == {"removed": [["cat", "dog"], ["south west"]]} and other["data"] == RECIPE["data"]
    assert [unit.held_out for unit in select(other, ["cat+dog", "none"], quick=True)] == [("cat", "dog"), ()]


# ---------------------------------------------------------------------- what is measured


class Halves:
    """A score that is known: how much brighter the lower half of an image is than the upper."""

    def predict(self, images: Any) -> Any:
        halves = images.reshape(len(images), 2, -1).mean(axis=2)
        return (halves[:, 1] - halves[:, 0]).astype(np.float32)


def test_a_score_that_knows_the_classes_ranks_them_perfectly(photos: Path, tmp_path: Path) -> None:
    measurements = Measurements(ArtifactStore(tmp_path, RECIPE, photos), TUNED)
    measurements.reward = Halves()  # type: ignore[assignment]
    measurements.reward.per_level = lambda images, levels, *_: np.stack([Halves().predict(images)] * len(levels))  # type: ignore[method-assign]
    rows = {short_key(row, True)[1]: row for row in measurements.ranking()}
    assert rows["auroc"]["mean"] == rows["auroc_t10"]["mean"] == 1.0 and rows["auroc"]["n"] == 32
    for name in CLASSES:  # a lit quarter is 150 brighter, and half of its half
        assert rows[f"mean_{name}"]["mean"] == pytest.approx(-75 if name in NORTH else 75, abs=3)
    lookalikes = {short_key(row, True)[1]: row for row in measurements.lookalikes()}
    assert set(lookalikes) == {"auroc_lookalikes_north west"}  # the other one has no look-alike of its own
    assert lookalikes["auroc_lookalikes_north west"]["mean"] == 1.0
    n_alike = int(measurements.images.mask(["north west", "south west"]).sum())  # north east was removed as well
    assert lookalikes["auroc_lookalikes_north west"]["n"] == n_alike


def test_the_images_are_held_out_ones_in_random_order(photos: Path, tmp_path: Path) -> None:
    store = ArtifactStore(tmp_path, RECIPE, photos)
    drawn = Measurements(store, TUNED).images
    held_out = {image.tobytes() for image in load_images(photos, "test", 8).images}
    assert len(drawn) == 32 and {image.tobytes() for image in drawn.images} <= held_out
    assert len(set(drawn.labels[:8])) > 1  # a part of them has several classes
    assert not np.array_equal(drawn.images, Measurements(store, Unit(NORTH, "fine-tuned", 2)).images.images)


def test_everything_is_reported_of_a_pair(done: Path) -> None:
    rows = values(done, TUNED)
    for agent in ("base", "expert", "base-samples", "expert-samples", "rho", "judge", "unit"):
        assert rows[agent, "cpu_seconds"] > 0
    for agent in ("base", "expert", "steered-1", "steered-2"):
        assert 0 <= rows[agent, "harmful_share"] <= 1 and 0.25 <= rows[agent, "judge_confidence"] <= 1
    stayed = "base", "judge_confidence_stayed"
    assert stayed in rows and stayed not in values(done, CONTROL)
    assert rows["brightness", "auroc_reversed"] == pytest.approx(1 - rows["brightness", "auroc"], abs=1e-5)
    assert {("untrained", "auroc"), ("elbo", "auroc"), ("rho", "auroc_elbo_subset")} <= set(rows)
    assert rows["judge", "accuracy"] > 0.9
    by_key = {short_key(one, True): one for one in read_results(done / "r.csv") if one.unit == TUNED.key}
    assert by_key["base", "harmful_share"].n == 12 and by_key["steered-1", "harmful_share"].n == 8
    assert by_key["elbo", "auroc"].n == by_key["rho", "auroc_elbo_subset"].n == 16


class Judge:
    """Sees in each image what its number says: even ones show a removed class, surely, others are what they are."""

    def says(self, images: np.ndarray, names: tuple[str, ...]) -> np.ndarray:
        return images % 2 == 0

    def probabilities(self, images: np.ndarray) -> np.ndarray:
        sure = np.where(images % 2 == 0, 1.0, images / 10)
        return np.stack([sure, 1 - sure], axis=1)


def test_the_judge_is_also_asked_how_sure_it_is_of_classes_that_stayed(
    done: Path, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def said(*images: int) -> dict[str, Any]:
        measurements = Measurements(ArtifactStore(done / "work", RECIPE, photos), TUNED)
        measurements.classifier = Judge()
        monkeypatch.setattr("rrpolicy.experiments.images.measure.steered_images", lambda *_: np.array(images))
        return {row["metric"]: row for row in measurements.steered_samples(1.0)}

    rows = said(2, 4, 6, 7, 9)
    assert rows["harmful_share"]["mean"] == pytest.approx(0.6)
    assert rows["judge_confidence"]["mean"] == pytest.approx((3 + 0.7 + 0.9) / 5)
    assert rows["judge_confidence_stayed"]["mean"] == pytest.approx(0.8) and rows["judge_confidence_stayed"]["n"] == 2
    assert "judge_confidence_stayed" not in said(2, 4)


def test_a_control_is_asked_about_every_pair(done: Path) -> None:
    rows = values(done, CONTROL)
    for name in ("north west+north east", "south west"):
        assert {
            ("rho", f"auroc_{name}"),
            ("rho", f"auroc_t10_{name}"),
            ("elbo", f"auroc_{name}"),
            ("expert", f"harmful_share_{name}"),
        } <= set(rows)
    assert ("rho", "auroc") not in rows and not any("lookalikes" in metric for _, metric in rows)


# ---------------------------------------------------------------------- what is kept


def test_a_second_run_has_nothing_to_do(done: Path, photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rrpolicy.experiments.images.measure.measure_unit", pytest.fail)
    before = (done / "r.csv").read_bytes()
    said: list[str] = []
    run(done, photos, [TUNED, SCRATCH, CONTROL], log=said.append)
    assert said == ["3 of 3 units done before"] and (done / "r.csv").read_bytes() == before


def test_a_unit_that_was_stopped_trains_nothing_twice(
    done: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = values(done, TUNED)
    for learner in ("training.ImageDiffusion", "classifier.ImageClassifier"):
        monkeypatch.setattr(f"rrpolicy.images.{learner}.learn", pytest.fail)
    monkeypatch.setattr("rrpolicy.experiments.images.artifacts.RewardExtractor.learn", pytest.fail)
    monkeypatch.setattr("rrpolicy.experiments.images.artifacts.sample_events", pytest.fail)
    reproduction([TUNED], RECIPE, tmp_path / "r.csv", done / "work", photos).run()  # its rows were lost
    again = values(tmp_path, TUNED)
    assert {key: value for key, value in again.items() if key[0] != "unit"} == pytest.approx(
        {key: value for key, value in rows.items() if key[0] != "unit"}
    )


def test_what_units_share_is_made_once(done: Path, photos: Path) -> None:
    work = done / "work"
    found = sorted(str(path.relative_to(work)).rpartition("-")[0] for path in work.glob("*/*.zip"))
    each = ("expert", "expert-samples", "reward")
    wanted = [
        *("base_seed-1/base", "base_seed-1/base-samples", "judge/judge"),
        *(f"{unit.name}/{name}" for unit in (TUNED, SCRATCH, CONTROL) for name in each),
    ]
    assert found == sorted(wanted)
    store = ArtifactStore(work, RECIPE, photos)
    tuned, scratch = store.expert(TUNED)[0], store.expert(SCRATCH)[0]
    x_t, t = torch.randn(2, 4, 4, 4), torch.tensor([1, 10])
    assert not torch.equal(tuned.eps(x_t, t), scratch.eps(x_t, t))
    assert isinstance(store.reward(TUNED)[0], ImageReward)


def test_other_images_are_another_experiment(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = "rrpolicy.experiments.images.artifacts.load_or_create"
    monkeypatch.setattr(made, lambda path, *_: (path, 0.0))  # where it would lie

    def base_path(recipe: dict[str, Any], folder: Path | None) -> Any:
        return ArtifactStore(tmp_path, recipe, folder).base(1)[0]

    paths = {base_path(RECIPE, folder) for folder in (None, photos, tmp_path)}
    assert len(paths) == 3
    longer = {**RECIPE, "extraction": {**RECIPE["extraction"], "total_timesteps": 5}}
    assert base_path(longer, photos) in paths  # only the reward is made anew


def test_any_kind_of_thing_is_kept_with_its_time(tmp_path: Path) -> None:
    path, events = tmp_path / "a" / "samples.zip", torch.randn(3, 4)
    made, seconds = load_or_create(path, lambda: Samples(events), Samples.load)
    assert torch.equal(made.events, events) and seconds >= 0
    again, same = load_or_create(path, pytest.fail, Samples.load)
    assert torch.equal(again.events, events) and same == seconds
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(ValueError, match=r"samples\.zip"):
        load_or_create(path, pytest.fail, Samples.load)


def test_rounds_and_networks_change_the_reward_alone(
    done: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = shutil.copytree(done / "work", tmp_path / "work")
    monkeypatch.setattr("rrpolicy.images.training.ImageDiffusion.learn", pytest.fail)
    recipe = {**RECIPE, "extraction": {**RECIPE["extraction"], "window_kwargs": {"network": "unet-encoder"}}}
    changed = variant_named("convolutions").applied(recipe)
    encoder, plain = (ArtifactStore(work, one, photos).reward(TUNED)[0].reward for one in (recipe, changed))
    assert encoder.window_kwargs["network"] == "unet-encoder" and plain.window_kwargs["network"] == "conv"
    seen: list[tuple[int, int | None]] = []

    def learn(self: RewardExtractor, data: Any, n: int, pairs: Targets | None = None, **_: Any) -> None:
        seen.append((n, None if pairs is None else len(pairs)))

    monkeypatch.setattr(RewardExtractor, "learn", learn)
    rounds = {**recipe, "rounds": {"n": 4, "total_timesteps": 3}}
    for one in (rounds, variant_named("no-round").applied(rounds)):
        ArtifactStore(work, one, photos).reward(TUNED)
    assert seen == [(4, None), (3, 4 * 2), (4, None), (3, None)]  # two denoising steps


def test_experts_from_scratch_may_have_another_extraction_and_rounds_another_buffer(
    done: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = shutil.copytree(done / "work", tmp_path / "work")
    seen: list[tuple[int, int]] = []

    def learn(self: RewardExtractor, data: Any, n: int, **_: Any) -> None:
        seen.append((n, self.buffer_size))

    monkeypatch.setattr(RewardExtractor, "learn", learn)
    rounds = {"n": 0, "total_timesteps": 3, "buffer_size": 48}
    recipe = {**RECIPE, "rounds": rounds, "scratch_extraction": {"total_timesteps": 7, "buffer_size": 96}}
    for unit in (TUNED, SCRATCH):
        ArtifactStore(work, recipe, photos).reward(unit)
    before = RECIPE["extraction"]
    assert seen == [(before["total_timesteps"], before["buffer_size"]), (3, 48), (7, 96), (3, 48)]
    other = {**recipe, "scratch_extraction": {"total_timesteps": 8}}
    for unit in (TUNED, SCRATCH):
        ArtifactStore(work, other, photos).reward(unit)
    assert seen[4:] == [(8, before["buffer_size"]), (3, 48)]  # the other reward is not made anew


def test_the_zero_lies_between_samples_of_the_two_models(done: Path, photos: Path) -> None:
    store = ArtifactStore(done / "work", RECIPE, photos)
    reward = store.reward(TUNED)[0]
    base, expert = (reward.predict(store.codec.decode(store.samples(TUNED, part)[0])) for part in ("base", "expert"))
    assert bennett_offset(base, expert) == pytest.approx(0, abs=1e-4) and reward.zero != 0


def test_gradients_alone_share_all_but_the_reward(done: Path, photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rrpolicy.images.training.ImageDiffusion.learn", pytest.fail)
    run(done, photos, [TUNED], "gradients-only")
    rows, main = values(done, TUNED, "gradients-only"), values(done, TUNED)
    for key in (("elbo", "auroc"), ("base", "harmful_share")):
        assert rows[key] == main[key]
    assert rows["rho", "mean_south east"] != main["rho", "mean_south east"]
    text = summary(read_results(done / "r.csv"))
    assert "| what | aim | result: mean, worst (n) | gradients-only: mean, worst (n) |" in text
    assert "| north west+north east | fine-tuned | gradients-only |" in text


# ---------------------------------------------------------------------- what is shown


def test_tables_and_figures_come_from_the_csv(done: Path) -> None:
    results = read_results(done / "r.csv")
    text = summary(results)
    for cell in (
        "| north west+north east | scratch | with values |",
        "| none | fine-tuned | with values |",
        "| mean ρ, nats | removed: north west+north east | removed: none |",
        "| north west | **",
        "| fine-tuned | ",
        "| CPU-minutes of everything | ≤ 120 |",
    ):
        assert cell in text, cell
    assert {path.name for path in draw(results, done / "r.csv")} == {"levels.png", "classes.png", "samples.png"}
    assert summary([]) == "" and draw([], done / "r.csv") == []


def test_each_unit_leaves_a_sheet_of_samples(done: Path, tmp_path: Path) -> None:
    sheets = done / "r" / "sheets"
    assert {path.stem for path in sheets.iterdir()} == {unit.name for unit in (TUNED, SCRATCH, CONTROL)}
    with Image.open(sheets / f"{TUNED.name}.png") as sheet:
        width, height = sheet.size
    assert width > 4 * height / 2  # four grids of four rows and eight columns


def test_samples_of_removed_classes_are_framed(done: Path, photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    north, south = (np.concatenate([np.full((4, 8, 1), a), np.full((4, 8, 1), b)]) for a, b in ((190, 20), (20, 190)))
    south[:, 4:] = north[:, 4:] = 20  # a lit quarter on the left
    drawn = np.stack([north, south]).astype(np.uint8)
    monkeypatch.setattr("rrpolicy.experiments.images.measure.sample_images", lambda *_, **__: drawn)
    sheet = sample_sheet(ArtifactStore(done / "work", RECIPE, photos), TUNED, 2)
    assert list(sheet) == ["base", "steered, scale 1", "steered, scale 2", "expert"]
    frames = sheet["base"][0, [0, 10]]  # the upper left corners of two images of 8 pixels, each within a line
    assert frames[0].tolist() != [255, 255, 255] and frames[1].tolist() == [255, 255, 255]


# ---------------------------------------------------------------------- the command and its faults


def test_the_command(done: Path, photos: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "quarters.toml"
    quoted = {f'"{name}"': others for name, others in RECIPE["lookalikes"].items()}
    recipe.write_text(toml({**{key: value for key, value in RECIPE.items() if key != "name"}, "lookalikes": quoted}))
    given = ["reproduce", "images", "--recipe", str(recipe), "--no-progress"]
    shown = invoke([*given, "--out", str(done / "r.csv"), "--figures-only"])
    assert shown.exit_code == 0 and "| none | fine-tuned | with values |" in shown.output, shown.output
    assert (done / "r" / "summary.md").read_text() in shown.output and "0 units" in shown.output
    fresh = [*given, "--work", str(done / "work"), "--data", str(photos), "--out", str(tmp_path / "q.csv")]
    fresh += ["--quick", "--seed", str(TUNED.seed)]  # whose models are there
    result = invoke(fresh)
    assert result.exit_code == 0 and "0 of 2 units done before" in result.output, result.output
    assert {one.task for one in read_results(tmp_path / "q.csv")} == {"north west+north east", "none"}


def test_missing_images_and_unknown_classes_stop_before_training(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rrpolicy.images.training.ImageDiffusion.learn", pytest.fail)
    given = ["reproduce", "images", "--work", str(tmp_path / "work"), "--out", str(tmp_path / "r.csv"), "--no-progress"]
    result = invoke([*given, "--quick", "--data", str(tmp_path / "nowhere")])
    assert result.exit_code == 1
    assert "nowhere: no images; install Debian's package dataset-fashion-mnist" in result.stderr
    result = invoke([*given, "--quick", "--data", str(photos)])  # the zoo's recipe names trousers
    assert result.exit_code == 1 and "'trouser' is no class, there are north east," in result.stderr
    result = invoke([*given, "--pair", "hat"])  # Fashion-MNIST need not be installed
    assert result.exit_code == 1
    assert "no images" in result.stderr or "'hat' is no class, there are t-shirt," in result.stderr
    lacking = {**RECIPE, "evaluation": {"n_test": 5}}
    with pytest.raises(ValueError, match=r"recipe section \[evaluation\]: .* missing"):
        reproduction([TUNED], lacking, tmp_path / "r.csv", tmp_path / "work", photos).run()


def test_the_recipe_of_the_zoo_is_whole(tmp_path: Path) -> None:
    recipe = Path(__file__).parents[1] / "rrpolicy" / "recipes" / "fashion_mnist.toml"
    values = read_recipe(recipe)
    assert len(select(values)) == 14
    measurements = Measurements(ArtifactStore(tmp_path, values), select(values)[0])
    assert measurements.options.scales == [1.0, 2.0] and measurements.store.codec.event_shape == (4, 8, 8)
