"""Files of packages of the npm registry, whose contents are fixed by digests in the code that wants them.

A package is downloaded where its files are not in the cache yet, compared with its digest, and unpacked by name: no
other member of the archive is written, and no link is followed.
"""

from __future__ import annotations

import base64
import hashlib
import http.client
import io
import os
import tarfile
import urllib.request
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from rrpolicy.common.files import atomic_write
from rrpolicy.common.folders import cache_folder
from rrpolicy.common.messages import printable

REGISTRY = "https://registry.npmjs.org/"
_TIMEOUT_SECONDS = 60.0


@dataclass(frozen=True)
class Package:
    """
    A version of a package.

    :param name: in the registry
    :param version: of it
    :param integrity: of its archive, ``sha512-`` and base64, as the registry and lock files have it
    :param size: of its archive, bytes
    :param files: SHA-256 digests of the files that are wanted, by their paths in the package
    """

    name: str
    version: str
    integrity: str
    size: int
    files: Mapping[str, str]

    def fetch(self) -> dict[str, Path]:
        """
        The wanted files, from the cache or the registry.

        :return: where each is, by its path in the package
        :raises ValueError: when the package cannot be downloaded or is another one than its digest says
        """
        folder = cache_folder() / f"{self.name}-{self.version}"
        places = {name: folder / Path(name).name for name in self.files}
        if not all(_is(place, self.files[name]) for name, place in places.items()):
            for name, content in self._unpacked(self._downloaded()).items():
                with atomic_write(places[name]) as unfinished:
                    unfinished.write_bytes(content)
        return places

    def _downloaded(self) -> bytes:
        address = f"{registry()}{self.name}/-/{self.name.rpartition('/')[2]}-{self.version}.tgz"
        try:
            with urllib.request.urlopen(address, timeout=_TIMEOUT_SECONDS) as remote:
                content: bytes = remote.read(self.size + 1)
        except (OSError, http.client.HTTPException, ValueError) as error:
            fault = printable(error, 160)
            raise ValueError(f"{self.name} {self.version}: could not be downloaded from {address}: {fault}") from error
        found = f"sha512-{base64.b64encode(hashlib.sha512(content).digest()).decode()}"
        if found != self.integrity:
            raise ValueError(
                f"{self.name} {self.version}: what arrived from {address} has the digest {found}, "
                f"wanted {self.integrity}"
            )
        return content

    def _unpacked(self, content: bytes) -> dict[str, bytes]:
        found: dict[str, bytes] = {}
        with tarfile.open(fileobj=io.BytesIO(content), mode="r:gz") as archive:
            for name, digest in self.files.items():
                with suppress(KeyError):  # no such member
                    member = archive.extractfile(f"package/{name}")
                    found[name] = b"" if member is None else member.read()
                if hashlib.sha256(found.get(name, b"")).hexdigest() != digest:
                    raise ValueError(f"{self.name} {self.version}: {name} has another digest than {digest}")
        return found


def registry() -> str:
    """
    Address of the registry, with a slash at its end: npm's variable ``npm_config_registry``, else the line ``registry``
    of the user's ``.npmrc``, else the public one.

    :raises ValueError: for one that is not an address of http or https
    """
    variables = (value for name, value in os.environ.items() if name.lower() == "npm_config_registry" and value)
    address = next(variables, None) or _configured() or REGISTRY
    if not address.startswith(("https://", "http://")):
        raise ValueError(f"npm's registry is {printable(address)}, wanted an address of http or https")
    return f"{address.rstrip('/')}/"


def _configured() -> str | None:
    """The registry of the user's ``.npmrc``; of its other lines nothing is kept."""
    path = Path(os.environ.get("NPM_CONFIG_USERCONFIG") or Path.home() / ".npmrc")
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return None
    pairs = (line.partition("=") for line in lines)
    found = [value.strip().strip("\"'") for name, _, value in pairs if name.strip() == "registry"]
    return found[-1] if found else None


def _is(path: Path, digest: str) -> bool:
    return path.is_file() and hashlib.sha256(path.read_bytes()).hexdigest() == digest
