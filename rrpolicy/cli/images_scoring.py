"""Scoring of many pictures for the image commands: a few at a time; unreadable files are left out and listed."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor
from tqdm.auto import tqdm

from rrpolicy import zoo
from rrpolicy.cli.program import echo
from rrpolicy.common.faults import FileFault
from rrpolicy.common.files import atomic_write
from rrpolicy.common.typing import Array
from rrpolicy.diffusion.score_model import ScoreModel
from rrpolicy.evaluation import Row, result_row
from rrpolicy.images.audited import UNLABELLED
from rrpolicy.images.folders import Found, LeftOut, Part, Picture, counted, path_text, read_in_parts
from rrpolicy.images.null import NOTHING_BEYOND, Null
from rrpolicy.images.reward import ImageReward
from rrpolicy.images.sampling import ImageModel

UNLIKE = "unlike"  # the flag of pictures that neither model would make
TOLD = 64  # pictures, and files left out, that are printed


class Scored(NamedTuple):
    """
    The pictures that could be read, ρ (k, n) for each set of levels, what was left out, and which pictures are unlike
    anything that the two models make, bool (n,).
    """

    pictures: list[Picture]
    rho: list[Array]
    left_out: list[LeftOut]
    unlike: Array


def scores_of(
    reward: ImageReward,
    found: Found,
    asked: Sequence[tuple[Sequence[int], int]],
    resize: bool,
    strict: bool,
    progress: bool,
    denoiser: ScoreModel | None = None,
) -> Scored:
    """
    Score pictures a few at a time, of which nothing but their scores is kept.

    :param asked: levels (k,) and the number of noised copies at each
    :param denoiser: the base, whose denoising errors are compared with those that the reward keeps
    """
    pictures, left_out, unlike = [], list(found.left_out), [np.zeros(0, dtype=bool)]
    parts: list[list[Array]] = [[] for _ in asked]
    with tqdm(total=len(found.pictures), disable=not progress, desc="pictures", unit="picture") as bar:
        for part in read_in_parts(found.pictures, reward.codec.image_shape, resize, strict):
            if part.pictures:
                events, digests = _encoded(reward, part)
                for kept, (levels, n_noisings) in zip(parts, asked, strict=True):
                    kept.append(reward.of_events(events, levels, n_noisings, digests=digests))
                unlike.append(_unlike(reward, events, digests, denoiser))
            pictures += part.pictures
            left_out += part.left_out
            bar.update(len(part.pictures) + len(part.left_out))
    return Scored(pictures, [np.concatenate(kept, axis=1) for kept in parts], left_out, np.concatenate(unlike))


def _unlike(reward: ImageReward, events: Tensor, digests: Sequence[bytes], denoiser: ScoreModel | None) -> Array:
    support = reward.support
    if support is None:
        return np.zeros(len(events), bool)
    found = support.unlike(events, reward.codec)
    if denoiser is not None and support.errors is not None:
        found |= support.errors.unlike(denoiser, events, digests)
    return found


def denoiser_of(reward: ImageReward, card: Mapping[str, Any], model: ImageModel) -> ScoreModel | None:
    """
    The model that flags pictures by their denoising error: the given one without prompts, if it is the recorded base.

    :param card: that of the reward's archive, which has the digests of the base
    :return: None, after a printed line, for another model, or a reward that keeps no errors
    """
    pipeline = getattr(model, "pipeline", None)
    if reward.support is None or reward.support.errors is None:
        echo("pictures are flagged by statistics alone: the reward keeps no denoising errors of samples")
        return None
    recording = card.get("recording")
    digests = recording.get("digests") if isinstance(recording, Mapping) else None
    wanted = digests.get("base") if isinstance(digests, Mapping) else None
    mine = getattr(model if pipeline is None else pipeline, "digests", {})
    if not isinstance(wanted, Mapping) or set(map(str, wanted.values())) != set(mine.values()):
        echo("pictures are flagged by statistics alone: the model given is not the recorded base")
        return None
    return model if pipeline is None else pipeline.prompted("", 1.0)


def null_of(
    places: Sequence[Path],
    reward: ImageReward,
    pictures: Sequence[Picture],
    resize: bool,
    progress: bool,
    levels: Sequence[int] = (),
) -> Null | None:
    """
    Scores of pictures by rewards between trainings of one model; None without places.

    :param places: archives, and folders of them or of their folders
    :param levels: noise levels to average over; none: the audited reward's own
    :raises FileNotFoundError: for a place without archives
    :raises ValueError: for a reward whose scores cannot be compared with those of the one that is audited
    """
    names, scores, chosen = [], [], levels or [reward.level]
    for path in [path for place in places for path in _archives(place)]:
        other = ImageReward.load(path, device=reward.device, codec=reward.codec)
        if other.in_nats != reward.in_nats:
            raise FileFault(path, f"gives {other.unit}, wanted a null in what the audited reward gives, {reward.unit}")
        if max(chosen) >= other.reward.process.n_diffusion_steps:
            raise FileFault(path, f"has no noise level {max(chosen)}, at which the audited reward scores")
        scored = scores_of(other, Found(list(pictures), [], {}), [(chosen, 0)], resize, True, progress)
        names.append(path_text(path))
        scores.append(scored.rho[0].mean(axis=0))
    return Null(names, np.stack(scores)) if names else None


def _archives(place: Path) -> list[Path]:
    """The reward at a place, or those one or two folders below; checkpoints beside them are none."""
    if not place.is_dir():
        return [zoo.find(str(place))]
    found = sorted({*place.glob("*.zip"), *place.glob("*/reward.zip")} - {*place.glob("checkpoint.zip")})
    if not found:
        raise FileNotFoundError(f"{path_text(place)} holds no rewards (reward.zip, or folders with one)")
    return found


def _encoded(reward: ImageReward, part: Part) -> tuple[Tensor, list[bytes]]:
    """:raises ValueError: when an autoencoder gives NaN, naming the first picture for which it does"""
    try:
        return reward.encode(part.images)
    except ValueError:
        for one, image in zip(part.pictures, part.images, strict=True):
            try:
                reward.codec.encode(image)
            except ValueError as error:
                raise FileFault(path_text(one.path), error) from error
        raise


def echo_left_out(left_out: Sequence[LeftOut], others: Mapping[str, int]) -> None:
    """Print which files were not scored, and why."""
    for one in left_out[:TOLD]:
        echo(f"left out: {path_text(one.path)}: {one.reason}")
    if len(left_out) > TOLD:
        echo(f"left out: {len(left_out) - TOLD:,} more")
    if others:
        echo(f"not looked at, by suffix: {counted(others)}")


def write_left_out(out: Path, left_out: Sequence[LeftOut]) -> None:
    """Write ``left_out.csv``: the path of each file that was not scored, and the reason."""
    write_csv(out / "left_out.csv", ("path", "reason"), ((path_text(one.path), one.reason) for one in left_out))


def write_csv(path: Path, heading: Sequence[str], lines: Iterable[Sequence[object]]) -> None:
    """Write a CSV file atomically: a heading and its lines."""
    with atomic_write(path) as file, open(file, "w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(heading)
        writer.writerows(lines)


def labels_of(pictures: Sequence[Picture], missing: str | None = UNLABELLED) -> list[str | None] | None:
    """The label of each picture, ``missing`` for one without; None when none has one."""
    return [one.label or missing for one in pictures] if any(one.label for one in pictures) else None


def name_below(path: Path, folder: Path) -> str:
    """The path of a file relative to a folder as text; the whole path if it does not lie below the folder."""
    return path_text(path.relative_to(folder) if path.is_relative_to(folder) else path)


def label_rows(scored: Scored, rho: Array) -> list[Row]:
    """Mean ρ of each label, best first, without the pictures that are flagged."""
    labels: dict[str, list[float]] = {}
    for one, value, flagged in zip(scored.pictures, rho, scored.unlike, strict=True):
        if not flagged:
            labels.setdefault(one.label or "pictures", []).append(float(value))
    rows = [result_row(label, "rho", values) for label, values in labels.items()]
    return sorted(rows, key=lambda row: -row["mean"])


def echo_nothing(reward: ImageReward, null: Null | None, rho: Array, kept: Array) -> None:
    """Print that there is nothing to find, where that is known, and the comparison with a null."""
    if reward.nothing:
        echo(reward.nothing)
    if null is not None:
        echo(NOTHING_BEYOND if null.covers(rho, kept) else "rho spreads beyond the null")


def echo_unlike(scored: Scored) -> None:
    """Print how many pictures are flagged."""
    if n := int(scored.unlike.sum()):
        echo(f"{n:,} of {len(scored.unlike):,} pictures are unlike anything the two models make: flagged, not counted")


def write_scores(out: Path, scored: Scored, names: Iterable[str], rho: Array) -> None:
    """Every picture in ``scores.csv``: path, label, ρ, and ``unlike`` where it is flagged."""
    lines = (
        (name, one.label or "", f"{value:.6g}", UNLIKE if flagged else "")
        for name, one, value, flagged in zip(names, scored.pictures, rho, scored.unlike, strict=True)
    )
    write_csv(out / "scores.csv", ("path", "label", "rho", "flags"), lines)
