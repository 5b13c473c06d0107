"""A registry on 127.0.0.1 that takes what an engine pushes: enough of the OCI distribution API for that."""

from __future__ import annotations

import hashlib
import secrets
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Registry(ThreadingHTTPServer):
    """Keeps blobs and manifests in memory. `manifests`: {(repository, tag or digest): digest}."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.blobs: dict[str, bytes] = {}
        self.uploads: dict[str, bytes] = {}
        self.manifests: dict[tuple[str, str], str] = {}

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.server_port}"


@contextmanager
def registry() -> Iterator[Registry]:
    with Registry() as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield server
        server.shutdown()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Registry

    def log_message(self, *_: object) -> None:
        """Stay quiet."""

    def _answer(self, status: int, **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        parts = []
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def do_GET(self) -> None:
        self._answer(200 if self.path == "/v2/" else 404)

    def do_HEAD(self) -> None:
        self._answer(200 if self.path.rpartition("/")[2] in self.server.blobs else 404)

    def do_POST(self) -> None:
        upload = secrets.token_hex(8)
        self.server.uploads[upload] = b""
        self._answer(202, Location=f"{self.path.split('?')[0]}{upload}", Docker_Upload_UUID=upload)

    def do_PATCH(self) -> None:
        upload = self.path.split("?")[0].rpartition("/")[2]
        self.server.uploads[upload] += self._body()
        self._answer(202, Location=self.path, Range=f"0-{len(self.server.uploads[upload]) - 1}")

    def do_PUT(self) -> None:
        place, _, query = self.path.partition("?")
        body = self._body()
        if "/manifests/" in place:
            repository, tag = place.removeprefix("/v2/").split("/manifests/")
            digest = f"sha256:{hashlib.sha256(body).hexdigest()}"
            self.server.manifests[repository, tag] = digest
        else:
            body = self.server.uploads.pop(place.rpartition("/")[2]) + body
            digest = f"sha256:{hashlib.sha256(body).hexdigest()}"
            assert query.split("digest=")[1].replace("%3A", ":") == digest
            self.server.blobs[digest] = body
        self._answer(201, Docker_Content_Digest=digest, Location=self.path)
