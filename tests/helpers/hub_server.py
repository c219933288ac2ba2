"""A double of the Hugging Face hub on loopback: the part of its HTTP API that uploading and downloading take.

It keeps repositories in memory, one commit after the other, and answers the real client library.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any
from urllib.parse import unquote

Files = dict[str, bytes]


class Hub(ThreadingHTTPServer):
    """The server and what it holds: for each repository its commits, oldest first."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repositories: dict[str, list[tuple[str, Files]]] = {}

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def at(self, repository: str, revision: str) -> tuple[str, Files] | None:
        """Commit and files of a revision; None for none."""
        commits = self.repositories.get(repository, [])
        if revision == "main":
            return commits[-1] if commits else None
        return next((commit for commit in commits if commit[0] == revision), None)


@contextmanager
def serving() -> Iterator[Hub]:
    """A hub while the block runs."""
    hub = Hub()
    thread = Thread(target=hub.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.shutdown()
        hub.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        """Nothing is logged."""

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        parts = unquote(self.path).strip("/").split("/")
        if parts == ["api", "repos", "create"]:
            given = json.loads(body)
            name = f"{given.get('organization', 'me')}/{given['name']}"
            self.server.repositories.setdefault(name, [])
            return self._json({"url": f"{self.server.url}/{name}"})
        if parts == ["api", "validate-yaml"]:
            return self._json({"errors": [], "warnings": []})
        name = "/".join(parts[2:4])
        if parts[4] == "preupload":
            files = json.loads(body)["files"]
            return self._json({"files": [{**file, "uploadMode": "regular", "shouldIgnore": False} for file in files]})
        commits = self.server.repositories[name]
        files = dict(commits[-1][1]) if commits else {}
        for line in map(json.loads, body.splitlines()):
            if line["key"] == "file":
                files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
        commit = hashlib.sha1(body).hexdigest()
        commits.append((commit, files))
        return self._json(
            {"commitUrl": f"{self.server.url}/{name}/commit/{commit}", "commitOid": commit, "success": True}
        )

    def do_HEAD(self) -> None:
        self._get(body=False)

    def do_GET(self) -> None:
        self._get(body=True)

    def _get(self, body: bool) -> None:
        parts = unquote(self.path.split("?")[0]).strip("/").split("/")
        if parts[0] == "api":
            name, revision = "/".join(parts[2:4]), parts[5] if len(parts) > 5 else "main"
            found = self.server.at(name, revision)
            if found is None:
                return self._missing()
            siblings = [{"rfilename": file} for file in found[1]]
            return self._json({"id": name, "modelId": name, "sha": found[0], "siblings": siblings})
        found = self.server.at("/".join(parts[:2]), parts[3])
        content = None if found is None else found[1].get("/".join(parts[4:]))
        if found is None or content is None:
            return self._missing("EntryNotFound" if found else "RepoNotFound")
        headers = {"X-Repo-Commit": found[0], "ETag": f'"{hashlib.sha1(content).hexdigest()}"'}
        return self._send(200, content if body else b"", "application/octet-stream", headers, len(content))

    def _json(self, values: Any) -> None:
        self._send(200, json.dumps(values).encode(), "application/json", {})

    def _missing(self, code: str = "RepoNotFound") -> None:
        self._send(404, b"", "text/plain", {"X-Error-Code": code, "X-Error-Message": "not found"})

    def _send(self, status: int, body: bytes, kind: str, headers: dict[str, str], length: int | None = None) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Type": kind, "Content-Length": str(length or len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)
