"""The image commands from two models to an audit, their help, and one line for every fault."""

import csv
import json
import os
import signal
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.pipelines import unet, write_codec, write_ddpm, write_stable_diffusion
from helpers.program import invoke
from PIL import Image

from rrpolicy.cli.images_scoring import scores_of
from rrpolicy.common.folders import sole_use
from rrpolicy.evaluation import read_results
from rrpolicy.images.codec import PixelCodec
from rrpolicy.images.folders import find_pictures
from rrpolicy.images.reward import ImageReward
from rrpolicy.images.unet import UNetScoreModel
from rrpolicy.rewards.recorded import RecordedPairs

QUICK = ("--total-timesteps", 4, "--batch-size", 8, "--width", 8, "--no-progress")


def run(*arguments: object, code: int = 0) -> Any:
    result = invoke(["images", *arguments])
    assert result.exit_code == code, result.output
    return result


def fault(*arguments: object) -> str:
    """What the program says about bad input: one line on stderr, nothing like a traceback."""
    result = run(*arguments, code=1)
    lines = result.stderr.splitlines()
    assert len(lines) == 1 and lines[0].startswith("rrpolicy: error: "), result.stderr
    return lines[0]


def write_pictures(folder: Path, size: int = 8, n: int = 3) -> Path:
    """Dark pictures and bright ones, in a sub-folder each."""
    rng = np.random.default_rng(0)
    for label, low in (("dark", 0), ("bright", 128)):
        (folder / label).mkdir(parents=True, exist_ok=True)
        for i in range(n):
            picture = rng.integers(low, low + 128, (size, size), dtype=np.uint8)
            Image.fromarray(picture).save(folder / label / f"{i}.png")
    return folder


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two unconditional models, their recording and its reward; a pipeline with prompts; pictures."""
    folder = tmp_path_factory.mktemp("world")
    for i, name in enumerate(("base", "expert")):
        write_ddpm(folder / name, i, channels=4, size=4)
        write_codec(folder / name, shape=[1, 8, 8], unshuffle=2)
    write_pictures(folder / "pictures")
    write_stable_diffusion(folder / "sd")
    (folder / "prompts.txt").write_text("a cat\n\na photo of blood\n")
    (folder / "prompts.csv").write_text("id,prompt\n1,a cat\n2,\n3,hate\n")
    run(
        "record",
        "--base",
        folder / "base",
        "--expert",
        folder / "expert",
        "--n-samples",
        12,
        "--n-noisings",
        2,
        "--n-sampling-steps",
        3,
        "--out",
        folder / "pairs",
        "--no-progress",
    )
    run("extract", "--recording", folder / "pairs", "--out", folder / "reward", *QUICK)
    return folder


# ---------------------------------------------------------------------- from models to an audit


def test_a_recording_becomes_a_reward(world: Path) -> None:
    pairs = RecordedPairs.open(world / "pairs")
    assert len(pairs) == 48 and pairs.about["models"] == {
        "base": str(world / "base"),
        "expert": str(world / "expert"),
        "dtype": "float32",
    }
    assert {path.name for path in (world / "reward").iterdir()} == {"reward.zip", "checkpoint.zip", "results.json"}
    assert {row["metric"] for row in read_results(world / "reward")} >= {"r2", "r2_t0-4", "r2_t15-19"}
    reward = ImageReward.load(world / "reward" / "reward.zip")
    assert reward.codec.image_shape == (1, 8, 8) and np.isfinite(reward.predict(np.zeros((1, 8, 8, 1)))).all()


def test_learning_goes_on_where_it_was(world: Path, tmp_path: Path) -> None:
    arguments = ("extract", "--recording", world / "pairs", "--out", tmp_path)
    run(*arguments, "--total-timesteps", 2, "--batch-size", 8, "--width", 8, "--no-progress")
    first = ImageReward.load(tmp_path / "reward.zip").predict(np.zeros((1, 8, 8, 1)))
    run(*arguments, "--resume", *QUICK)
    assert json.loads(_member(tmp_path / "checkpoint.zip"))["config"]["num_timesteps"] == 4
    assert ImageReward.load(tmp_path / "reward.zip").predict(np.zeros((1, 8, 8, 1))) != first


def test_learning_that_was_stopped_before_its_first_checkpoint_begins_anew(world: Path, tmp_path: Path) -> None:
    run("extract", "--recording", world / "pairs", "--out", tmp_path / "new", "--resume", *QUICK)
    for name in ("reward.zip", "checkpoint.zip"):
        assert (tmp_path / "new" / name).read_bytes() == (world / "reward" / name).read_bytes()


@pytest.mark.parametrize("command", ["record", "extract", "sample"])
def test_a_folder_in_use_is_refused(command: str, world: Path, tmp_path: Path) -> None:
    arguments = {
        "record": ("--base", world / "base", "--expert", world / "expert"),
        "extract": ("--recording", world / "pairs"),
        "sample": ("--model", world / "base"),
    }
    with sole_use(tmp_path):
        assert "is in use by another run" in fault(command, *arguments[command], "--out", tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_learning_may_start_from_the_base(world: Path, tmp_path: Path) -> None:
    arguments = ("extract", "--recording", world / "pairs", "--out", tmp_path, "--batch-size", 8, "--no-progress")
    run(*arguments, "--start-from", world / "base", "--total-timesteps", 0)
    started = ImageReward.load(tmp_path / "reward.zip").reward.window.enter.weight
    assert torch.equal(started, UNetScoreModel.from_pretrained(world / "base").unet.conv_in.weight)
    run(*arguments, "--start-from", world / "base", "--total-timesteps", 1)
    run(*arguments, "--resume", "--total-timesteps", 2)
    assert not torch.equal(ImageReward.load(tmp_path / "reward.zip").reward.window.enter.weight, started)
    other = write_ddpm(tmp_path / "other")
    assert "differ in event_shape" in fault(*arguments, "--start-from", other)
    assert (tmp_path / "reward.zip").is_file()  # nothing is lost


def _member(path: Path) -> bytes:
    with zipfile.ZipFile(path) as archive:
        return archive.read("config.json")


def test_pictures_are_scored_by_label(world: Path, tmp_path: Path) -> None:
    result = run(
        "score", world / "pictures", "--reward", world / "reward", "--levels", "0,5", "--out", tmp_path, "--no-progress"
    )
    rows = read_results(tmp_path)
    assert {(row["agent"], row["metric"], row["n"]) for row in rows} == {("dark", "rho", 3), ("bright", "rho", 3)}
    lines = (tmp_path / "scores.csv").read_text().splitlines()
    assert lines[0] == "path,label,rho,flags" and len(lines) == 7 and "bright/0.png,bright," in lines[1]
    assert "bright/0.png" in result.output
    one = run("score", world / "pictures" / "dark" / "1.png", "--reward", world / "reward", "--no-progress").output
    assert "1.png" in one and "pictures" in one


def damaged(folder: Path) -> Path:
    """Pictures in two sub-folders, three that are none, one whose name is not UTF-8, and what is no picture."""
    write_pictures(folder)
    for name, content in (
        ("dark/cut.png", (folder / "dark" / "0.png").read_bytes()[:-60]),
        ("dark/empty.png", b""),
        ("page.png", b"<html>"),
        ("notes.txt", b"x"),
        ("a.avif", b""),
    ):
        (folder / name).write_bytes(content)
    (folder / os.fsdecode(b"caf\xe9.png")).write_bytes((folder / "dark" / "0.png").read_bytes())
    return folder


def test_what_cannot_be_read_is_left_out_of_scores(world: Path, tmp_path: Path) -> None:
    pictures, out = damaged(tmp_path / "pictures"), tmp_path / "out"
    result = run("score", pictures, "--reward", world / "reward", "--out", out, "--no-progress")
    assert {(row["agent"], row["n"]) for row in read_results(out)} == {("dark", 3), ("bright", 3)}
    told = [line for line in result.output.splitlines() if line.startswith(("left out: ", "not looked at"))]
    assert [line.rsplit("/", 1)[-1].split(":")[0] for line in told[:4]] == [
        "caf\\xe9.png",
        "cut.png",
        "empty.png",
        "page.png",
    ]
    assert "the file is empty" in told[2] and told[4:] == ["not looked at, by suffix: 1 .avif, 1 .txt"]
    lines = list(csv.reader((out / "left_out.csv").read_text().splitlines()))
    assert lines[0] == ["path", "reason"] and len(lines) == 5 and lines[1][0].endswith("/caf\\xe9.png")
    assert len((out / "scores.csv").read_text().splitlines()) == 7
    run("score", pictures / "dark" / "0.png", "--reward", world / "reward", "--out", out, "--no-progress")
    assert (out / "left_out.csv").read_text() == "path,reason\n"  # of this run, not of the one before


def test_what_cannot_be_read_stands_on_the_audit_s_page(world: Path, tmp_path: Path) -> None:
    pictures, out = damaged(tmp_path / "pictures"), tmp_path / "out"
    result = run(
        "audit",
        pictures,
        "--reward",
        world / "reward",
        "--unwanted",
        "dark",
        "--levels",
        "0,3",
        "--out",
        out,
        "--no-progress",
    )
    page = (out / "index.html").read_text()
    rows = page.split('<h2 id="left-out">')[1]
    assert "4 files that could not be read" in rows and "Not looked at, by suffix: 1 .avif, 1 .txt." in rows
    for name in ("caf\\xe9.png", "dark/cut.png", "dark/empty.png", "page.png"):
        assert f'<th scope="row">{name}</th>' in rows
    assert "left out: " in result.output and len((out / "left_out.csv").read_text().splitlines()) == 5
    assert {(row["agent"], row["metric"]) for row in read_results(out)} >= {("dark", "rho"), ("wanted", "auroc_t3")}


def test_a_label_of_which_nothing_can_be_read(world: Path, tmp_path: Path) -> None:
    pictures = write_pictures(tmp_path / "pictures")
    for path in (pictures / "dark").iterdir():
        path.write_bytes(b"")
    run(
        "audit",
        pictures,
        "--reward",
        world / "reward",
        "--unwanted",
        "dark",
        "--levels",
        "0",
        "--out",
        tmp_path,
        "--no-progress",
    )
    assert [row["metric"] for row in read_results(tmp_path)] == ["rho"]
    assert "dark/1.png" in (tmp_path / "index.html").read_text()


@pytest.mark.parametrize("command", ["score", "audit"])
def test_strict_refuses_the_first_that_cannot_be_read(command: str, world: Path, tmp_path: Path) -> None:
    pictures, out = damaged(tmp_path / "pictures"), tmp_path / "out"
    options = ("--reward", world / "reward", "--strict", "--out", out, "--no-progress")
    assert "xe9.png: the name of this picture is not UTF-8" in fault(command, pictures, *options)
    next(pictures.glob("caf*")).unlink()
    assert "cut.png: is not a picture that can be read" in fault(command, pictures, *options)
    assert not out.exists()
    run(command, write_pictures(tmp_path / "whole"), *options)


@pytest.mark.parametrize("command", ["score", "audit"])
def test_nan_of_an_encoder_names_the_file(
    command: str, world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encode = PixelCodec.encode

    def overflowing(codec: PixelCodec, images: Any) -> torch.Tensor:
        events = encode(codec, images)
        if (events.mean(dim=(1, 2, 3)) > 0.98).any():
            raise ValueError("the encoder of the autoencoder gives NaN")
        return events

    pictures = write_pictures(tmp_path / "pictures")
    Image.new("L", (8, 8), 255).save(pictures / "bright" / "white.png")
    monkeypatch.setattr(PixelCodec, "encode", overflowing)
    said = fault(command, pictures, "--reward", world / "reward", "--out", tmp_path / "out", "--no-progress")
    assert "bright/white.png: the encoder of the autoencoder gives NaN" in said


def test_memory_does_not_grow_with_the_number_of_pictures(world: Path, tmp_path: Path) -> None:
    Image.new("L", (64, 64)).save(tmp_path / "0.png")
    for i in range(1, 640):
        os.link(tmp_path / "0.png", tmp_path / f"{i}.png")
    found = find_pictures([tmp_path])
    reward = ImageReward.load(world / "reward" / "reward.zip")
    reward.codec, reward.reward = PixelCodec((1, 64, 64), 2), lambda x_t, t: x_t.mean(dim=(1, 2, 3))
    reward.reward.process = UNetScoreModel.from_pretrained(world / "base").process

    def peak(n: int) -> int:
        some = found._replace(pictures=found.pictures[:n])
        tracemalloc.start()
        try:
            scored = scores_of(reward, some, [([0], 0), ([0, 9], 1)], False, False, progress=False)
            assert scored.rho[0].shape == (1, n) and scored.rho[1].shape == (2, n)
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    peak(64)
    assert peak(640) - peak(128) < 64 * 64 * 64 // 2  # each picture has 4 KiB, and there are 512 more


def test_sampling_and_steering(world: Path, tmp_path: Path) -> None:
    options = ("sample", "--model", world / "base", "--n", 3, "--n-sampling-steps", 3)
    run(*options, "--out", tmp_path / "base")
    run(*options, "--reward", world / "reward", "--scale", 0, "--out", tmp_path / "zero")
    run(*options, "--reward", world / "reward", "--scale", 3, "--out", tmp_path / "steered")
    drawn = {
        name: [np.asarray(Image.open(path)) for path in sorted((tmp_path / name).glob("*.png"))]
        for name in ("base", "zero", "steered")
    }
    assert [len(pictures) for pictures in drawn.values()] == [3, 3, 3] and drawn["base"][0].shape == (8, 8)
    assert np.array_equal(drawn["base"], drawn["zero"])  # the same noise
    assert [row["n"] for row in read_results(tmp_path / "steered")] == [3]


def test_an_audit_is_one_page(world: Path, tmp_path: Path) -> None:
    run(
        "audit",
        world / "pictures",
        "--reward",
        world / "reward",
        "--unwanted",
        "dark",
        "--model",
        world / "base",
        "--n",
        2,
        "--levels",
        "0,7",
        "--scales",
        "0,1",
        "--out",
        tmp_path,
        "--no-progress",
    )
    rows = {(row["agent"], row["metric"]): row for row in read_results(tmp_path)}
    assert {("dark", "rho"), ("bright", "rho"), ("wanted", "auroc"), ("wanted", "auroc_t7")} <= set(rows)
    page = (tmp_path / "index.html").read_text()
    assert "model alone" in page and "scale 1" in page and "bright/2.png" in page
    run(
        "audit",
        write_pictures(tmp_path / "large", 12) / "dark",
        "--reward",
        world / "reward",
        "--resize",
        "--out",
        tmp_path / "plain",
        "--no-progress",
    )
    assert [row["agent"] for row in read_results(tmp_path / "plain")] == ["pictures"]


def test_prompts_go_all_the_way(world: Path, tmp_path: Path) -> None:
    pipeline, prompts = world / "sd", world / "prompts.txt"
    run(
        "record",
        "--base",
        pipeline,
        "--safety",
        "max",
        "--prompts",
        prompts,
        "--n-sampling-steps",
        3,
        "--n-noisings",
        2,
        "--half",
        "--out",
        tmp_path / "pairs",
        "--no-progress",
    )
    assert RecordedPairs.open(tmp_path / "pairs").about["prompts"] == ["a cat", "a photo of blood"]
    run("extract", "--recording", tmp_path / "pairs", "--out", tmp_path / "reward", *QUICK)
    reward = tmp_path / "reward" / "reward.zip"
    run(
        "sample",
        "--model",
        pipeline,
        "--prompts",
        world / "prompts.csv",
        "--n-sampling-steps",
        2,
        "--reward",
        reward,
        "--out",
        tmp_path / "steered",
    )
    drawn = sorted((tmp_path / "steered").glob("*.png"))
    assert len(drawn) == 2 and Image.open(drawn[0]).size == (16, 16)
    run("score", *drawn, "--reward", reward, "--pipeline", pipeline, "--no-progress")
    assert "give the pipeline they belong to" in fault("score", *drawn, "--reward", reward, "--no-progress")


# ---------------------------------------------------------------------- faults


def _pickled(folder: Path) -> Path:
    unet().save_pretrained(folder / "unet", safe_serialization=False)
    return folder


FAULTS: list[tuple[str, Callable[[Path, Path], list[object]], str]] = [
    ("no expert", lambda w, p: ["record", "--base", w / "base", "--out", p], "without --prompts give --expert"),
    ("safety alone", lambda w, p: ["record", "--base", w / "base", "--safety", "weak", "--out", p], "needs prompts"),
    ("neither", lambda w, p: ["record", "--base", w / "sd", "--prompts", w / "prompts.txt", "--out", p], "give either"),
    ("pickles", lambda w, p: ["record", "--base", _pickled(p), "--expert", w / "base", "--out", p], "pickles only"),
    (
        "mismatch",
        lambda w, p: ["record", "--base", w / "base", "--expert", write_ddpm(p), "--out", p],
        "differ in event_shape",
    ),
    (
        "no device",
        lambda w, p: ["sample", "--model", w / "base", "--device", "cuda:77", "--out", p],
        "device is 'cuda:77'",
    ),
    ("no model", lambda w, p: ["sample", "--model", p / "gone", "--out", p], "neither a folder of a diffusers model"),
    ("no prompts", lambda w, p: ["sample", "--model", w / "sd", "--out", p], "text-to-image pipeline: give --prompts"),
    ("empty prompts", lambda w, p: ["sample", "--model", w / "sd", "--prompts", _empty(p), "--out", p], "no prompts:"),
    ("no recording", lambda w, p: ["extract", "--recording", p, "--out", p], "holds no recording"),
    ("no pictures", lambda w, p: ["score", p, "--reward", w / "reward"], "holds no pictures"),
    ("no place", lambda w, p: ["score", p / "gone.png", "--reward", w / "reward"], "neither a picture nor a folder"),
    ("no picture", lambda w, p: ["score", _empty(p), "--reward", w / "reward"], "not a picture that can be read"),
    ("wrong size", lambda w, p: ["score", write_pictures(p, 9), "--reward", w / "reward"], "is 9×9, wanted 8×8"),
    (
        "wrong levels",
        lambda w, p: ["score", w / "pictures", "--reward", w / "reward", "--levels", "a"],
        "--levels is 'a', wanted",
    ),
    (
        "no such level",
        lambda w, p: ["score", w / "pictures", "--reward", w / "reward", "--levels", "99"],
        "wanted some of 0..19",
    ),
    (
        "wrong scales",
        lambda w, p: [
            "audit",
            w / "pictures",
            "--reward",
            w / "reward",
            "--model",
            w / "base",
            "--scales",
            "x",
            "--out",
            p,
        ],
        "--scales is 'x', wanted",
    ),
    (
        "no such label",
        lambda w, p: ["audit", w / "pictures", "--reward", w / "reward", "--unwanted", "grey", "--out", p],
        "--unwanted grey is no label",
    ),
    (
        "another reward",
        lambda w, p: ["score", w / "pictures", "--reward", w / "reward" / "checkpoint.zip"],
        "holds a 'extractor', wanted 'image-reward'",
    ),
]


def _empty(folder: Path) -> Path:
    (folder / "empty.png").write_text("\n")
    return folder / "empty.png"


@pytest.mark.parametrize(("arguments", "said"), [entry[1:] for entry in FAULTS], ids=[entry[0] for entry in FAULTS])
def test_bad_input_is_one_line(
    arguments: Callable[[Path, Path], list[object]], said: str, world: Path, tmp_path: Path
) -> None:
    command, *rest = arguments(world, tmp_path)
    quiet = [] if command == "sample" else ["--no-progress"]
    assert said in fault(command, *rest, *quiet)


def test_a_recording_that_is_stopped_goes_on(world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = (
        "record",
        "--base",
        world / "base",
        "--expert",
        world / "expert",
        "--n-samples",
        40,
        "--n-noisings",
        2,
        "--n-sampling-steps",
        3,
        "--out",
        tmp_path,
        "--no-progress",
    )
    with monkeypatch.context() as patch:
        patch.setattr("rrpolicy.images.recording.make_targets", lambda *a: signal.raise_signal(signal.SIGINT))
        assert "stopped by SIGINT; what was finished is kept" in run(*arguments, code=130).stderr
    assert "160 pairs in 2 shards" in run(*arguments).output


@pytest.mark.parametrize("command", ["record", "extract", "score", "sample", "audit", "demo"])
def test_every_command_has_help_with_an_example(command: str) -> None:
    text = run(command, "--help").output
    assert "Example" in text and f"rrpolicy images {command}" in text
