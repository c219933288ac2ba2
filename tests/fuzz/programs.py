"""Tiny settings for every command that writes, and ways to run one in a process of its own: from a process in which
everything has been imported, which is quick, or as users do."""

from __future__ import annotations

import argparse
import csv
import json
import os
import resource
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from helpers.pipelines import write_codec, write_ddpm
from helpers.recipes import ENV_ID, build_zoo, recipe, toml
from stable_baselines3 import PPO

import rrpolicy.cli  # noqa: F401  before processes are forked
from rrpolicy import __main__ as entry
from rrpolicy import zoo
from rrpolicy.common import folders
from rrpolicy.data.readers import load_dataset
from rrpolicy.experiments.recipes import FOLDER_VARIABLE as RECIPES_VARIABLE
from rrpolicy.images.data import PICTURES
from rrpolicy.rl import on_reward

ROOT = Path(__file__).resolve().parents[2]
BASE, EXPERT, REWARD = (f"{ENV_ID}/{name}" for name in ("base", "expert-3-1", "reward-3-1"))
N_ROWS = 400  # of the data of a SAC run
Arguments = list[object]


@dataclass(frozen=True)
class Job:
    """
    A command with settings.

    :param name: as users would say it
    :param arguments: from the world's folder and the folder for results
    :param again: further arguments of the second start, such as ``--resume``
    :param exact: whether a second start must end up with the same files as an undisturbed run, bit for bit
    :param plain: whether it is quick enough without the changes that :func:`prepare` makes to this process
    """

    name: str
    arguments: Callable[[Path, Path], Arguments]
    again: tuple[str, ...] = ()
    exact: bool = True
    plain: bool = True


def _train(w: Path, out: Path) -> Arguments:
    return [
        "train",
        "--dataset",
        w / "data",
        "--recipe",
        w / "tiny.toml",
        "--total-timesteps",
        120,
        "--checkpoint-freq",
        5,
        "--out",
        out,
        "--no-progress",
    ]


def _extract(w: Path, out: Path) -> Arguments:
    return [
        "extract",
        "--base",
        BASE,
        "--expert",
        EXPERT,
        "--dataset",
        w / "data",
        "--recipe",
        w / "tiny.toml",
        "--out",
        out,
        "--no-progress",
    ]


def _from_training(w: Path, out: Path) -> Arguments:
    return [
        "collect",
        "--from-training",
        "--env",
        "Pendulum-v1",
        "--total-timesteps",
        N_ROWS,
        "--checkpoint-freq",
        200,
        "--out",
        out,
        "--no-progress",
    ]


def _record(w: Path, out: Path) -> Arguments:
    return [
        "images",
        "record",
        "--base",
        w / "base",
        "--expert",
        w / "expert",
        "--n-samples",
        160,
        "--n-noisings",
        2,
        "--n-sampling-steps",
        3,
        "--out",
        out,
        "--no-progress",
    ]


def _images_extract(w: Path, out: Path) -> Arguments:
    return [
        "images",
        "extract",
        "--recording",
        w / "pairs",
        "--total-timesteps",
        40,
        "--batch-size",
        8,
        "--width",
        8,
        "--checkpoint-freq",
        5,
        "--out",
        out,
        "--no-progress",
    ]


JOBS = [
    Job("train", _train),
    Job("train --resume", _train, ("--resume",)),
    Job("extract", _extract),
    Job("collect", lambda w, out: ["collect", "--env", ENV_ID, "--n-transitions", 3000, "--out", out]),
    Job("collect --from-training", _from_training, ("--resume",), exact=False),
    Job("images record", _record),
    Job("images extract --resume", _images_extract, ("--resume",)),
    Job(
        "record-video",
        lambda w, out: ["record-video", BASE, "--n-steps", 40, "--recipe", w / "tiny.toml", "--out", out],
    ),
    Job("enjoy --out", lambda w, out: ["enjoy", BASE, "--n-episodes", 2, "--out", out, "--no-progress"]),
    Job("plot heat-map", lambda w, out: ["plot", "heat-map", REWARD, "--out", out]),
    Job(
        "train-on-reward",
        lambda w, out: [
            "train-on-reward",
            "--true-reward",
            "--env",
            ENV_ID,
            "--goal",
            "3,1",
            "--total-timesteps",
            32,
            "--n-episodes",
            1,
            "--out",
            out,
            "--no-progress",
        ],
        plain=False,
    ),
]
MORE = [  # what is killed no differently from one of the above, but fills disks in a way of its own
    Job("plot learning-curve", lambda w, out: ["plot", "learning-curve", w / "run", "--out", out]),
    Job("images sample", lambda w, out: ["images", "sample", "--model", w / "base", "--n", 40, "--out", out]),
    Job(
        "images score",
        lambda w, out: ["images", "score", w / "pictures", "--reward", w / "reward", "--out", out, "--no-progress"],
    ),
    Job(
        "images audit",
        lambda w, out: ["images", "audit", w / "pictures", "--reward", w / "reward", "--out", out, "--no-progress"],
    ),
    Job(
        "demo",
        lambda w, out: [
            "demo",
            "--env",
            ENV_ID,
            "--goal",
            "3,1",
            "--n-episodes",
            1,
            "--jobs",
            1,
            "--recipe",
            w / "tiny.toml",
            "--out",
            out,
            "--no-progress",
        ],
    ),
]


# ---------------------------------------------------------------------- the world


def prepare(folder: Path) -> Path:
    """Make everything that the commands read, and this process one that can be forked."""
    os.environ[zoo.FOLDER_VARIABLE] = str(folder / "zoo")
    os.environ[RECIPES_VARIABLE] = str(folder / "zoo" / "recipes")
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored by what a shell starts in the background
    quick = on_reward.Settings(PPO, 4, 8, {"n_steps": 2, "batch_size": 8, "n_epochs": 1})
    on_reward.SETTINGS = {"PPO": quick}
    folders.MARGIN = 0  # the disks are smaller than that
    build_zoo(folder / "zoo")
    (folder / "tiny.toml").write_text(toml(recipe(extraction={"total_timesteps": 30})), encoding="utf-8")
    for i, name in enumerate(("base", "expert")):
        write_ddpm(folder / name, i, channels=4, size=4)
        write_codec(folder / name, shape=[1, 8, 8], unshuffle=2)
    jobs = {job.name: job for job in (*JOBS, *MORE)}
    for name, out in (
        ("collect", "data"),
        ("train", "run"),
        ("images record", "pairs"),
        ("images extract --resume", "reward"),
        ("images sample", "pictures"),
    ):
        done = Forked(jobs[name].arguments(folder, folder / out), folder / "log").wait()
        if done:
            raise RuntimeError(f"{name} ended with {done}: {(folder / 'log').read_text()}")
    return folder


# ---------------------------------------------------------------------- processes


class Forked:
    """
    A copy of this process, in which everything has been imported, as the program.

    :param log: gets what it prints
    :param limit: bytes that a file may have; writing more fails, as it does on a full disk
    """

    def __init__(self, arguments: Arguments, log: Path, limit: int | None = None) -> None:
        self._log = log
        self._printed, printing = os.pipe()  # which has no limit, and room for what is printed
        sys.stdout.flush()
        self.pid = os.fork()
        if self.pid:
            os.close(printing)
            return
        code = 70
        try:
            os.dup2(printing, 1)
            os.dup2(printing, 2)
            sys.stdout, sys.stderr = (os.fdopen(os.dup(number), "w", buffering=1) for number in (1, 2))
            if limit is not None:
                resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
            sys.argv = ["rrpolicy", *map(str, arguments)]
            entry.main()
        except SystemExit as ended:
            code = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
        except BaseException:
            sys.excepthook(*sys.exc_info())
        finally:
            os._exit(code)

    def kill(self, number: int) -> None:
        os.kill(self.pid, number)

    def wait(self, seconds: float = 120.0) -> int | None:
        """Exit code, negative for a signal; None when it goes on for longer, and then it is killed."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self._keep_log()
                return os.waitstatus_to_exitcode(status)
            time.sleep(0.005)
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)
        self._keep_log()
        return None

    def _keep_log(self) -> None:
        os.set_blocking(self._printed, False)  # a process that it has started may outlive it
        with open(self._printed, "rb") as printed:
            self._log.write_bytes(printed.read() or b"")


class Started:
    """The program as users start it."""

    def __init__(self, arguments: Arguments, log: Path) -> None:
        command = [sys.executable, "-m", "rrpolicy", *map(str, arguments)]
        with open(log, "wb") as file:
            self._process = subprocess.Popen(command, stdout=file, stderr=file, cwd=ROOT)

    def kill(self, number: int) -> None:
        self._process.send_signal(number)

    def wait(self, seconds: float = 120.0) -> int | None:
        """As :meth:`Forked.wait`."""
        try:
            return self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
            return None


# ---------------------------------------------------------------------- results


def leftovers(folder: Path) -> list[str]:
    """Hidden and temporary files and folders."""
    if not folder.exists():
        return []
    return sorted(
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if path.name.startswith((".", "tmp")) or "unfinished" in path.name
    )


def content(folder: Path) -> dict[str, Any]:
    """What a command has left, but for clocks and temporary names: by name, whatever must be equal."""
    found: dict[str, Any] = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        name = path.relative_to(folder).as_posix()
        if name.endswith("results.json"):
            rows = json.loads(path.read_text())
            found[name] = [row for row in rows if "seconds" not in row["metric"]]
        elif name.endswith("progress.csv"):
            with open(path, newline="") as file:
                found[name] = [
                    {
                        key: value
                        for key, value in row.items()
                        if "second" not in key and "fps" not in key and "elapsed" not in key
                    }
                    for row in csv.DictReader(file)
                ]
        elif path.suffix == ".hdf5" or path.name == "metadata.json" or "tfevents" in name:
            continue
        else:
            found[name] = path.read_bytes()
    if (folder / "metadata.json").exists():
        data = load_dataset(folder)
        found["data"] = [data.observations.tobytes(), data.actions.tobytes(), data.episode_lengths.tobytes()]
    return found


def damage(folder: Path) -> list[str]:
    """Files that cannot be read as what their names say."""
    bad = []
    for path in folder.rglob("*"):
        try:
            if path.suffix == ".zip":
                with zipfile.ZipFile(path) as archive:
                    bad += [path.name] if archive.testzip() else []
            elif path.suffix == ".json":
                json.loads(path.read_text())
            elif path.suffix in PICTURES and path.stat().st_size == 0:
                bad.append(path.name)
        except (OSError, ValueError, zipfile.BadZipFile):
            bad.append(path.name)
    if (folder / "metadata.json").exists() and not np.isfinite(load_dataset(folder).observations).all():
        bad.append("metadata.json")
    return bad


# ---------------------------------------------------------------------- campaigns


def read_options(
    name: str, about: str | None, jobs: Sequence[Job], n: int, words: str, arguments: list[str] | None
) -> argparse.Namespace:
    """
    The options of a campaign: ``n``, ``seed`` and ``jobs``.

    :param name: of its module
    :param jobs: all that it has
    :param n: how often something is done unless told
    :param words: what is done so often
    """
    parser = argparse.ArgumentParser(prog=f"python -m tests.fuzz.{name}", description=about)
    parser.add_argument("--n", type=int, default=n, help=words)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--command", action="append", choices=[job.name for job in jobs], help="one; repeatable")
    options = parser.parse_args(arguments)
    options.jobs = [job for job in jobs if options.command is None or job.name in options.command]
    return options


def print_table(counts: Mapping[tuple[str, str], int], jobs: Sequence[Job], names: Sequence[str]) -> None:
    """A row for each command, a column for each outcome."""
    print(f"{'command':<26}" + "".join(f"{name:>10}" for name in names))
    for job in jobs:
        print(f"{job.name:<26}" + "".join(f"{counts[job.name, name]:>10}" for name in names))
