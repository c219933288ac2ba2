"""What a Minari folder's ``metadata.json`` says, read as data of strangers: no space is built, no environment is named
to anything that could import it, and no number is believed before it is compared with the files."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import minari

from rrpolicy.common.faults import FileFault, regular_size
from rrpolicy.common.fields import is_env_id
from rrpolicy.common.kinds import DatasetFields
from rrpolicy.common.messages import printable
from rrpolicy.common.schema import check_containers, checked, read_small
from rrpolicy.data.minari_spaces import Part, parts_of

METADATA_FILE, MAIN_FILE = "metadata.json", "main_data.hdf5"
OWN_KEY = "rrpolicy"  # our entry in metadata.json
HDF5_FORMAT = "hdf5"
_MOST_BYTES = 8 * 2**20  # of metadata.json: JSON can take twenty times its size in memory
_MOST_LEVELS = 64  # of our own metadata
_DATASET_ID = re.compile(r"[\w./-]{1,200}")
_WANTED_TEXTS = ("observation_space", "action_space", "dataset_id", "minari_version")


@dataclass(frozen=True)
class MinariHead:
    """
    The part of ``metadata.json`` that is used here, checked.

    :param observed: the arrays that make an observation
    :param acted: the arrays that make an action
    :param has_ends: whether the flags of the last rows tell how episodes ended. Our own folders had every episode end
        as truncated until they had an entry that says this
    :param metadata: of the dataset that is read
    """

    n_episodes: int
    data_format: str
    observed: tuple[Part, ...]
    acted: tuple[Part, ...]
    has_rewards: bool
    has_ends: bool
    metadata: dict[str, Any]


def read_head(folder: Path) -> MinariHead:
    """
    Read and check ``metadata.json``.

    :param folder: holds it
    :raises ValueError: naming the folder and the fault
    """
    path = folder / METADATA_FILE
    values = _json(folder, METADATA_FILE, _content(path))
    for key in _WANTED_TEXTS:
        if not isinstance(values.get(key), str):
            raise FileFault(folder, f"{METADATA_FILE} lacks {key!r}, wanted a string")
    refused = "not a Minari dataset that can be read: "
    if values["minari_version"] not in minari.supported_dataset_versions:
        raise FileFault(
            folder,
            f"{refused}minari_version is {_shown(values['minari_version'])}, "
            f"wanted one that Minari {minari.__version__} reads",
        )
    if not isinstance(values.get("data_format"), str):
        raise FileFault(folder, f"{refused}data_format is {_shown(values.get('data_format'))}, wanted {HDF5_FORMAT!r}")
    if not is_dataset_id(values["dataset_id"]):
        raise FileFault(folder, f"dataset_id is {_shown(values['dataset_id'])}, wanted namespace/name-v0")
    n_episodes = values.get("total_episodes")
    if not isinstance(n_episodes, int) or isinstance(n_episodes, bool) or n_episodes < 0:
        raise FileFault(folder, f"total_episodes is {_shown(n_episodes)}, wanted a number of episodes")
    acted, observed = (
        parts_of(folder, name, _json(folder, name, values[name])) for name in ("action_space", "observation_space")
    )
    is_own = isinstance(values.get(OWN_KEY), dict)
    own = values[OWN_KEY] if is_own else {}
    has: dict[str, bool] = {}
    for name, otherwise in (("has_rewards", True), ("has_ends", not is_own)):
        has[name] = own.get(name, otherwise)
        if not isinstance(has[name], bool):
            raise FileFault(folder, f"{name} is {_shown(has[name])}, wanted true or false")
    metadata = _metadata(folder, values, own)
    return MinariHead(n_episodes, values["data_format"], observed, acted, metadata=metadata, **has)


def is_dataset_id(value: object) -> bool:
    """Whether this may be the id of a Minari dataset."""
    return isinstance(value, str) and _DATASET_ID.fullmatch(value) is not None


def check_metadata(place: str | os.PathLike[str], values: Mapping[str, Any], size: int = 0) -> None:
    """
    Check a dataset's metadata. Entries that are used somewhere must have their types; all others are only kept.

    :param place: names the file in messages
    :param values: as JSON gives them
    :param size: characters of that JSON
    :raises ValueError: naming the entry
    """
    if size > _MOST_BYTES // 2:
        raise FileFault(place, f"metadata of {size} characters, wanted at most {_MOST_BYTES // 2}")
    try:
        checked(DatasetFields, dict(values), "metadata", _MOST_LEVELS)
    except ValueError as error:
        raise FileFault(place, error) from None


def _content(path: Path) -> str:
    regular_size(path)  # first: where there is no such file
    try:
        return read_small(path, _MOST_BYTES).decode()
    except UnicodeDecodeError as error:
        raise FileFault(path.parent, f"{path.name} is not valid JSON: {error}") from error
    except (OSError, ValueError) as error:
        raise FileFault(path, error) from error


def _json(folder: Path, name: str, text: str) -> dict[str, Any]:
    try:
        check_containers(text)
        values = json.loads(text)  # not strictly: the bounds of a space may be Infinity
    except (ValueError, RecursionError) as error:
        raise FileFault(folder, f"{name} is not valid JSON: {error}") from error
    if not isinstance(values, dict):
        raise FileFault(folder, f"{name} is a JSON {type(values).__name__}, wanted an object")
    return values


# ---------------------------------------------------------------------- metadata


def _metadata(folder: Path, values: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    kept: dict[str, Any] = {"source": values["dataset_id"], "format": "minari"}
    for key in ("algorithm_name", "description"):
        if (value := values.get(key)) is not None:
            kept[key] = _checked(folder, key, value, isinstance(value, str), "a text")
    for key in ("ref_min_score", "ref_max_score"):
        if (value := values.get(key)) is not None:
            kept[key] = _checked(folder, key, value, _is_finite(value), "a finite number")
    spec = values.get("env_spec")
    if spec is not None:
        _checked(folder, "env_spec", spec, isinstance(spec, str), "a text")
        kept["env_id"] = _json(folder, "env_spec", spec).get("id")
        _check_env_id(folder, kept["env_id"])
    ours = own.get("metadata")
    if isinstance(ours, dict):
        check_metadata(folder, ours)
        kept.update(ours)
    return kept


def _check_env_id(place: str | os.PathLike[str], env_id: object) -> None:
    wanted = "letters, digits and any of _./- up to 100 characters, without a module"
    _checked(place, "environment id", env_id, is_env_id(env_id), wanted)


def _checked(place: str | os.PathLike[str], key: str, value: Any, is_right: bool, wanted: str) -> Any:
    if not is_right:
        shown = value if isinstance(value, str | int | float | None) else type(value).__name__
        raise FileFault(place, f"{key} is {_shown(shown)}, wanted {wanted}")
    return value


def _shown(value: object) -> str:
    return printable(repr(value), 80)


def _is_finite(value: object) -> bool:
    """Whether this is a real number that a float can hold."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return abs(value) < 1e300 if isinstance(value, int) else math.isfinite(value)
