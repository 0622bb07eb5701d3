"""A model hub on this machine's loopback that serves a folder, for the real `from_pretrained` without a network.

`ROOT/<organisation>/<name>/...` is a repository of one commit. A process that is to load from it is started with
`Hub.environment`, because Hugging Face's libraries read their settings when they are imported.
"""

import hashlib
import json
import os
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

PACKAGE = Path(__file__).parents[2]
FILE = re.compile(r"/([^/]+/[^/]+)/resolve/[^/]+/(.+)")
TREE = re.compile(r"/api/models/([^/]+/[^/]+)/tree/[^/]+/?(.*)")
MODEL = re.compile(r"/api/models/([^/]+/[^/]+)(?:/revision/[^/]+)?")
OF_ITS_OWN = ("HF_", "HUGGING", "TRANSFORMERS_")  # settings of the machine, its cache and its token among them
RANGE = re.compile(r"bytes=(\d+)-(\d*)")


@dataclass(frozen=True)
class Request:
    """What was asked for, and the status it was answered with."""

    method: str
    target: str
    status: int


@dataclass(frozen=True)
class Hub:
    """A running hub.

    Args:
        root: the folder it serves; what is put there later is served as well.
        port: of the loopback address.
        log: every request, in the order of the answers.
    """

    root: Path
    port: int
    log: list[Request] = field(default_factory=list)

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def elsewhere(self) -> list[Request]:
        """Requests that were meant for another host: the hub is also the proxy for those, and refuses them."""
        return [request for request in self.log if not request.target.startswith("/")]

    def environment(self, home: Path, *, offline: bool = False) -> dict[str, str]:
        """The environment of a process whose only network this hub is.

        Args:
            home: Hugging Face's folder of that process; an empty one for a machine that has never loaded anything.
            offline: forbid the hub too, so that only what lies in `home` can be loaded.
        """
        kept = {name: value for name, value in os.environ.items() if not name.upper().startswith(OF_ITS_OWN)}
        proxies = dict.fromkeys(("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"), self.url) | {"NO_PROXY": "127.0.0.1"}
        return kept | proxies | {name.lower(): value for name, value in proxies.items()} | {
            "HF_ENDPOINT": self.url, "HF_HOME": str(home), "HF_HUB_OFFLINE": str(int(offline)),
            "HF_HUB_DISABLE_PROGRESS_BARS": "1", "PYTHONPATH": str(PACKAGE), "OMP_NUM_THREADS": "1",
            "TOKENIZERS_PARALLELISM": "false", "WANDB_MODE": "offline",
        }  # fmt: skip


@contextmanager
def serving(root: Path) -> Iterator[Hub]:
    """Serve a folder on a free port until the block ends."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    server.hub = Hub(root, server.server_address[1])
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server.hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@dataclass(frozen=True)
class _Answer:
    status: int
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)


NO_REPOSITORY = _Answer(404, b"Repository not found", {"X-Error-Code": "RepoNotFound"})
REFUSED = _Answer(403, b"only this hub can be reached")


@dataclass(frozen=True)
class _Repository:
    name: str
    folder: Path

    @cached_property
    def commit(self) -> str:
        return hashlib.sha1(self.name.encode()).hexdigest()

    @property
    def missing(self) -> _Answer:
        return _Answer(404, b"Entry not found", {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": self.commit})

    def file(self, path: str, wanted: str | None) -> _Answer:
        """A file, or the range of its bytes that is wanted."""
        if not (self.folder / path).is_file():
            return self.missing
        content = (self.folder / path).read_bytes()
        headers = {"ETag": f'"{hashlib.sha256(content).hexdigest()}"', "X-Repo-Commit": self.commit}
        if wanted is None:
            return _Answer(200, content, headers | {"Accept-Ranges": "bytes"})
        first, last = RANGE.fullmatch(wanted).groups()
        part = slice(int(first), int(last) + 1 if last else len(content))
        spelt = f"bytes {part.start}-{part.stop - 1}/{len(content)}"
        return _Answer(206, content[part], headers | {"Content-Range": spelt})

    def tree(self, path: str) -> _Answer:
        """What lies in a folder, at any depth."""
        if not (self.folder / path).is_dir():
            return self.missing
        files = sorted(file for file in (self.folder / path).rglob("*") if file.is_file())
        return _json([
            {"type": "file", "path": self._path(file), "size": file.stat().st_size, "oid": self.commit}
            for file in files
        ])  # fmt: skip

    def information(self) -> _Answer:
        """What `HfApi.model_info` reads."""
        files = [{"rfilename": self._path(file)} for file in sorted(self.folder.rglob("*")) if file.is_file()]
        known = {"private": False, "gated": False, "tags": [], "downloads": 0, "likes": 0}
        return _json({"_id": self.name, "id": self.name, "sha": self.commit, "siblings": files, **known})

    def _path(self, file: Path) -> str:
        return file.relative_to(self.folder).as_posix()


def _json(value: object) -> _Answer:
    return _Answer(200, json.dumps(value).encode(), {"Content-Type": "application/json"})


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._send(self._answer())

    def do_HEAD(self) -> None:
        self._send(self._answer(), body=False)

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self._send(REFUSED)

    def do_CONNECT(self) -> None:
        self._send(REFUSED)

    def log_message(self, *_: object) -> None:
        """Nothing on the screen: the hub keeps its own log."""

    def _answer(self) -> _Answer:
        if not self.path.startswith("/"):
            return REFUSED
        path = unquote(urlsplit(self.path).path)
        for pattern in (FILE, TREE, MODEL):
            if match := pattern.fullmatch(path):
                repository = _Repository(match[1], self.server.hub.root / match[1])
                if not repository.folder.is_dir():
                    return NO_REPOSITORY
                if pattern is FILE:
                    return repository.file(match[2], self.headers.get("Range"))
                return repository.tree(match[2]) if pattern is TREE else repository.information()
        return NO_REPOSITORY

    def _send(self, answer: _Answer, *, body: bool = True) -> None:
        self.server.hub.log.append(Request(self.command, self.path, answer.status))
        self.send_response(answer.status)
        for name, value in (answer.headers | {"Content-Length": str(len(answer.body))}).items():
            self.send_header(name, value)
        self.end_headers()
        if body:
            self.wfile.write(answer.body)
