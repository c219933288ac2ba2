"""Training pairs on disk: written shard by shard, read a few shards at a time, so that memory stays flat.

Each shard is a function of its number alone and appears whole or not at all, and the manifest comes last: a recording
that was stopped goes on where it was and ends up the same as an uninterrupted one.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import safetensors
import safetensors.torch
import torch
from torch import Tensor
from tqdm.auto import tqdm

from rrpolicy.common.device import CPU
from rrpolicy.common.files import atomic_write, write_json
from rrpolicy.common.jobs import Jobs
from rrpolicy.common.kinds import ManifestFields
from rrpolicy.common.messages import at, printable
from rrpolicy.common.noise import randint
from rrpolicy.common.processes import current
from rrpolicy.common.schema import check_depth, checked, from_json, plain, read_small
from rrpolicy.diffusion.process import DiffusionProcess
from rrpolicy.diffusion.score_model import ScoreModel
from rrpolicy.rewards.targets import Targets

FORMAT = 1
SETTINGS, MANIFEST = "settings.json", "manifest.json"
N_SHARDS_PER_DRAW = 16
MAX_MANIFEST_BYTES = 2**23  # it may hold every prompt
_NEEDED = ("x_t", "t", "eps_difference")
_SAMPLES = ("base_samples", "expert_samples")
_SHARD = re.compile(r"shard-\d{5,9}\.safetensors")
_LEVELS = (torch.int64, torch.int32)
_EVENTS = (torch.float32, torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class Shard:
    """
    What one shard of a recording holds.

    :param pairs: of the two models
    :param samples: clean events of base and expert (n, *event_shape), where they were drawn
    """

    pairs: Targets
    samples: tuple[Tensor, Tensor] | None = None


@dataclass(frozen=True)
class RecordedModel:
    """What is left of a model in its recording: enough to extract a reward, not enough to denoise."""

    process: DiffusionProcess
    event_shape: tuple[int, ...]
    name: str

    def eps(self, x_t: Tensor, t: Tensor) -> Tensor:
        """
        Refuse to predict noise: the model is not there.

        :raises ValueError: always
        """
        raise ValueError("a recording holds predictions of the models, not the models: learn from it, or load them")

    def fingerprint(self) -> str:
        return self.name


@dataclass(frozen=True)
class RecordedPairs:
    """
    A finished recording.

    :param folder: where its shards are
    :param shards: file names and rows of the shards to read
    :param model: the space that both models share
    :param about: how it was recorded, the image codec among it
    """

    folder: Path
    shards: tuple[tuple[str, int], ...]
    model: RecordedModel
    about: dict[str, Any]

    @classmethod
    def open(cls, folder: str | Path) -> Self:
        """
        Open a finished recording.

        :param folder: what :func:`record` has written
        :raises FileNotFoundError: when it is no recording, or not finished
        :raises ValueError: for a damaged manifest
        """
        path = Path(folder) / MANIFEST
        if not path.is_file():
            begun = (Path(folder) / SETTINGS).is_file()
            what = "an unfinished recording: record it again to go on" if begun else "no recording"
            raise FileNotFoundError(f"{folder} holds {what}")
        try:
            manifest = from_json(read_small(path, MAX_MANIFEST_BYTES))
            checked(ManifestFields, manifest, path.name)
            shards = tuple((name, rows) for name, rows in manifest["shards"])
            for name, rows in shards:
                if not (isinstance(name, str) and _SHARD.fullmatch(name) and type(rows) is int and 0 < rows < 2**31):
                    raise ValueError(f"shards must be names of files with rows, got {printable([name, rows])}")
            space = manifest["about"]["space"]
            process = DiffusionProcess(**space["process"])
            model = RecordedModel(process, tuple(space["event_shape"]), space["fingerprint"])
        except (OSError, ValueError) as error:
            raise ValueError(at(path, f"is not a valid manifest: {error}")) from error
        return cls(Path(folder), shards, model, manifest["about"])

    def __len__(self) -> int:
        """Recorded pairs."""
        return sum(rows for _, rows in self.shards)

    def draw(self, n: int, generator: torch.Generator) -> Targets:
        """``n`` pairs, drawn with replacement from a few shards at a time, every pair equally likely."""
        weights = torch.tensor([rows for _, rows in self.shards], dtype=torch.float64)
        chosen = torch.multinomial(
            weights.to(generator.device), min(N_SHARDS_PER_DRAW, n), replacement=True, generator=generator
        )
        drawn = []
        for i, index in enumerate(chosen.tolist()):
            size = n // len(chosen) + (i < n % len(chosen))
            rows = randint(self.shards[index][1], (size,), generator, CPU)
            drawn.append(self.shard(index).rows(rows))
        return Targets.joined(drawn)

    def shard(self, index: int) -> Targets:
        """
        All pairs of one shard.

        :raises ValueError: for a truncated or foreign file, naming it
        """
        name, rows = self.shards[index]
        return read_shard(self.folder / name, rows, self.model)

    def samples(self, n: int = 2048) -> tuple[Tensor, Tensor] | None:
        """
        Clean events of base and expert, up to ``n`` of each, from which the zero of a reward is found.

        :return: (m, *event_shape) of each, normalised; None for a recording that holds none
        :raises ValueError: for a truncated or foreign file, naming it
        """
        parts: list[tuple[Tensor, Tensor]] = []
        for name, _ in self.shards:
            found = _read_samples(self.folder / name, self.model.event_shape)
            if found is None:
                return None
            parts.append(found)
            if sum(len(base) for base, _ in parts) >= n:
                break
        base, expert = (torch.cat(one)[:n] for one in zip(*parts, strict=True))
        return base, expert

    def split(self) -> tuple[RecordedPairs, RecordedPairs]:
        """Shards to learn from, and about a tenth of them held out; of a single shard both halves are that shard."""
        n_held_out = max(len(self.shards) // 10, 1)
        if len(self.shards) == 1:
            return self, self
        # every tenth, since a recording may come in order of its prompts
        held_out = {round(i * len(self.shards) / n_held_out) for i in range(n_held_out)}
        parts = [
            tuple(shard for i, shard in enumerate(self.shards) if (i in held_out) == wanted) for wanted in (False, True)
        ]
        return replace(self, shards=parts[0]), replace(self, shards=parts[1])


# ---------------------------------------------------------------------- writing


def record(
    folder: str | Path,
    model: ScoreModel,
    about: Mapping[str, Any],
    n_shards: int,
    make: Callable[[int], Shard | Targets],
    half: bool = False,
    progress_bar: bool = False,
    jobs: Jobs | None = None,
) -> RecordedPairs:
    """
    Write the shards that are missing, then the manifest.

    :param folder: made when missing; a recording of the same settings that was stopped there goes on
    :param model: gives the space, which both models share
    :param about: JSON values that determine what is recorded
    :param n_shards: how many there are
    :param make: a shard, or its pairs alone, from its number alone
    :param half: store events in half precision
    :param jobs: where shards are made, each by one process; None for this one
    :raises ValueError: when the folder holds a recording with other settings, or for pairs with NaN
    """
    folder = Path(folder)
    space = {
        "process": model.process.to_dict(),
        "event_shape": list(model.event_shape),
        "fingerprint": model.fingerprint(),
    }
    settings = plain({"format": FORMAT, "n_shards": n_shards, "half": half, "about": {**about, "space": space}})
    if (size := len(json.dumps(settings)) + 50 * n_shards) > MAX_MANIFEST_BYTES:
        raise ValueError(f"a manifest of {size} bytes, wanted at most {MAX_MANIFEST_BYTES}: record fewer prompts")
    processes = current()
    if processes.is_main:
        _begin(folder, settings)
    processes.wait()
    maker = _ShardMaker(folder, model.event_shape, make, half)
    missing = [number for number in map(_Number, range(n_shards)) if maker.rows(number) is None]
    processes.wait()  # all have seen what is missing before any of it is made
    silent = not (progress_bar and processes.is_main)
    with tqdm(total=n_shards, disable=silent, desc="shards", unit="shard") as bar:
        bar.update(n_shards - len(missing))
        with closing((jobs or Jobs()).run(maker, missing[processes.rank :: processes.n])) as made:
            for _ in made:
                bar.update(processes.n)
    processes.wait()
    shards = [(maker.path(number).name, maker.rows(number)) for number in map(_Number, range(n_shards))]
    if absent := [name for name, rows in shards if rows is None]:
        raise ValueError(f"{folder} lacks {absent[0]}, which a worker has made: workers must see the same folder")
    if processes.is_main:
        write_json(folder / MANIFEST, {**settings, "shards": shards})
    processes.wait()
    return RecordedPairs.open(folder)


class _Number(int):
    """The number of a shard."""

    def __str__(self) -> str:
        return f"shard {int(self)}"


@dataclass(frozen=True)
class _ShardMaker:
    """How a shard is made and written, in this process or in another one; see :func:`record`."""

    folder: Path
    event_shape: tuple[int, ...]
    make: Callable[[int], Shard | Targets]
    half: bool

    def __call__(self, number: _Number) -> None:
        made = self.make(int(number))
        _write_shard(self.path(number), made if isinstance(made, Shard) else Shard(made), self.half)

    def path(self, number: _Number) -> Path:
        return self.folder / f"shard-{int(number):05d}.safetensors"

    def rows(self, number: _Number) -> int | None:
        """Rows of a shard that is there and whole; None when it has to be made."""
        return _rows_on_disk(self.path(number), self.event_shape)


def _begin(folder: Path, settings: dict[str, Any]) -> None:
    path = folder / SETTINGS
    if not path.is_file():
        write_json(path, settings)
        return
    try:
        found = from_json(read_small(path, MAX_MANIFEST_BYTES))
        check_depth(found, "it")
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} is not valid JSON: {printable(error)}") from error
    if not isinstance(found, dict):
        raise ValueError(f"{path} is a JSON {type(found).__name__}, wanted an object")
    for name, mine, other in _differences(settings, found):
        raise ValueError(
            f"{folder} holds a recording with other settings: {name} is {printable(mine, 60)}, there it was "
            f"{printable(other, 60)}; choose another folder"
        )


def _differences(mine: Any, other: Any, name: str = "") -> Iterator[tuple[str, Any, Any]]:
    """(name, mine, other) of all that differs in two nested mappings."""
    if isinstance(mine, dict) and isinstance(other, dict):
        for key in sorted(set(mine) | set(other)):
            yield from _differences(mine.get(key), other.get(key), f"{name}.{key}" if name else key)
    elif mine != other:
        yield name, mine, other


def _write_shard(path: Path, shard: Shard, half: bool) -> None:
    names = (*_NEEDED, "value", "x0")
    tensors = {name: value for name in names if (value := getattr(shard.pairs, name)) is not None}
    tensors |= dict(zip(_SAMPLES, shard.samples or (), strict=False))
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise ValueError(f"{path.name}: the models' {name} holds NaN or inf; in half precision, try float32")
        if half and name in ("x_t", "eps_difference", "x0", *_SAMPLES):
            tensors[name] = tensor.half()
    content = safetensors.torch.save({name: tensor.cpu().contiguous() for name, tensor in tensors.items()})
    with atomic_write(path) as unfinished:
        unfinished.write_bytes(content)  # save_file would hide why it cannot write


def _rows_on_disk(path: Path, event_shape: tuple[int, ...]) -> int | None:
    """Rows of a shard that is there and whole; None when it has to be made."""
    try:
        if not path.is_file():
            return None
        with safetensors.safe_open(path, framework="pt") as file:
            shapes = {name: tuple(file.get_slice(name).get_shape()) for name in _NEEDED}
    except (OSError, ValueError, safetensors.SafetensorError):
        return None
    rows = math.prod(shapes["t"])
    events = (rows, *event_shape)
    return rows if rows and shapes == {"t": (rows,), "x_t": events, "eps_difference": events} else None


# ---------------------------------------------------------------------- reading


def read_shard(path: Path, n_rows: int, model: RecordedModel) -> Targets:
    """
    Read the pairs of one shard.

    :param n_rows: pairs in it by the manifest
    :param model: whose events and levels they are
    :raises ValueError: for a file that is truncated, foreign, or not as the manifest says
    """
    try:
        if not path.is_file():
            raise FileNotFoundError("no such file")
        tensors = safetensors.torch.load_file(path)
    except (OSError, safetensors.SafetensorError, KeyError, TypeError, ValueError, RuntimeError) as error:
        fault = f"is a truncated, damaged or missing shard ({printable(error, 100)}); record it again"
        raise ValueError(at(path, fault)) from error
    events, n_levels = (n_rows, *model.event_shape), model.process.n_diffusion_steps
    shapes = {"x_t": events, "eps_difference": events, "t": (n_rows,), "value": (n_rows,), "x0": events}
    for name, shape in shapes.items():
        tensor = tensors.get(name)
        if tensor is None and name in _NEEDED:
            raise ValueError(f"{path} lacks {name}")
        if tensor is None:
            continue
        if tuple(tensor.shape) != shape:
            raise ValueError(f"{path}: {name} has shape {tuple(tensor.shape)}, wanted {shape}")
        if tensor.dtype not in (_LEVELS if name == "t" else _EVENTS):
            raise ValueError(f"{path}: {name} is of type {tensor.dtype}, which no recording holds")
        if name != "t" and not bool(torch.isfinite(tensor).all()):
            raise ValueError(f"{path}: {name} holds NaN or infinite values, wanted finite ones; record it again")
    if not 0 <= int(tensors["t"].min()) <= int(tensors["t"].max()) < n_levels:
        raise ValueError(f"{path}: t lies outside 0..{n_levels - 1}")
    x0, value = tensors.get("x0"), tensors.get("value")
    return Targets(
        None if x0 is None else x0.float(),
        tensors["x_t"].float(),
        tensors["t"].long(),
        tensors["eps_difference"].float(),
        None if value is None else value.float(),
    )


def _read_samples(path: Path, event_shape: tuple[int, ...]) -> tuple[Tensor, Tensor] | None:
    """Clean events of one shard; None where it holds none."""
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            if not set(_SAMPLES) <= set(file.keys()):
                return None
            base, expert = (file.get_tensor(name) for name in _SAMPLES)
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, safetensors.SafetensorError) as error:
        fault = f"is a truncated, damaged or missing shard ({printable(error, 100)}); record it again"
        raise ValueError(at(path, fault)) from error
    for name, tensor in zip(_SAMPLES, (base, expert), strict=True):
        if tuple(tensor.shape[1:]) != event_shape or tensor.dtype not in _EVENTS or not len(tensor):
            raise ValueError(f"{path}: {name} is {tensor.dtype} {tuple(tensor.shape)}, wanted events {event_shape}")
        if not bool(torch.isfinite(tensor).all()):
            raise ValueError(f"{path}: {name} holds NaN or infinite values, wanted finite ones; record it again")
    return base.float(), expert.float()
