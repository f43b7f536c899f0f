"""A stand-in for the hub on 127.0.0.1: the few answers that huggingface_hub asks for, over real HTTP, with the faults
that a test orders. Large files are answered with a redirect to another port, as the hub does with its storage."""

from __future__ import annotations

import hashlib
import json
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

REPO = "someone/tiny-moe"
COMMIT = "0123456789abcdef0123456789abcdef01234567"
PIECE = 4096
"""Bytes of one write: small, so that a fault can come in the middle of small files."""


@dataclass
class Fault:
    """What goes wrong with one answer: it ends after `cut` bytes, as a broken line does; or it ends so and says that
    this is all (`short`); or it stops there until the server ends (`hang`); or a byte of it is another (`flip`); or it
    is only a status."""

    cut: int | None = None
    short: bool = False
    hang: bool = False
    flip: int | None = None
    status: int = 0


@dataclass
class Asked:
    """One request that came."""

    method: str
    path: str
    headers: dict[str, str]


@dataclass
class HubServer:
    """What it has, what it did. `faults[name]` are used up, one for each answer with that file; those in `always` stay.
    `gated`: files only for who sends `token`."""

    files: dict[str, bytes]
    commit: str = COMMIT
    gated: bool = False
    token: str = "hf_right"
    api_status: int = 0
    ranges: bool = True
    faults: dict[str, list[Fault]] = field(default_factory=dict)
    always: dict[str, Fault] = field(default_factory=dict)
    listed: dict[str, dict[str, Any]] = field(default_factory=dict)
    """What the listing says differently about a file."""
    asked: list[Asked] = field(default_factory=list)
    sent: dict[str, int] = field(default_factory=dict)
    """Bytes sent of each file."""
    url: str = ""
    storage_url: str = ""
    held: threading.Event = field(default_factory=threading.Event)
    """Set when an answer hangs."""
    over: threading.Event = field(default_factory=threading.Event)

    def asked_for(self, name: str) -> list[Asked]:
        """The requests for one file's bytes, at the hub or its storage."""
        return [each for each in self.asked if each.path.split("?")[0].endswith(f"/{name}")]

    def sibling(self, name: str) -> dict[str, Any]:
        """How the listing describes a file."""
        raw = self.files[name]
        found: dict[str, Any] = {"rfilename": name, "size": len(raw), "blobId": git_id(raw)}
        if is_large(name):
            found["lfs"] = {"sha256": hashlib.sha256(raw).hexdigest(), "size": len(raw), "pointerSize": 134}
        return found | self.listed.get(name, {})


def git_id(raw: bytes) -> str:
    """As git names a content."""
    return hashlib.sha1(b"blob %d\0" % len(raw) + raw).hexdigest()


def is_large(name: str) -> bool:
    """Whether the hub keeps it in its storage."""
    return name.endswith((".safetensors", ".bin"))


def sharded(checkpoint: Path, shards: int) -> dict[str, bytes]:
    """The files of a checkpoint, its weights in several shards with an index, in the order of their names."""
    files = {path.name: path.read_bytes() for path in checkpoint.iterdir() if path.suffix == ".json"}
    raw = (checkpoint / "model.safetensors").read_bytes()
    (length,) = struct.unpack_from("<Q", raw)
    entries = json.loads(raw[8 : 8 + length])
    entries.pop("__metadata__", None)
    names = sorted(entries)
    weight_map: dict[str, str] = {}
    for number in range(shards):
        file = f"model-{number + 1:05}-of-{shards:05}.safetensors"
        part = names[number * len(names) // shards : (number + 1) * len(names) // shards]
        header, data = {}, b""
        for name in part:
            start, end = entries[name]["data_offsets"]
            header[name] = {**entries[name], "data_offsets": [len(data), len(data) + end - start]}
            data += raw[8 + length + start : 8 + length + end]
            weight_map[name] = file
        written = json.dumps(header).encode()
        files[file] = struct.pack("<Q", len(written)) + written + data
    files["model.safetensors.index.json"] = json.dumps({"metadata": {}, "weight_map": weight_map}).encode()
    return files


@contextmanager
def serving(files: dict[str, bytes]) -> Iterator[HubServer]:
    """A hub with one repository, REPO, as long as this is entered."""
    hub = HubServer(files)
    with _listening(hub, _Hub) as hub.url, _listening(hub, _Storage) as hub.storage_url:
        yield hub


@contextmanager
def _listening(hub: HubServer, handler: type[_Handler]) -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (handler,), {"hub": hub}))
    server.daemon_threads = False
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        hub.over.set()
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    hub: HubServer
    protocol_version = "HTTP/1.0"  # one answer a connection: none is left open when a test ends
    timeout = 5

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        headers = {name.lower(): value for name, value in self.headers.items()}
        self.hub.asked.append(Asked(self.command, self.path, headers))
        self.answer(unquote(urlsplit(self.path).path))

    def answer(self, path: str) -> None:
        raise AssertionError(path)

    def log_message(self, format: str, *args: object) -> None:
        """Nothing: a test's output is its own."""

    def status(self, status: int, code: str = "", message: str = "") -> None:
        body = json.dumps({"error": message or code}).encode()
        self.send_response(status)
        if code:
            self.send_header("X-Error-Code", code)
            self.send_header("X-Error-Message", message)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def content(self, name: str) -> None:
        """The bytes of a file, or of the range that was asked for, with this answer's fault."""
        raw = self.hub.files[name]
        queue = self.hub.faults.get(name, [])
        fault = queue.pop(0) if queue else self.hub.always.get(name, Fault())
        if fault.status:
            self.status(fault.status)
            return
        if fault.flip is not None:
            raw = raw[: fault.flip] + bytes([raw[fault.flip] ^ 1]) + raw[fault.flip + 1 :]
        if fault.short:
            raw = raw[: fault.cut]
        asked = self.headers.get("Range", "")
        first, _, last = asked.removeprefix("bytes=").partition("-") if self.hub.ranges else ("", "", "")
        start, stop = int(first or 0), int(last or len(raw) - 1) + 1
        if start >= len(raw) > 0 and start:
            self.status(416)
            return
        self.send_response(206 if first else 200)
        if first:
            self.send_header("Content-Range", f"bytes {start}-{stop - 1}/{len(raw)}")
        stop = min(stop, len(raw))
        self.headers_of(name, stop - start)
        end = stop if fault.cut is None or fault.short else min(fault.cut, stop)
        if self.command != "HEAD":
            self.send(name, raw[start:end], whole=end == stop, hang=fault.hang)

    def send(self, name: str, raw: bytes, *, whole: bool, hang: bool) -> None:
        try:
            for at in range(0, len(raw), PIECE):
                self.wfile.write(raw[at : at + PIECE])
                self.hub.sent[name] = self.hub.sent.get(name, 0) + len(raw[at : at + PIECE])
        except OSError:  # who asked has gone
            self.close_connection = True
            return
        if not whole:
            if hang:
                self.hub.held.set()
                self.hub.over.wait()
            self.close_connection = True

    def headers_of(self, name: str, size: int) -> None:
        self.send_header("Content-Length", str(size))
        self.send_header("ETag", f'"{self.etag(name)}"')
        self.send_header("Accept-Ranges", "bytes")
        self.end_headers()

    def etag(self, name: str) -> str:
        raw = self.hub.files[name]
        return hashlib.sha256(raw).hexdigest() if is_large(name) else git_id(raw)


class _Hub(_Handler):
    """/api/models/ID/revision/REV and /ID/resolve/REV/FILE."""

    def answer(self, path: str) -> None:
        hub = self.hub
        if hub.api_status:
            self.status(hub.api_status)
        elif path.startswith("/api/models/"):
            repo, _, revision = path.removeprefix("/api/models/").partition("/revision/")
            self.info(repo, revision or "main")
        elif f"/{REPO}/resolve/" in path:
            revision, _, name = path.removeprefix(f"/{REPO}/resolve/").partition("/")
            self.file(revision, name)
        else:
            self.status(404, "RepoNotFound", "Repository not found")

    def info(self, repo: str, revision: str) -> None:
        if repo != REPO:
            self.status(404, "RepoNotFound", "Repository not found")
            return
        if revision not in ("main", self.hub.commit):
            self.status(404, "RevisionNotFound", f"Invalid rev id: {revision}")
            return
        siblings = [self.hub.sibling(name) for name in sorted(self.hub.files)]
        body = json.dumps({"id": repo, "sha": self.hub.commit, "siblings": siblings, "tags": []}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def file(self, revision: str, name: str) -> None:
        if revision not in ("main", self.hub.commit):
            self.status(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        elif name not in self.hub.files:
            self.status(404, "EntryNotFound", "Entry not found")
        elif self.hub.gated and self.headers.get("Authorization") != f"Bearer {self.hub.token}":
            self.status(403 if "Authorization" in self.headers else 401, "GatedRepo", "Access is restricted")
        elif is_large(name):
            self.send_response(302)
            self.send_header("Location", f"{self.hub.storage_url}/stored/{name}")
            self.send_header("X-Repo-Commit", self.hub.commit)
            self.send_header("X-Linked-Size", str(len(self.hub.files[name])))
            self.send_header("X-Linked-ETag", f'"{self.etag(name)}"')
            self.send_header("Content-Length", "0")
            self.end_headers()
        else:
            self.content(name)


class _Storage(_Handler):
    """/stored/FILE, on another port."""

    def answer(self, path: str) -> None:
        self.content(path.removeprefix("/stored/"))
