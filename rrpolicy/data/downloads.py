"""Datasets by name: D4RL's files, whose addresses its own package knows, and Minari's remote store.
A download appears whole or not at all, and without a network, package or such a name there is one clear line."""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import io
import os
import shutil
import sys
import urllib.request
from collections.abc import Iterator
from difflib import get_close_matches
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import minari
from minari.storage.datasets_root_dir import get_dataset_path

from rrpolicy.common.faults import FileFault
from rrpolicy.common.files import atomic_write
from rrpolicy.common.folders import check_space
from rrpolicy.common.messages import printable
from rrpolicy.data.d4rl_digests import published
from rrpolicy.data.hdf5 import open_hdf5

D4RL_PREFIX = "d4rl:"
_TIMEOUT_SECONDS = 30.0
_MOST_BYTES = 8 * 2**30  # D4RL's largest files have about one
_PIECE = 2**20


def download_d4rl(name: str) -> Path:
    """
    The file of one of D4RL's datasets, in D4RL's own folder (``$D4RL_DATASET_DIR``), downloaded when it is not there.

    :param name: such as ``"hopper-medium-replay-v2"``
    :return: HDF5 file
    :raises ValueError: when D4RL is not installed, does not have the name, or the file cannot be fetched
    """
    addresses, folder = _d4rl()
    if name not in addresses:
        near = get_close_matches(name, addresses, n=3) or sorted(addresses)[:3]
        raise ValueError(f"{D4RL_PREFIX}{name}: D4RL has no dataset of this name, it has {', '.join(near)}")
    address = _secure(name, addresses[name])
    path = folder / address.rpartition("/")[2]
    if not path.is_file():
        try:
            with urllib.request.urlopen(address, timeout=_TIMEOUT_SECONDS) as remote, atomic_write(path) as unfinished:
                _receive(remote, address, unfinished)
        except (OSError, http.client.HTTPException) as error:
            fault = printable(error, 160)
            raise ValueError(f"{D4RL_PREFIX}{name}: could not be downloaded from {address}: {fault}") from error
    return path


def download_minari(dataset_id: str) -> None:
    """
    Fetch a dataset into the local Minari root.

    :param dataset_id: such as ``"mujoco/hopper/medium-v0"``
    :raises FileNotFoundError: when it is not local and cannot be fetched, saying why
    """
    folder = get_dataset_path(dataset_id)
    there = folder.exists()
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # Minari reports there, where our results go
            minari.download_dataset(dataset_id)
    except Exception as error:  # the clients of Minari's storages raise any exception
        if not there:  # a part of a dataset would pass for a dataset from then on
            shutil.rmtree(folder, ignore_errors=True)
        fault = printable((str(error).strip() or type(error).__name__).splitlines()[0], 160)
        raise FileNotFoundError(
            f"{dataset_id}: neither a file, nor a folder, nor the id of a local Minari dataset, "
            f"and it could not be downloaded (is there a network?): {fault}"
        ) from error


def _d4rl() -> tuple[dict[str, str], Path]:
    """D4RL's table of addresses, and its folder."""
    try:
        with _without_mujoco_py(), contextlib.redirect_stdout(io.StringIO()):
            from d4rl import infos, offline_env
    except ImportError as error:
        raise ValueError(f"{D4RL_PREFIX} names need the d4rl extra: pip install 'rrpolicy[d4rl]' ({error})") from error
    return dict(infos.DATASET_URLS), Path(offline_env.DATASET_PATH)


@contextlib.contextmanager
def _without_mujoco_py() -> Iterator[None]:
    """While D4RL is imported: the old bindings that it imports raise when they are installed, and it works without."""
    hidden: Any = sys.modules.get("mujoco_py")
    sys.modules["mujoco_py"] = None  # type: ignore[assignment]
    os.environ.setdefault("D4RL_SUPPRESS_IMPORT_ERROR", "1")
    try:
        yield
    finally:
        del sys.modules["mujoco_py"]
        if hidden is not None:
            sys.modules["mujoco_py"] = hidden


def _secure(name: str, address: str) -> str:
    """The address with ``https``, which D4RL's server speaks though D4RL's table says ``http``."""
    scheme, _, rest = address.partition(":")
    if scheme not in ("http", "https", "file"):
        raise ValueError(f"{D4RL_PREFIX}{name}: its address is {printable(address)}, wanted one of https")
    return f"https:{rest}" if scheme == "http" else address


def _receive(remote: Any, address: str, unfinished: Path) -> None:
    """Write what arrives; size and digest are compared where they are known, and it must be a file of data."""
    arrived_from = getattr(remote, "url", None) or address
    if urlsplit(arrived_from).scheme != urlsplit(address).scheme:
        raise OSError(f"the server leads to {arrived_from}, wanted an address of https")
    known, length = published(address), remote.headers.get("Content-Length")
    if length is not None and not length.isdecimal():
        raise OSError(f"the server announces {length!r} bytes")
    wanted = known.size if known else None if length is None else int(length)
    most = _MOST_BYTES if wanted is None else wanted
    if most > _MOST_BYTES:
        raise OSError(f"the server announces {most} bytes, wanted at most {_MOST_BYTES}")
    check_space(unfinished.parent, wanted or 0)
    digest, arrived = hashlib.sha256(), 0
    with open(unfinished, "wb") as file:
        while piece := remote.read(_PIECE):
            arrived += len(piece)
            if arrived > most:
                raise OSError(f"more than {most} bytes arrived")
            digest.update(piece)
            file.write(piece)
    if wanted is not None and arrived != wanted:
        raise OSError(f"{arrived} of {wanted} bytes arrived")
    if known and digest.hexdigest() != known.sha256:
        raise OSError(f"what arrived has the SHA-256 digest {digest.hexdigest()}, wanted {known.sha256}")
    try:
        with open_hdf5(unfinished):
            pass
    except FileFault as error:
        raise OSError("what arrived is not a readable HDF5 file") from error
