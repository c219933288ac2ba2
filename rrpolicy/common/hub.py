"""Single files of Hugging Face repositories, by names that may tell a revision: ``hub:owner/repository@v1/file``.

What arrives is data of strangers, checked like any other file; the revision that was read can be told afterwards.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rrpolicy.common.messages import printable

PREFIX = "hub:"
_NAME = re.compile(r"hub:([\w.-]+)/([\w.-]+)(?:@([\w.-]+))?/([\w.-]+(?:/[\w.-]+)*)")
_SNAPSHOT = re.compile(r"[0-9a-f]{40}")


def download(name: str) -> Path:
    """
    The local copy of one file.

    :param name: ``hub:<owner>/<repository>[@<revision>]/<file>``; a revision is a branch, a tag or a commit; without
        one the newest file is taken
    :raises ValueError: for another form, without the extra ``hub``, or when it cannot be downloaded
    """
    owner, repository, revision, file = _parts(name)
    chosen: dict[str, Any] = {} if revision is None else {"revision": revision}
    with client(name, "could not be downloaded: ") as library:
        return Path(library.hf_hub_download(f"{owner}/{repository}", file, **chosen))


@contextmanager
def client(name: str, fault: str = "") -> Iterator[Any]:
    """
    The library ``huggingface_hub``, whose errors become ours.

    :param name: what is downloaded or published, for errors
    :param fault: stands before what the library says
    :raises ValueError: without the extra ``hub``, and in place of what the library raises
    """
    try:
        import huggingface_hub
        from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
    except ImportError as error:
        raise ValueError(f"{name}: needs the hub extra: pip install 'rrpolicy[hub]'") from error
    try:
        yield huggingface_hub
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise ValueError(f"{name}: {fault}{printable(error, 200)}") from error


def with_revision(name: str | os.PathLike[str]) -> str:
    """
    A name that means the same file for ever, to be loaded and to be written down beside what was made with it.

    :param name: of the hub, whose file is downloaded; any other name is returned as it is
    :return: the name with the commit that it means now, where the download tells it
    """
    text = os.fspath(name)
    if not text.startswith(PREFIX):
        return text
    owner, repository, _, file = _parts(text)
    commits = [part for part in download(text).parts if _SNAPSHOT.fullmatch(part)]
    return f"{PREFIX}{owner}/{repository}@{commits[-1]}/{file}" if commits else text


def _parts(name: str) -> tuple[str, str, str | None, str]:
    found = _NAME.fullmatch(name)
    if found is None or ".." in name:
        raise ValueError(f"{printable(name)!r} must have the form hub:<owner>/<repository>[@<revision>]/<file>")
    return found[1], found[2], found[3], found[4]
