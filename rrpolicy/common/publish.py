"""Publishing on the Hugging Face hub: one archive, its ONNX file, and a model card made from what it says of itself.

What is uploaded is an archive (safetensors and JSON, no pickle). A name with a commit loads it for ever.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Self, TypedDict, Unpack

from rrpolicy.common import hub
from rrpolicy.common.archive import Archive, read_archive
from rrpolicy.common.folders import scratch_folder
from rrpolicy.common.messages import printable
from rrpolicy.common.options import check_options
from rrpolicy.common.version import __version__

CARD = "README.md"
ONNX = ".onnx"
PULLED = ("*.zip", f"*{ONNX}", CARD, "*.png", "*.mp4")
LICENSE = "mit"
_REPOSITORY = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
_METRICS = {"return": "mean_reward"}  # the hub's names


class PushOptions(TypedDict, total=False):
    """
    Keywords of whatever publishes.

    :param onnx: the same model's ONNX file, to lie beside it
    :param pictures: PNG and MP4 files that the card shows
    :param license: an identifier of the hub's; default ``"mit"``
    :param private: whether a new repository is private; default False
    :param message: of the commit
    """

    onnx: str | os.PathLike[str] | None
    pictures: Sequence[str | os.PathLike[str]]
    license: str
    private: bool
    message: str | None


def push(path: Path, repository: str, **options: Unpack[PushOptions]) -> str:
    """
    Upload an archive with a model card, as one commit; the repository is made where it is missing.

    :param path: of the archive
    :param repository: ``"owner/name"``
    :param options: those of `PushOptions`
    :return: the name by which ``zoo.load`` and ``from_pretrained`` load exactly this, ``"hub:owner/name@commit/file"``
    :raises TypeError: for an option that there is not
    :raises ValueError: for something that is no archive, without the extra ``hub``, or when the hub refuses or cannot
        be reached
    """
    check_options("push", options, PushOptions)
    archive, license, message = read_archive(path), options.get("license", LICENSE), options.get("message")
    files: dict[str, Any] = {f"{archive.kind}.zip": path.read_bytes()}
    if not _REPOSITORY.fullmatch(repository):
        raise ValueError(f"repository is {printable(repository)!r}, wanted owner/name")
    if (onnx := options.get("onnx")) is not None:
        files[f"{archive.kind}{ONNX}"] = Path(onnx).read_bytes()
    for picture in map(Path, options.get("pictures", ())):
        if picture.suffix not in (".png", ".mp4") or not picture.is_file():
            raise ValueError(f"{picture}: wanted PNG and MP4 files")
        files[picture.name] = picture.read_bytes()
    with hub.client(f"{hub.PREFIX}{repository}") as library:
        files[CARD] = model_card(archive, repository, sorted(files), license).encode()
        adding = library.CommitOperationAdd
        added = [adding(path_in_repo=name, path_or_fileobj=content) for name, content in files.items()]
        api = library.HfApi(library_name="rrpolicy", library_version=__version__)
        api.create_repo(repository, exist_ok=True, private=options.get("private", False))
        said = message or f"{archive.kind} of rrpolicy {__version__}"
        commit = api.create_commit(repository, added, commit_message=said)
    return f"{hub.PREFIX}{repository}@{commit.oid}/{archive.kind}.zip"


class Published:
    """Base of what has ``save`` and ``load``: the hub's two verbs."""

    def push_to_hub(
        self, repository: str, card: Mapping[str, Any] | None = None, **options: Unpack[PushOptions]
    ) -> str:
        """
        Upload the archive, without what only resuming needs, to the Hugging Face hub; see :func:`push`.

        :param repository: ``"owner/name"``
        :param card: facts about the model
        :param options: those of `PushOptions`
        :return: the name by which :meth:`from_pretrained` loads exactly this
        """
        with TemporaryDirectory(prefix="rrpolicy-") as folder:
            path = Path(folder) / "model.zip"
            self._save_to_share(path, card)
            return push(path, repository, **options)

    def _save_to_share(self, path: Path, card: Mapping[str, Any] | None) -> None:
        saving: Any = self
        saving.save(path, card=card)

    @classmethod
    def from_pretrained(cls, name: str | os.PathLike[str], *args: Any, **kwargs: Any) -> Self:
        """
        Load from the Hugging Face hub, or from a path.

        :param name: ``"hub:owner/name[@revision]/file"``, or a path
        :param args: further arguments of ``load``
        """
        text = os.fspath(name)
        loading: Any = cls
        return loading.load(hub.download(text) if text.startswith(hub.PREFIX) else text, *args, **kwargs)


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
    with scratch_folder(target) as folder, hub.client(f"{hub.PREFIX}{repository}") as library:
        library.snapshot_download(repository, revision=revision or None, allow_patterns=list(PULLED), local_dir=folder)
        found = sorted(folder.glob("*.zip"))
        if len(found) != 1:
            raise ValueError(f"{name}: holds {len(found)} archives, wanted one")
        read_archive(found[0])
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
    with hub.client(f"{hub.PREFIX}{repository}") as library:
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
        *([_onnx(kind)] if f"{kind}{ONNX}" in files else []),
        *(f"{line}\n" for line in shown),
        "| fact | value |\n|---|---|",
        *(f"| {_cell(key)} | {_cell(value)} |" for key, value in sorted(facts.items())),
    ]
    return "\n".join([*lines, *_table(card)]) + "\n"


def _onnx(kind: str) -> str:
    return f'Without torch: `rrpolicy.export.load_onnx("{kind}{ONNX}")`, the file beside the archive.\n'


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
