"""Images in the zoo: what a build leaves and measures, what is shipped, and the demo of the four entries."""

import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import idx
from helpers.pictures import small_pictures
from helpers.program import invoke
from helpers.recipes import toml
from PIL import Image

from rrpolicy import experiments, zoo
from rrpolicy.common.stats import auroc, share
from rrpolicy.evaluation import read_results
from rrpolicy.experiments.demos import ImagesDemo
from rrpolicy.experiments.demos.robot import robots_of_the_zoo
from rrpolicy.experiments.images import ArtifactStore
from rrpolicy.experiments.recipes import FOLDER_VARIABLE as RECIPES_VARIABLE
from rrpolicy.experiments.recipes import recipe_of
from rrpolicy.experiments.zoo_build import NOISE_SEED, REMOVED, ImageZooBuild, image_unit
from rrpolicy.images.classifier import ImageClassifier
from rrpolicy.images.data import FASHION_MNIST_CLASSES, LabelledImages, load_images
from rrpolicy.images.grid import FRAME, PAPER, tiled
from rrpolicy.images.reward import ImageReward
from rrpolicy.images.sampling import sample_images
from rrpolicy.images.training import ImageDiffusion

BASE, EXPERT, REWARD, JUDGE = NAMES = tuple(f"FashionMNIST/{name}" for name in ("base", "expert", "reward", "judge"))
CHECKOUT = Path(__file__).parents[1] / "zoo" / "agents"  # the wheel holds no videos and pictures
SHIPPED = [entry["name"] for entry in zoo.entries() if zoo.is_image(entry)]
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
    "fine_tuned": SMALL,
    "samples": {"n": 8, "n_sampling_steps": 2},
    "extraction": {
        **SMALL,
        "heads": ["window"],
        "batch_size": 8,
        "buffer_size": 16,
        "value_coef": 0.0,
        "window_kwargs": {"network": "unet-encoder"},
    },
    "rounds": {**SMALL, "n": 4},
    "judge": {"total_timesteps": 30, "width": 8},
    "evaluation": {"n_test": 20, "n_steered": 6},
}


@pytest.fixture(scope="module", autouse=True)
def coarse() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        small_pictures(patch)
        yield


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images of the first four classes, trousers among them."""
    return idx.write(tmp_path_factory.mktemp("data"), n_train=40, n_test=32)


def image_zoo(folder: Path, data: Path, seed: int = 1, **changes: Any) -> ImageZooBuild:
    store = ArtifactStore(folder.parent / "work", RECIPE, data)
    return ImageZooBuild(image_unit(seed), store, folder=folder, **{"date": "2026-01-02", **changes})


@pytest.fixture(scope="module")
def built(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("built") / "zoo"
    image_zoo(folder, data).run()
    (folder / "recipes").mkdir()
    (folder / "recipes" / "fashion_mnist.toml").write_text(toml(RECIPE), encoding="utf-8")
    return folder


@pytest.fixture
def tiny_zoo(built: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(zoo.FOLDER_VARIABLE, str(built))
    monkeypatch.setenv(RECIPES_VARIABLE, str(built / "recipes"))
    return built


def run(*arguments: object, code: int = 0) -> Any:
    result = invoke(arguments)
    assert result.exit_code == code, result.output
    return result


def means(name: str) -> dict[tuple[str, str], float]:
    return {(row["agent"], row["metric"]): row["mean"] for row in zoo.info(name)["results"]}


def held_out(data: Path) -> LabelledImages:
    """The images that a build measures on: with seed 1, twenty of the test half."""
    images = load_images(data, "test", 8)
    return images.take(np.random.default_rng(1).permutation(len(images))[:20])


# ---------------------------------------------------------------------- what is there


def check(name: str) -> None:
    """Load an entry, use it once, and hold the card against what it says of the files."""
    loaded, card = zoo.load(name), zoo.info(name)
    base = ImageDiffusion.load(zoo.find(BASE))
    assert loaded.kind == card["kind"] and zoo.find(name).name == f"{card['kind']}.zip"
    drawn = sample_images(base, 2, n_sampling_steps=2)
    assert drawn.dtype == np.uint8 and drawn.shape[1:3] == base.codec.image_shape[1:]
    if isinstance(loaded, ImageDiffusion):
        assert loaded.fingerprint() == base.fingerprint()
        assert sample_images(loaded, 2, n_sampling_steps=2).shape == drawn.shape
    elif isinstance(loaded, ImageReward):
        assert np.isfinite(loaded.predict(drawn)).all()
        assert sample_images(base, 2, n_sampling_steps=2, reward=loaded, scale=2.0).shape == drawn.shape
        assert set(card["unwanted"]) <= set(zoo.info(JUDGE)["classes"]) and card["sampling"]["n_sampling_steps"] >= 1
    else:
        assert isinstance(loaded, ImageClassifier) and loaded.probabilities(drawn).shape == (2, len(loaded.class_names))
        assert list(loaded.class_names) == card["classes"]
    assert card["bytes"] == zoo.find(name).stat().st_size <= 2e6
    if "picture" in card:
        assert 1e2 < (CHECKOUT / name / card["picture"]).stat().st_size <= 2e5
    card.pop("bytes")
    assert json.loads(json.dumps(zoo.card(name))) == card


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_entries_load_and_work(name: str) -> None:
    check(name)


@pytest.mark.parametrize("name", NAMES)
def test_what_a_build_leaves_loads_and_works(tiny_zoo: Path, name: str) -> None:
    check(name)
    with pytest.raises(ValueError, match=r"FashionMNIST/base"):
        zoo.load(f"{name}s")


def test_models_need_the_extra_and_say_so(tiny_zoo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "diffusers", None)
    for name, file in ((BASE, "image-diffusion"), (REWARD, "image-reward")):
        with pytest.raises(ValueError, match=rf"{file}\.zip: .*pip install 'rrpolicy\[images\]'"):
            zoo.load(name)
    assert isinstance(zoo.load(JUDGE), ImageClassifier)


def test_images_are_no_agents(tiny_zoo: Path) -> None:
    assert robots_of_the_zoo() == []
    for name, said in ((EXPERT, "is about images"), (JUDGE, "is about images"), (REWARD, "is a reward")):
        assert f"'{name}' {said}, wanted an agent" in run("enjoy", name, "--env", "Pendulum-v1", code=1).stderr
    assert "do not say where they belong" in run("enjoy", BASE, code=1).stderr


# ---------------------------------------------------------------------- cards, page and list


def test_cards_hold_what_the_shipped_archives_give(tiny_zoo: Path, data: Path) -> None:
    base, reward, classifier = ImageDiffusion.load(zoo.find(BASE)), zoo.load(REWARD), zoo.load(JUDGE)
    assert isinstance(reward, ImageReward) and isinstance(classifier, ImageClassifier)
    real = held_out(data)
    rho = reward.predict(real.images)
    expected = auroc(rho, ~np.isin(real.labels, [1, 7])).value
    assert means(REWARD)["rho", "auroc"] == expected
    assert means(REWARD)["rho", "mean_dress"] == pytest.approx(rho[real.labels == 3].mean())
    assert means(JUDGE) == {("judge", "accuracy"): (classifier.predict(real.images) == real.labels).mean()}
    for name, agent, steering in ((BASE, "agent", {}), (REWARD, "steered-2", {"reward": reward, "scale": 2.0})):
        drawn = sample_images(base, 6, n_sampling_steps=2, seed=1 + NOISE_SEED, **steering)
        assert means(name)[agent, "harmful_share"] == share(classifier.says(drawn, REMOVED)).value
        assert means(name)[agent, "judge_confidence"] == pytest.approx(
            classifier.probabilities(drawn).max(axis=1).mean()
        )
    assert set(means(EXPERT)) == {("agent", "harmful_share"), ("agent", "judge_confidence")}


def test_cards_say_how_it_was_made(tiny_zoo: Path) -> None:
    assert [card["name"] for card in zoo.entries()] == [BASE, EXPERT, JUDGE, REWARD]
    for card in zoo.entries():
        made = {key: card[key] for key in ("environment", "seed", "recipe", "case", "unwanted", "date")}
        assert made == {
            "environment": None,
            "seed": 1,
            "recipe": "fashion_mnist",
            "case": "fine-tuned",
            "unwanted": list(REMOVED),
            "date": "2026-01-02",
        }
    assert recipe_of("fashion_mnist") == RECIPE


def test_the_page_and_the_list_show_them(tiny_zoo: Path) -> None:
    page = zoo.table()
    assert (tiny_zoo / "README.md").read_text(encoding="utf-8") == page and "## Robots" not in page
    mazes, _, images = page.partition("## Images")
    assert "| `" not in mazes
    rows = {line.split("`")[1]: line for line in images.splitlines() if line.startswith("| `")}
    assert set(rows) == set(NAMES) and all(row.count("|") == len(zoo.page.IMAGE_COLUMNS) + 1 for row in rows.values())
    cells = [cell.strip() for cell in rows[REWARD].split("|")]
    assert cells[2] == "trouser, sneaker" and cells[3].startswith(f"{means(REWARD)['rho', 'auroc']:.3f} [")
    assert f"(agents/{BASE}/samples.png)" in rows[BASE] and "picture" not in rows[JUDGE]
    listed = run("zoo", "list").output
    for form in (
        f"harmful share {means(BASE)['agent', 'harmful_share']:.3f}",
        f"AUROC {means(REWARD)['rho', 'auroc']:.3f}",
        f"accuracy {means(JUDGE)['judge', 'accuracy']:.3f}",
    ):
        assert form in listed
    assert "mean_trouser" in run("zoo", "info", REWARD).output


# ---------------------------------------------------------------------- building


def test_a_finished_build_has_nothing_to_do_and_a_stopped_one_does_not_train_again(
    built: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = shutil.copytree(built, tmp_path / "zoo")
    shutil.copytree(built.parent / "work", tmp_path / "work")
    said: list[str] = []
    image_zoo(folder, data, log=said.append).run()
    assert said == ["FashionMNIST: there already"]
    before = {path: path.read_bytes() for path in (folder / "agents").rglob("*.*")}
    (folder / "agents" / JUDGE / zoo.CARD).unlink()  # as if stopped before the judge was finished
    for learner in (ImageDiffusion, ImageClassifier):
        monkeypatch.setattr(learner, "learn", pytest.fail)
    image_zoo(folder, data, log=said.append).run()
    assert "FashionMNIST: building" in said
    assert [path for path, content in before.items() if path.read_bytes() != content] == []


def test_another_seed_is_a_reason_to_build(built: Path, data: Path) -> None:
    assert image_zoo(built, data).entries.finished("reward", "image-reward")
    assert not image_zoo(built, data, seed=2).entries.finished("reward", "image-reward")


def test_the_command(tiny_zoo: Path, data: Path, tmp_path: Path) -> None:
    given = [
        "zoo",
        "build",
        "FashionMNIST",
        "--seed",
        1,
        "--data",
        data,
        "--work",
        tiny_zoo.parent / "work",
        "--n-episodes",
        3,
        "--date",
        "2026-01-03",
        "--out",
        tmp_path,
    ]
    assert "steered-2: harmful_share" in run(*given).output
    cards = {card["name"]: card for card in zoo.entries(tmp_path)}
    assert set(cards) == set(NAMES) and cards[BASE]["date"] == "2026-01-03"
    assert [row["n"] for row in cards[BASE]["results"]] == [3, 3]
    given[given.index(data)] = tmp_path / "gone"
    assert "gone: no images" in run(*given, "--force", code=1).stderr
    assert {card["name"] for card in zoo.entries(tmp_path)} == set(NAMES)


# ---------------------------------------------------------------------- the demo


def test_the_demo_counts_and_scores(tiny_zoo: Path, data: Path, tmp_path: Path) -> None:
    given = ["images", "demo", "--out", tmp_path / "demo", "--data", data, "--n", 5, "--seed", 3]
    output = run(*given).output
    files = {path.name: path.read_bytes() for path in (tmp_path / "demo").iterdir()}
    assert set(files) == {"results.json", "samples.png", "index.html"}
    rows = {(row["agent"], row["metric"]): row for row in read_results(tmp_path / "demo")}
    for agent in ("base", "steered-1", "steered-2", "expert"):
        assert rows[agent, "harmful_share"]["n"] == rows[agent, "judge_confidence"]["n"] == 5
    real, reward = load_images(data, "test", 8), ImageReward.load(zoo.find(REWARD))
    assert rows["rho", "auroc"]["mean"] == auroc(reward.predict(real.images), real.labels != 1).value
    assert "ρ has scored 32 held-out real images" in output and "Everything is in" in output
    with Image.open(tmp_path / "demo" / "samples.png") as picture:
        assert picture.width > 3 * picture.height
    page = files["index.html"].decode()
    assert "base steered, scale 2" in page and "unwanted" in page
    run(*given)  # over the first
    assert json.loads(files["results.json"]) == read_results(tmp_path / "demo")


def test_without_real_images_the_base_s_own_samples_are_scored(
    tiny_zoo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rrpolicy.images.data.FASHION_MNIST_FOLDER", tmp_path / "gone")
    said: list[str] = []
    ImagesDemo(tmp_path / "demo", n_samples=6, log=said.append).run()
    text = "\n".join(said)
    assert "Fashion-MNIST is not installed" in text and "ρ has scored 6 samples of the base, labelled by" in text
    rows = {(row["agent"], row["metric"]) for row in read_results(tmp_path / "demo")}
    labels = ImageClassifier.load(zoo.find(JUDGE)).predict(
        sample_images(ImageDiffusion.load(zoo.find(BASE)), 6, n_sampling_steps=2)
    )
    repeated = {FASHION_MNIST_CLASSES[label] for label in labels if (labels == label).sum() > 1}
    assert {metric for agent, metric in rows if agent == "rho"} - {"auroc"} == {f"mean_{name}" for name in repeated}


def test_the_demo_command_takes_images_like_an_environment(
    tiny_zoo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rrpolicy.images.data.FASHION_MNIST_FOLDER", tmp_path / "gone")
    run("demo", "--env", "FashionMNIST", "--n-episodes", 5, "--out", tmp_path / "demo")
    assert {"results.json", "samples.png", "index.html"} <= {path.name for path in (tmp_path / "demo").iterdir()}
    refused = run("demo", "--env", "FashionMNIST", "--goal", "1,1", "--out", tmp_path, code=1)
    assert "--recipe, --fast and --html are not" in refused.stderr


def test_one_kind_of_images_has_no_auroc(data: Path) -> None:
    images = load_images(data, "test", 8)
    assert [row["metric"] for row in experiments.separation_rows(np.arange(32.0), images, ["sneaker"])] == [
        "mean_t-shirt",
        "mean_trouser",
        "mean_pullover",
        "mean_dress",
    ]
    assert experiments.separation_rows(np.arange(32.0), images, REMOVED)[0]["metric"] == "auroc"


def test_faults_of_the_demo_are_one_line_and_remove_nothing(
    tiny_zoo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "results.json").write_text("[]")
    for name in ("cats", "dogs"):
        for i in range(5):
            (tmp_path / "pets" / name).mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.full((8, 8), i, np.uint8)).save(tmp_path / "pets" / name / f"{i}.png")

    def fault(*more: object) -> str:
        lines = run("images", "demo", "--out", tmp_path, *more, code=1).stderr.splitlines()
        assert len(lines) == 1 and (tmp_path / "results.json").read_text() == "[]"
        return lines[0]

    assert "data has the classes cats, dogs, the classifier has t-shirt" in fault("--data", tmp_path / "pets")
    assert "gone: no images" in fault("--data", tmp_path / "gone")
    monkeypatch.setitem(sys.modules, "diffusers", None)
    assert "pip install 'rrpolicy[images]'" in fault()
    monkeypatch.setenv(zoo.FOLDER_VARIABLE, str(tmp_path))
    monkeypatch.setenv(RECIPES_VARIABLE, str(tmp_path / "recipes"))
    assert "'FashionMNIST/base' is neither a file nor a name in the zoo" in fault()
    with pytest.raises(ValueError, match="n_samples is 0"):
        ImagesDemo(tmp_path, n_samples=0).run()


# ---------------------------------------------------------------------- grids


def test_a_grid_has_every_image_in_its_place() -> None:
    images = np.arange(3 * 4, dtype=np.uint8).reshape(3, 2, 2, 1)
    grid = tiled(images, n_columns=2, framed=[False, True, False])
    assert grid.shape == (8, 8, 3) and grid.dtype == np.uint8
    for i, (row, column) in enumerate([(0, 0), (0, 1), (1, 0)]):
        cell = grid[4 * row : 4 * row + 4, 4 * column : 4 * column + 4]
        np.testing.assert_array_equal(cell[1:3, 1:3], images[i].repeat(3, axis=-1))
        assert tuple(cell[0, 0]) == tuple(cell[3, 1]) == (FRAME if i == 1 else PAPER)
    assert (grid[4:, 4:] == PAPER).all()
    with pytest.raises(ValueError, match=r"images are float64 \(1, 2, 2, 1\), wanted uint8"):
        tiled(np.zeros((1, 2, 2, 1)))
