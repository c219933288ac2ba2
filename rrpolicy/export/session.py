"""ONNX files of this library, read and run by ONNX Runtime alone: graphs and the description that stands beside them.

Nothing here imports torch.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np

from rrpolicy.common.arguments import whole
from rrpolicy.common.kinds import CardFields
from rrpolicy.common.messages import at, printable
from rrpolicy.common.schema import check_depth, checked
from rrpolicy.common.typing import Array

SUFFIX = ".onnx"
KEY = "rrpolicy"  # of the description among the file's metadata
FORMAT = 1
NEEDS = "ONNX files need the extra fast: pip install 'rrpolicy[fast]'"
LARGEST = 2**30  # bytes of a file


class GraphFile:
    """
    An exported file, ready to run.

    :param path: that `export_onnx` wrote
    :param kinds: ``"planner"``, ``"policy"`` or ``"reward"``, one of which the file must hold
    :param n_threads: of ONNX Runtime
    :raises FileNotFoundError: when there is no such file
    :raises ValueError: without the extra ``fast``; for a file that is damaged, foreign, of another kind or from a later
        version, naming file and fault
    """

    def __init__(self, path: str | os.PathLike[str], *kinds: str, n_threads: int = 1) -> None:
        file = Path(path)
        if not file.is_file():
            raise FileNotFoundError(f"{file}: no such file")
        if file.stat().st_size > LARGEST:
            raise ValueError(f"{file}: {file.stat().st_size} bytes, wanted at most {LARGEST}")
        self._open(file.read_bytes(), file, kinds, n_threads)  # by its bytes: no other file is read in its name

    @classmethod
    def from_bytes(cls, content: bytes, name: str, kinds: Sequence[str], n_threads: int = 1) -> Self:
        """
        As the constructor, for the content of a file.

        :param name: in place of the path in errors
        """
        made = cls.__new__(cls)
        made._open(content, Path(name), kinds, n_threads)
        return made

    def __reduce__(self) -> tuple[Any, ...]:
        """For workers and copies, each of which has a session of its own."""
        return type(self).from_bytes, self._made_of

    def _open(self, content: bytes, path: Path, kinds: Sequence[str], n_threads: int) -> None:
        self.path = path
        self._made_of = content, str(path), tuple(kinds), n_threads
        whole("n_threads", n_threads, 1)
        self._session, self._options = _session(content, path, n_threads)
        stored = self._session.get_modelmeta().custom_metadata_map.get(KEY)
        if stored is None:
            raise ValueError(f"{self.path}: no file of rrpolicy: its metadata have no entry {KEY!r}")
        self.about: dict[str, Any] = _description(self.path, stored, kinds)
        self._blank = {
            one.name: np.zeros([size if isinstance(size, int) else 0 for size in one.shape], _DTYPES[one.type])
            for one in self._session.get_inputs()
        }
        self._outputs = [one.name for one in self._session.get_outputs()]

    @property
    def card(self) -> dict[str, Any]:
        """What the file says of itself."""
        return dict(self.about.get("card", {}))

    @contextmanager
    def described(self) -> Iterator[None]:
        """
        A block that reads the description, whose faults name the file.

        :raises ValueError: in place of what the block raises for an entry that is missing or wrong
        """
        try:
            yield
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{self.path}: damaged: its description does not hold: {printable(error)}") from error

    def run(self, outputs: list[str], feeds: Mapping[str, Array]) -> list[Array]:
        """
        Compute some outputs, and only the graph that leads to them.

        :param outputs: their names
        :param feeds: the inputs of that graph
        """
        found: list[Array] = self._session.run(outputs, {**self._blank, **feeds}, self._options)
        return found

    def shapes(self, n: int) -> dict[str, tuple[int, ...]]:
        """The shapes of all inputs for a batch of ``n``."""
        return {name: tuple(size or n for size in blank.shape) for name, blank in self._blank.items()}

    def check_graphs(self, inputs: set[str], outputs: set[str]) -> None:
        """
        Compare the file's graphs with what its description needs.

        :raises ValueError: naming the first that is missing
        """
        for what, wanted, found in (("input", inputs, set(self._blank)), ("output", outputs, set(self._outputs))):
            if missing := sorted(wanted - found):
                raise ValueError(f"{self.path}: damaged: the {what} {missing[0]!r} is missing")


@dataclass(frozen=True)
class PlanGraph:
    """
    Plans by the graphs of a file.

    :param file: of a planner
    :param n_rows: known observations of a plan
    :param scale: of guidance, where the graphs have it as an input; None where they do not
    """

    file: GraphFile
    n_rows: int = 1
    scale: float | None = None

    def __call__(self, known: Array, previous: Array | None, noise: Array) -> Array:
        """
        Normalised plans (n_envs, H, D).

        :param known: (n_envs, n_rows, obs_dim), environment units
        :param previous: (n_envs, H, D) what is left of the plans before; None to plan from noise
        :param noise: (n_draws, n_envs, n_candidates, H, D)
        """
        prefix = "" if previous is None else "warm_"
        feeds = {"observation": known if self.n_rows > 1 else known[:, 0], "noise": noise}
        if self.scale is not None:
            feeds["scale"] = np.full(len(known), self.scale, np.float32)
        feeds = {prefix + name: values for name, values in feeds.items()}
        return self.file.run([f"{prefix}window"], feeds if previous is None else {**feeds, "previous": previous})[0]


_DTYPES = {"tensor(float)": np.float32, "tensor(int64)": np.int64}


def _session(content: bytes, path: Path, n_threads: int) -> tuple[Any, Any]:
    try:
        import onnxruntime
    except ImportError as error:
        raise ValueError(f"{path}: {NEEDS}") from error
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = n_threads, 1
    options.log_severity_level = 4
    run = onnxruntime.RunOptions()
    run.only_execute_path_to_fetches = True
    try:
        session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        known = all(one.type in _DTYPES for one in session.get_inputs())
    except Exception as error:  # of onnxruntime's own classes, which it does not export
        raise ValueError(f"{path}: no ONNX file that can be run: {printable(error, 200)}") from error
    if not known:
        raise ValueError(f"{path}: no file of rrpolicy: it has inputs that are neither float32 nor int64")
    return session, run


def _description(path: Path, stored: str, kinds: Sequence[str]) -> dict[str, Any]:
    try:
        about = json.loads(stored)
        found, version = about["kind"], about["format"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"{path}: damaged: its description cannot be read: {printable(error)}") from error
    if version != FORMAT:
        raise ValueError(f"{path}: format {printable(version)}, this version of rrpolicy reads format {FORMAT}")
    if found not in kinds:
        raise ValueError(at(path, f"holds a {printable(found)}, wanted a {' or '.join(kinds)}"))
    try:
        check_depth(about, KEY)
        checked(CardFields, about.get("card", {}), "card")
    except ValueError as error:
        raise ValueError(at(path, f"damaged: {error}")) from error
    description: dict[str, Any] = about
    return description
