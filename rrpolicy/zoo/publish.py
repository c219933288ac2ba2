"""Publishing on the Hugging Face hub: one archive, its ONNX file, and a model card made from what it says of itself.

What is uploaded is an archive (safetensors and JSON, no pickle). A name with a commit loads it for ever.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rrpolicy.common.archive import Archive, read_archive
from rrpolicy.common.folders import scratch_folder
from rrpolicy.common.messages import printable
from rrpolicy.common.version import __version__
from rrpolicy.export.session import SUFFIX, GraphFile
from rrpolicy.zoo import hub
from rrpolicy.zoo.index import find, kinds

CARD = "README.md"
PULLED = ("*.zip", f"*{SUFFIX}", CARD, "*.png", "*.mp4")
LICENSE = "mit"
_REPOSITORY = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
_METRICS = {"return": "mean_reward"}  # the hub's names


def push(
    source: str | os.PathLike[str],
    repository: str,
    *,
    onnx: str | os.PathLike[str] | None = None,
    pictures: Sequence[str | os.PathLike[str]] = (),
    license: str = LICENSE,
    private: bool = False,
    message: str | None = None,
) -> str:
    """
    Upload an archive with a model card, as one commit; the repository is made where it is missing.

    :param source: of an agent, a planner, a reward, a policy or an image model: a path, or a name as in ``zoo.load``
    :param repository: ``"owner/name"``
    :param onnx: the same model's ONNX file, to lie beside it
    :param pictures: PNG and MP4 files that the card shows
    :param license: an identifier of the hub's, such as ``"mit"``
    :param private: whether a new repository is private
    :param message: of the commit
    :return: the name by which ``zoo.load`` and ``from_pretrained`` load exactly this, ``"hub:owner/name@commit/file"``
    :raises ValueError: for something that is not published, without the extra ``hub``, or when the hub refuses or
        cannot be reached
    """
    path = find(source)
    archive = read_archive(path, kinds())
    if not _REPOSITORY.fullmatch(repository):
        raise ValueError(f"repository is {printable(repository)!r}, wanted owner/name")
    files: dict[str, Any] = {f"{archive.kind}.zip": path.read_bytes()}
    if onnx is not None:
        GraphFile(onnx, "planner", "policy", "reward")  # what cannot be run is not published
        files[f"{archive.kind}{SUFFIX}"] = Path(onnx).read_bytes()
    for picture in map(Path, pictures):
        if picture.suffix not in (".png", ".mp4") or not picture.is_file():
            raise ValueError(f"{picture}: wanted PNG and MP4 files")
        files[picture.name] = picture.read_bytes()
    with _hub(repository) as library:
        files[CARD] = model_card(archive, repository, sorted(files), license).encode()
        adding = library.CommitOperationAdd
        added = [adding(path_in_repo=name, path_or_fileobj=content) for name, content in files.items()]
        api = library.HfApi(library_name="rrpolicy", library_version=__version__)
        api.create_repo(repository, exist_ok=True, private=private)
        said = message or f"{archive.kind} of rrpolicy {__version__}"
        commit = api.create_commit(repository, added, commit_message=said)
    return f"{hub.PREFIX}{repository}@{commit.oid}/{archive.kind}.zip"


def pull(name: str, out: str | os.PathLike[str]) -> Path:
    """
    Download what :func:`push` uploaded: archive, ONNX file, card, pictures.

    :param name: ``"hub:owner/name"`` or ``"hub:owner/name@revision"``
    :param out: folder, made if missing
    :return: the archive
    :raises ValueError: for another form, a repository without exactly one archive of this library, without the extra
        ``hub``, or when it cannot be downloaded
    """
    text = name.removeprefix(hub.PREFIX)
    repository, _, revision = text.partition("@")
    if not _REPOSITORY.fullmatch(repository) or ".." in text:
        raise ValueError(f"{printable(name)!r} must have the form hub:owner/name[@revision]")
    target = Path(out)
    with scratch_folder(target) as folder, _hub(repository) as library:
        library.snapshot_download(repository, revision=revision or None, allow_patterns=list(PULLED), local_dir=folder)
        found = sorted(folder.glob("*.zip"))
        if len(found) != 1:
            raise ValueError(f"{name}: holds {len(found)} archives, wanted one")
        read_archive(found[0], kinds())
        target.mkdir(parents=True, exist_ok=True)
        for file in folder.iterdir():
            if file.is_file():
                os.replace(file, target / file.name)
    return target / found[0].name


def model_card(archive: Archive, repository: str, files: Sequence[str], license: str = LICENSE) -> str:
    """
    The hub's README of an archive: tags, measured numbers as a model index, and how it is loaded.

    :param archive: whose card holds the numbers
    :param files: that lie beside it
    """
    card, kind = archive.card, archive.kind
    environment = card.get("environment")
    with _hub(repository) as library:
        results = [
            library.EvalResult(
                task_type="reinforcement-learning",
                dataset_type=environment,
                dataset_name=environment,
                metric_type=_METRICS.get(row["metric"], row["metric"]),
                metric_value=row["mean"],
                metric_name=f"{row['agent']}: {row['metric']}, 95 % interval {_interval(row)}",
            )
            for row in card.get("results") or ()
            if environment is not None
        ]
        data = library.ModelCardData(
            library_name="rrpolicy",
            license=license,
            tags=["rrpolicy", "diffusion", "reinforcement-learning", kind, *([environment] if environment else [])],
            model_name=repository.partition("/")[2],
            eval_results=results or None,
        )
    shown = [f"![{name}]({name})" for name in files if name.endswith(".png")]
    shown += [f'<video controls src="{name}"></video>' for name in files if name.endswith(".mp4")]
    facts = {key: value for key, value in card.items() if key != "results" and isinstance(value, str | int | float)}
    lines = [
        f"---\n{data.to_yaml()}\n---\n",
        f"# {repository.partition('/')[2]}\n",
        f"A {kind} of `rrpolicy`{f' for `{environment}`' if environment else ''}.\n",
        f'```python\nfrom rrpolicy import zoo\n\nloaded = zoo.load("{hub.PREFIX}{repository}/{kind}.zip")\n```\n',
        *([_onnx(repository, kind)] if f"{kind}{SUFFIX}" in files else []),
        *(f"{line}\n" for line in shown),
        "| fact | value |\n|---|---|",
        *(f"| {_cell(key)} | {_cell(value)} |" for key, value in sorted(facts.items())),
    ]
    return "\n".join([*lines, *_table(card)]) + "\n"


def _onnx(repository: str, kind: str) -> str:
    return f'Without torch: `rrpolicy.export.load_onnx("{kind}{SUFFIX}")`, the file beside the archive.\n'


def _table(card: Mapping[str, Any]) -> Iterator[str]:
    rows = card.get("results") or ()
    if rows:
        yield "\n| agent | metric | mean | 95 % interval | n |\n|---|---|---|---|---|"
    for row in rows:
        name, metric = _cell(row["agent"]), _cell(row["metric"])
        yield f"| {name} | {metric} | {row['mean']:.4g} | {_interval(row)} | {row['n']} |"


def _interval(row: Mapping[str, Any]) -> str:
    return f"[{row['ci_low']:.4g}, {row['ci_high']:.4g}]"


def _cell(value: Any) -> str:
    """One cell of a Markdown table, in which nothing is markup."""
    return re.sub(r"([|<>`\[\]])", r"\\\1", printable(value))


@contextmanager
def _hub(repository: str) -> Iterator[Any]:
    """
    The hub's library; its errors name the repository.

    :raises ValueError: in place of what the library raises
    """
    try:
        import huggingface_hub
        from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
    except ImportError as error:
        raise ValueError(f"{hub.PREFIX}{repository}: needs the hub extra: pip install 'rrpolicy[hub]'") from error
    try:
        yield huggingface_hub
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise ValueError(f"{hub.PREFIX}{repository}: {printable(error, 200)}") from error
