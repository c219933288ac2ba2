"""Packages of the npm registry: what arrives is what the digest says, and only what is wanted is written."""

import base64
import dataclasses
import hashlib
import io
import tarfile
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from rrpolicy.common.npm import REGISTRY, Package, registry

FILES = {"package/dist/one.js": b"let one;", "package/../../evil": b"evil", "package/rest.txt": b"rest"}


def archive() -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w:gz") as written:
        for name, content in FILES.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            written.addfile(member, io.BytesIO(content))
        link = tarfile.TarInfo("package/link.js")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/hostname"
        written.addfile(link)
    return file.getvalue()


CONTENT = archive()
INTEGRITY = f"sha512-{base64.b64encode(hashlib.sha512(CONTENT).digest()).decode()}"
DIGEST = hashlib.sha256(FILES["package/dist/one.js"]).hexdigest()
PACKAGE = Package("mine", "1.2.0", INTEGRITY, len(CONTENT), {"dist/one.js": DIGEST})


@pytest.fixture
def requested(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """A registry on this machine that has one package, and an empty cache: the paths that are asked for."""
    paths: list[str] = []

    class Registry(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            paths.append(self.path)
            there = self.path == "/npm/mine/-/mine-1.2.0.tgz"
            self.send_response(200 if there else 404)
            self.end_headers()
            self.wfile.write(CONTENT if there else b"")

        def log_message(self, *arguments: object) -> None:
            pass

    monkeypatch.setenv("RRPOLICY_CACHE", str(tmp_path / "cache"))
    with ThreadingHTTPServer(("127.0.0.1", 0), Registry) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("npm_config_registry", f"http://127.0.0.1:{server.server_port}/npm")
        yield paths
        server.shutdown()


def test_a_package_is_downloaded_once(tmp_path: Path, requested: list[str]) -> None:
    for _ in range(2):
        (path,) = PACKAGE.fetch().values()
        assert path.read_bytes() == b"let one;"
    assert requested == ["/npm/mine/-/mine-1.2.0.tgz"]
    assert [one.name for one in tmp_path.rglob("*") if one.is_file()] == ["one.js"]
    path.write_bytes(b"damaged")
    assert PACKAGE.fetch()["dist/one.js"].read_bytes() == b"let one;" and len(requested) == 2


def test_what_is_not_the_package_is_refused(tmp_path: Path, requested: list[str]) -> None:
    changes = [
        ({"integrity": INTEGRITY.replace("sha512-", "sha512-A")}, "wanted sha512-A"),
        ({"size": len(CONTENT) - 2}, "has the digest"),
        ({"version": "9.0.0"}, r"mine 9.0.0: could not be downloaded from http.*404"),
        ({"files": {"dist/one.js": "0" * 64}}, "dist/one.js has another digest"),
        ({"files": {"absent.js": DIGEST}}, "absent.js has another digest"),
        ({"files": {"link.js": DIGEST}}, "link.js has another digest"),
    ]
    for change, fault in changes:
        with pytest.raises(ValueError, match=fault):
            dataclasses.replace(PACKAGE, **change).fetch()
    assert not any(one.is_file() for one in tmp_path.rglob("*"))


def test_the_registry_is_npms(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("npm_config_registry", "NPM_CONFIG_REGISTRY", "NPM_CONFIG_USERCONFIG"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert registry() == REGISTRY
    (tmp_path / ".npmrc").write_text("fund=false\nregistry = https://packages.example.org/npm\n")
    assert registry() == "https://packages.example.org/npm/"
    monkeypatch.setenv("NPM_CONFIG_REGISTRY", "http://example.org/")
    assert registry() == "http://example.org/"
    monkeypatch.setenv("NPM_CONFIG_REGISTRY", "file:///etc/")
    with pytest.raises(ValueError, match="npm's registry is file"):
        registry()
