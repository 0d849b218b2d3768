"""A local server that speaks the read side of the Hugging Face Hub's API, for clients with ``HF_ENDPOINT`` set to it.

It serves directories: ROOT/models/OWNER/NAME and ROOT/datasets/OWNER/NAME, each as one revision. `HubServer.fail` makes
the next downloads go wrong.
"""

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlparse

_API = re.compile(r"/api/(models|datasets)/([^/]+/[^/]+)(?:/(revision|tree|paths-info)/([^/]+)(?:/(.*))?)?$")
_FILE = re.compile(r"/(datasets/)?([^/]+/[^/]+)/resolve/([^/]+)/(.*)$")
_DATA = (".gz", ".safetensors")


class HubServer:
    """A running server.

    Attributes:
        root: directory of the repositories.
        downloads: names of data files that were asked for, with the byte that the answer began at.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.downloads: list[tuple[str, int]] = []
        self._faults: list[int | str] = []
        self._lock = threading.Lock()
        handler = type("Handler", (_Handler,), {"hub": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)

    @property
    def variables(self) -> dict[str, str]:
        """What a client's environment needs."""
        return {"HF_ENDPOINT": f"http://127.0.0.1:{self._server.server_port}", "HF_HUB_DISABLE_XET": "1"}

    @contextmanager
    def serving(self) -> Iterator["HubServer"]:
        thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        thread.start()
        yield self
        self._server.shutdown()
        self._server.server_close()

    def fail(self, *faults: int | str) -> None:
        """Let the next downloads of data end with these status codes, or ``cut`` in the middle."""
        self._faults += faults

    def next_fault(self) -> int | str | None:
        with self._lock:
            return self._faults.pop(0) if self._faults else None

    def commit(self, kind: str, name: str) -> str:
        """A repository's only revision, which changes with its files."""
        files = [(path.name, path.stat().st_size) for path in sorted((self.root / kind / name).rglob("*"))]
        return hashlib.sha1(json.dumps([name, files]).encode()).hexdigest()


class _Handler(BaseHTTPRequestHandler):
    hub: HubServer
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        url = urlparse(self.path)
        if found := _API.match(unquote(url.path)):
            self._answer_question(*found.groups(), query=parse_qs(url.query))
        elif found := _FILE.match(unquote(url.path)):
            is_dataset, name, _, path = found.groups()
            self._send_file("datasets" if is_dataset else "models", name, path)
        else:
            self._send_json({"error": "not found"}, 404)

    do_HEAD = do_POST = do_GET  # noqa: N815  names of the base class

    def log_message(self, *_: Any) -> None: ...

    def _answer_question(
        self, kind: str, name: str, what: str | None, _revision: str, below: str | None, query: dict[str, list[str]]
    ) -> None:
        directory = self.hub.root / kind / name
        if not directory.is_dir():
            self._send_json({"error": "Repository not found"}, 404)
        elif what == "paths-info":
            body = self.rfile.read(int(self.headers.get("Content-Length", 0))).decode()
            is_json = "json" in self.headers.get("Content-Type", "")
            paths = json.loads(body)["paths"] if is_json else parse_qs(body)["paths"]
            self._send_json([_entry(directory, path) for path in paths if (directory / path).exists()])
        elif what == "tree":
            is_deep = query.get("recursive", [""])[0].lower() in ("true", "1")
            found = sorted((directory / (below or "")).glob("**/*" if is_deep else "*"))
            self._send_json([_entry(directory, str(path.relative_to(directory))) for path in found])
        else:
            files = sorted(path for path in directory.rglob("*") if path.is_file())
            siblings = [{"rfilename": str(p.relative_to(directory)), "size": p.stat().st_size} for p in files]
            facts = {"private": False, "disabled": False, "gated": False, "downloads": 0, "likes": 0, "tags": []}
            self._send_json({"id": name, "sha": self.hub.commit(kind, name), "siblings": siblings, **facts})

    def _send_file(self, kind: str, name: str, path: str) -> None:
        file = self.hub.root / kind / name / path
        if not file.is_file():
            self._send_json({"error": "Entry not found"}, 404)
            return
        content = file.read_bytes()
        asked = re.match(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        start = int(asked[1]) if asked else 0
        end = min(int(asked[2] or len(content)) if asked else len(content), len(content) - 1) + 1
        fault = None
        if self.command == "GET" and path.endswith(_DATA):
            self.hub.downloads.append((path, start))
            fault = self.hub.next_fault()
        if isinstance(fault, int):
            self._send_json({"error": "injected"}, fault)
            return
        self.send_response(206 if asked else 200)
        self.send_header("X-Repo-Commit", self.hub.commit(kind, name))
        self.send_header("ETag", f'"{hashlib.sha1(content).hexdigest()}"')
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(end - start))
        if asked:
            self.send_header("Content-Range", f"bytes {start}-{end - 1}/{len(content)}")
        self.end_headers()
        if self.command == "HEAD":
            return
        self.wfile.write(content[start : (start + end) // 2 if fault == "cut" else end])
        self.close_connection = fault == "cut"

    def _send_json(self, value: Any, code: int = 200) -> None:
        content = json.dumps(value).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        if code == 404:
            self.send_header("X-Error-Code", "RepoNotFound" if "Repository" in value["error"] else "EntryNotFound")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)


def _entry(directory: Path, path: str) -> dict[str, Any]:
    found = directory / path
    is_file = found.is_file()
    size = found.stat().st_size if is_file else 0
    return {"type": "file" if is_file else "directory", "path": path, "size": size,
            "oid": hashlib.sha1(path.encode()).hexdigest()}  # fmt: skip
