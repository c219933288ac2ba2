"""Targets: data sets, recordings, agents of other libraries, pictures, recipes, and the small texts of the library."""

from __future__ import annotations

import io
import json
import os
import pickle  # to write what must not be read
import shutil
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import gymnasium as gym
import h5py
import numpy as np
import torch
from helpers import idx, recipes
from helpers.agents import DATASET, make_agent
from PIL import Image
from stable_baselines3 import PPO, SAC
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

from fuzz.archives import SMALL, UNET, plays
from fuzz.hdf5 import SECRET, hdf5_file, secret_file
from fuzz.mutate import Mutator, anything, several
from fuzz.pickles import pickle_file, sb3_file
from fuzz.pictures import idx_file, picture, picture_file
from fuzz.target import Target, files_of
from fuzz.tensors import archives, safetensors_file
from fuzz.texts import csv_file, json_file, maze_file, toml_file
from fuzz.zips import zip_file
from rrpolicy import Normalizer, TrajectoryDataset, experiments, zoo
from rrpolicy.data import load_dataset, save_minari
from rrpolicy.diffusion.analytic import GaussianMixtureModel
from rrpolicy.diffusion.process import DiffusionProcess
from rrpolicy.envs.maze import MazeGeometry
from rrpolicy.evaluation import RESULTS_FILE, read_results, table, write_results
from rrpolicy.evaluation.plots import plot_learning_curve
from rrpolicy.experiments import Task
from rrpolicy.experiments.maze2d.artifacts import read_curves, read_map, write_curves
from rrpolicy.experiments.maze2d.spec import MazeUnit
from rrpolicy.experiments.recipes import read_recipe
from rrpolicy.experiments.results import UNIT_DONE, Result, append_unit, read_csv
from rrpolicy.images.codec import PixelCodec
from rrpolicy.images.data import load_images
from rrpolicy.images.folders import find_pictures, read_in_parts
from rrpolicy.images.recording import record_samples
from rrpolicy.images.training import ImageDiffusion
from rrpolicy.images.unet import UNetScoreModel
from rrpolicy.rewards.recorded import RecordedPairs
from rrpolicy.rl.policies import Sb3Agent
from rrpolicy.rl.sb3_files import load_sb3_agent
from rrpolicy.rl.vecnormalize import read_statistics

ENTRY = "Drift-v0/base"

TESTS = Path(__file__).resolve().parents[1]


def text(surgery: Mutator) -> Mutator:
    """Surgery most of the time, else damage to bytes."""
    return partial(several, ((3.0, surgery), (1.0, anything)))


# ---------------------------------------------------------------------- data sets and recordings


def learned_from(data: TrajectoryDataset) -> list[Any]:
    """
    What learning takes from a data set.

    :raises AssertionError: when it holds what stands in the file that no link may reach
    """
    if (data.observations == SECRET).any() or (data.actions == SECRET).any():
        raise AssertionError("the data of another file were read")
    normalizer = Normalizer.fit(data)
    lengths = [len(data.episode(i)["actions"]) for i in range(min(data.n_episodes, 50))]
    return [data.observations, data.actions, lengths, normalizer.observations.offset, normalizer.actions.scale]


def d4rl() -> Target:
    secret_file()

    def write(folder: Path) -> None:
        n = 12
        ends = np.arange(n) % 4 == 3
        with h5py.File(folder / "d.hdf5", "w") as file:
            arrays = {
                "observations": DATASET.observations[:n],
                "actions": DATASET.actions[:n],
                "rewards": np.zeros(n, "f4"),
                "terminals": np.zeros(n, bool),
                "timeouts": ends,
            }
            for name, values in arrays.items():
                file[name] = values

    return Target(
        "d4rl", files_of(write), {"d.hdf5": hdf5_file}, lambda folder: load_dataset(folder / "d.hdf5"), learned_from
    )


def robomimic() -> Target:
    secret_file()

    def write(folder: Path) -> None:
        with h5py.File(folder / "r.hdf5", "w") as file:
            for i in range(2):
                demo, rows = file.create_group(f"data/demo_{i}"), slice(6 * i, 6 * i + 6)
                demo["obs/object"], demo["obs/pose"] = DATASET.observations[rows, :2], DATASET.observations[rows, 2:]
                demo["actions"], demo["rewards"] = DATASET.actions[rows], np.zeros(6, "f4")
                demo["dones"] = np.arange(6) == 5

    return Target(
        "robomimic",
        files_of(write),
        {"r.hdf5": hdf5_file},
        lambda folder: load_dataset(folder / "r.hdf5"),
        learned_from,
    )


def shipped(name: str) -> Target:
    """A folder that a format's own library wrote, kept beside the tests."""
    files = files_of(lambda folder: shutil.copytree(TESTS / "data" / name, folder, dirs_exist_ok=True))
    mutators = {file: text(json_file) if file.endswith(("json", "array")) else anything for file in files}
    return Target(name, files, mutators, load_dataset, learned_from)


def zarr_zip() -> Target:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in shipped("zarr_v3").files.items():
            archive.writestr(name, content)
    mutator: Mutator = partial(several, ((1.0, zip_file), (1.0, anything)))
    return Target(
        "zarr-zip",
        {"d.zip": buffer.getvalue()},
        {"d.zip": mutator},
        lambda folder: load_dataset(folder / "d.zip"),
        learned_from,
    )


def npz() -> Target:
    buffer, n = io.BytesIO(), 12
    np.savez_compressed(
        buffer,
        observations=DATASET.observations[:n],
        actions=DATASET.actions[:n],
        rewards=np.zeros(n),
        terminals=np.arange(n) == 5,
        timeouts=np.arange(n) == 11,
    )
    mutator: Mutator = partial(several, ((1.0, zip_file), (1.0, anything)))
    return Target(
        "npz",
        {"d.npz": buffer.getvalue()},
        {"d.npz": mutator},
        lambda folder: load_dataset(folder / "d.npz"),
        learned_from,
    )


def minari() -> Target:
    secret_file()
    short = TrajectoryDataset.from_arrays(DATASET.observations[:12], DATASET.actions[:12], episode_lengths=[5, 7])
    files = files_of(lambda folder: save_minari(short, folder))
    mutators: dict[str, Mutator] = {"metadata.json": text(json_file), "main_data.hdf5": hdf5_file}
    return Target("minari", files, mutators, load_dataset, learned_from)


def recording() -> Target:
    process = DiffusionProcess(6, "cosine", "eps")
    means = torch.zeros(2, 1, 4, 4)
    models = [GaussianMixtureModel(means + shift, 0.1, torch.tensor([0.5, 0.5]), process) for shift in (0.0, 0.2)]
    options = {"n_samples": 4, "n_noisings": 2, "n_sampling_steps": 2, "shard_size": 4}
    codec = PixelCodec((1, 4, 4))
    files = files_of(lambda folder: record_samples(*models, codec, folder / "r", **options))

    def draw(folder: Path) -> Any:
        pairs = RecordedPairs.open(folder / "r")
        return pairs.draw(4, torch.Generator().manual_seed(0))

    shard = next(name for name in files if name.endswith(".safetensors"))
    mutators: dict[str, Mutator] = {"r/manifest.json": text(json_file), shard: text(safetensors_file)}
    return Target("recording", files, mutators, draw, lambda drawn: [drawn.x_t, drawn.eps_difference, drawn.value])


# ---------------------------------------------------------------------- agents of Stable-Baselines3


def sb3(name: str) -> Target:
    algorithm = {"ppo": PPO, "sac": SAC}[name.removeprefix("sb3-")]
    env = gym.make("Pendulum-v1")
    arguments: dict[str, Any] = {"buffer_size": 1} if algorithm is SAC else {}
    model = algorithm("MlpPolicy", env, policy_kwargs={"net_arch": [4]}, seed=0, device="cpu", **arguments)
    file = f"{name.removeprefix('sb3-')}-Pendulum-v1.zip"

    def load(folder: Path) -> Sb3Agent:
        return load_sb3_agent(folder / file, "Pendulum-v1", env.observation_space, env.action_space)

    files = files_of(lambda folder: model.save(folder / file))
    return Target(
        name,
        files,
        {file: sb3_file(files[file])},
        load,
        lambda agent: agent.predict(np.zeros((2, 3)), deterministic=True)[0],
    )


def statistics() -> Target:
    venv = VecNormalize(DummyVecEnv([lambda: gym.make("Pendulum-v1")]))
    venv.seed(0)
    venv.reset()
    content = pickle.dumps(venv, protocol=4)

    def used(found: Any) -> Any:
        return None if found is None else found.normalize(np.ones((2, *found.mean.shape)))

    return Target(
        "statistics",
        {"vecnormalize.pkl": content},
        {"vecnormalize.pkl": pickle_file},
        lambda folder: read_statistics(folder / "vecnormalize.pkl"),
        used,
    )


# ---------------------------------------------------------------------- pictures and image models


def idx_folder(name: str) -> Target:
    packed = name == "idx-gz"
    files = files_of(lambda folder: idx.write(folder, n_train=4, n_test=2, compressed=packed))
    mutators: dict[str, Mutator] = {name: idx_file for name in files if name.startswith("train")}
    return Target(
        name,
        files,
        mutators,
        lambda folder: load_images(folder, class_names=("a", "b", "c", "d")),
        lambda data: [data.images, data.labels],
    )


def class_folders() -> Target:
    Image.init()  # Pillow imports its formats when it first meets one that it does not know
    files = {f"{part}/{label}/p.png": picture() for part in ("train", "test") for label in ("a", "b")}
    return Target(
        "class-folders",
        files,
        {"train/a/p.png": picture_file},
        lambda folder: load_images(folder, channels=3),
        lambda data: [data.images, data.labels],
    )


def pictures() -> Target:
    Image.init()
    files = {"a.png": picture(), "b/c.jpg": picture("JPEG")}

    def read(folder: Path) -> Any:
        parts = read_in_parts(find_pictures([folder]).pictures, (3, 8, 8), resize=True, strict=True)
        return np.concatenate([part.images for part in parts])

    return Target("pictures", files, {name: picture_file for name in files}, read, lambda images: images)


def unet_folder() -> Target:
    made = ImageDiffusion(PixelCodec((1, 8, 8)), 6, unet_kwargs=UNET)
    files = files_of(made.save_pretrained)

    def used(model: UNetScoreModel) -> Any:
        return model.eps(torch.zeros(1, *model.event_shape), torch.zeros(1, dtype=torch.int64)).shape

    mutators = {name: text(safetensors_file if name.endswith("s") else json_file) for name in files}
    return Target("unet-folder", files, mutators, UNetScoreModel.from_pretrained, used)


# ---------------------------------------------------------------------- the zoo


def zoo_files() -> dict[str, bytes]:
    row = {"agent": "agent", "metric": "success_rate", "mean": 0.5, "ci_low": 0.4, "ci_high": 0.6, "n": 3}
    about = {
        "name": ENTRY,
        "kind": "agent",
        "environment": "Drift-v0",
        "maze": None,
        "goal": [1.0, 2.0],
        "seed": 0,
        "results": [row],
        "date": "2026-01-02",
        "version": "1",
    }

    def write(folder: Path) -> None:
        place = folder / "agents" / ENTRY
        make_agent(**SMALL).save(place / "agent.zip", resumable=False, card=about)
        size = (place / "agent.zip").stat().st_size
        (place / "card.json").write_bytes(json.dumps({**about, "bytes": size}).encode())
        (folder / "recipes").mkdir()
        (folder / "recipes" / "recipes.toml").write_text(recipes.toml(), encoding="utf-8")

    return files_of(write)


def in_zoo(ask: Callable[[], Any]) -> Callable[[Path], Any]:
    """A loader that looks names up in the zoo that the case's folder is."""

    def load(folder: Path) -> Any:
        with mock.patch.dict(os.environ, {zoo.FOLDER_VARIABLE: str(folder)}):
            return ask()

    return load


def zoo_load() -> Target:
    ask = in_zoo(lambda: zoo.load(ENTRY))
    return Target("zoo-load", zoo_files(), {f"agents/{ENTRY}/agent.zip": archives()}, ask, plays)


def zoo_card() -> Target:
    ask = in_zoo(lambda: (zoo.info(ENTRY), zoo.entries(), zoo.table()))
    return Target("zoo-card", zoo_files(), {f"agents/{ENTRY}/card.json": text(json_file)}, ask, lambda cards: None)


def recipe() -> Target:
    task = Task.create(recipes.ENV_ID)

    def built(values: Any) -> list[Any]:
        agent = experiments.new_agent(task, values, 0)
        return [agent.predict(np.zeros((1, 4), np.float32), deterministic=True)[0]]

    return Target(
        "recipe",
        {"recipes.toml": recipes.toml().encode()},
        {"recipes.toml": text(toml_file)},
        lambda folder: read_recipe(folder / "recipes.toml"),
        built,
        temporary=True,
    )


# ---------------------------------------------------------------------- small texts


def maze() -> Target:
    content = b"######\n#..g.#\n#.##.#\n#r...#\n######\n"

    def used(found: MazeGeometry) -> list[Any]:
        cell = found.free_cells[0]
        return [found.cell_to_xy(cell), found.clearance(found.cell_to_xy(cell)), len(found.path(cell, cell))]

    return Target(
        "maze",
        {"maze.txt": content},
        {"maze.txt": text(maze_file)},
        lambda folder: MazeGeometry.parse(folder / "maze.txt"),
        used,
    )


def results_json() -> Target:
    row = {"agent": "base", "metric": "return", "mean": 1.5, "ci_low": 1.0, "ci_high": 2.0, "n": 4}
    files = files_of(lambda folder: write_results([row, {**row, "metric": "success_rate"}], folder))
    return Target("results-json", files, {RESULTS_FILE: text(json_file)}, read_results, lambda rows: len(table(rows)))


def results_csv() -> Target:
    names = ("maze", "goal")
    one = Result("UMaze", "3-1", 0, "", "base", "return", 1.0, 0.5, 1.5, 4, 0.1, "1", "abc")
    done = Result("UMaze", "3-1", 0, "", *UNIT_DONE, 1.0, 1.0, 1.0, 1, 0.1, "1", "abc")
    files = files_of(lambda folder: append_unit(folder / "r.csv", [one, done], names))
    return Target(
        "results-csv",
        files,
        {"r.csv": text(csv_file)},
        lambda folder: read_csv(folder / "r.csv", names),
        lambda results: [result.value for result in results],
    )


def curves() -> Target:
    files = files_of(lambda folder: write_curves(folder / "c.csv", {("PPO", "rho"): np.ones((3, 3))}))
    return Target("curves", files, {"c.csv": text(csv_file)}, lambda folder: read_curves(folder / "c.csv"), dict)


def progress() -> Target:
    content = b"time/total_timesteps,train/loss\n100,0.5\n200,0.25\n300,0.125\n"
    return Target(
        "progress",
        {"progress.csv": content},
        {"progress.csv": text(csv_file)},
        lambda folder: plot_learning_curve(folder),
        lambda figure: None,
    )


def maps() -> Target:
    unit = MazeUnit("umaze", 1, (1.0, 1.0))
    buffer = io.BytesIO()
    np.savez_compressed(buffer, grid=np.zeros((5, 5), np.float16), maximum=np.ones(2))
    mutator: Mutator = partial(several, ((1.0, zip_file), (1.0, anything)))
    return Target(
        "maps",
        {"m.npz": buffer.getvalue()},
        {"m.npz": mutator},
        lambda folder: read_map(folder / "m.npz", unit),
        lambda drawn: drawn.maximum,
    )
