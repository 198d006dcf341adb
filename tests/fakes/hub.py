"""A model hub on loopback: the API's list of a repo and its files with ranges, over a large file's redirect, with faults."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

COMMIT = "c0ffee" + "0" * 34


@dataclass(frozen=True)
class Served:
    """One answered request for a file: where its range began and how many bytes went out."""

    name: str
    start: int
    sent: int
    authorization: str | None


@dataclass
class FakeHub:
    """Owned by the test; the server's threads read it.

    `cuts` holds for a file the offsets at which its next connections break; `damages` how often a file goes out with its
    last byte changed; `refusals` a status for a repo's list (by repo) or a file (by name); `stray` adds entries to the list;
    while `open_gate` is clear, no file goes out; `ignores_ranges` sends whole files always.
    """

    repos: dict[str, dict[str, bytes]] = field(default_factory=dict)
    cuts: dict[str, list[int]] = field(default_factory=dict)
    damages: dict[str, int] = field(default_factory=dict)
    refusals: dict[str, int] = field(default_factory=dict)
    stray: list[dict[str, Any]] = field(default_factory=list)
    ignores_ranges: bool = False
    open_gate: threading.Event = field(default_factory=threading.Event)
    served: list[Served] = field(default_factory=list)
    listed: int = 0
    endpoint: str = ""

    def of(self, name: str) -> list[Served]:
        return [entry for entry in self.served if entry.name == name]


@contextmanager
def running(hub: FakeHub) -> Iterator[FakeHub]:
    """Serve `hub` on a free port until the block ends."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    server.daemon_threads = True
    hub.endpoint = f"http://127.0.0.1:{server.server_port}"
    hub.open_gate.set()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield hub
    finally:
        hub.open_gate.set()
        server.shutdown()
        thread.join()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    hub: FakeHub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        """Silent."""

    def do_GET(self) -> None:
        path = self.path.partition("?")[0].lstrip("/")
        if path.startswith("api/models/"):
            self._list(path.removeprefix("api/models/").partition("/revision/")[0])
        elif "/resolve/" in path:
            repo, _, rest = path.partition("/resolve/")
            self._resolve(repo, rest.partition("/")[2])
        else:
            repo, _, name = path.removeprefix("blobs/").partition("//")
            self._file(repo, name)

    def _answer(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _list(self, repo: str) -> None:
        self.hub.listed += 1
        if status := self.hub.refusals.get(repo):
            self._answer(status, b'{"error": "refused"}')
        elif repo not in self.hub.repos:
            self._answer(404, b'{"error": "Repository not found"}', X_Error_Code="RepoNotFound")
        else:
            siblings = [_entry(name, data) for name, data in self.hub.repos[repo].items()] + self.hub.stray
            body = {"_id": "1", "id": repo, "sha": COMMIT, "siblings": siblings}
            self._answer(200, json.dumps(body).encode(), Content_Type="application/json")

    def _resolve(self, repo: str, name: str) -> None:
        if name.endswith(".safetensors"):  # as the real one: large files lie elsewhere
            self._answer(302, Location=f"{self.hub.endpoint.replace('127.0.0.1', 'localhost')}/blobs/{repo}//{name}")
        else:
            self._file(repo, name)

    def _file(self, repo: str, name: str) -> None:
        hub = self.hub
        if not hub.open_gate.wait(30):
            return
        if status := hub.refusals.get(name):
            self._answer(status)
            return
        data = hub.repos[repo][name]
        if hub.damages.get(name, 0):
            hub.damages[name] -= 1
            data = data[:-1] + bytes([data[-1] ^ 1])
        asked = "" if hub.ignores_ranges else self.headers.get("Range", "")
        start = int(asked.removeprefix("bytes=").partition("-")[0] or 0)
        end = hub.cuts[name].pop(0) if hub.cuts.get(name) else len(data)
        self.send_response(206 if asked else 200)
        if asked:
            self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        self.send_header("Content-Length", str(len(data) - start))
        self.end_headers()
        body = data[start : max(start, end)]
        hub.served.append(Served(name, start, len(body), self.headers.get("Authorization")))
        self.wfile.write(body)
        self.close_connection = end < len(data)


def _entry(name: str, data: bytes) -> dict[str, Any]:
    """As the API tells of a file: git's id of a small one, sha256 of a large one."""
    git = hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()
    entry: dict[str, Any] = {"rfilename": name, "size": len(data), "blobId": git}
    if name.endswith(".safetensors"):
        entry["lfs"] = {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 130}
    return entry
