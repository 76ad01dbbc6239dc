"""An HTTP registry on loopback that goes wrong on request.

Each fault is a function that answers one request in its own way. Faults wait in a list, each for
the next request whose path contains its text; a request that none waits for is answered properly.
"""

from __future__ import annotations

import base64
import hashlib
import json
import socketserver
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from urllib.parse import parse_qs, urlsplit

OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"

Fault = Callable[["Handler"], None]
_PIECE = 64 << 10
"""Bytes of a body that are sent at once."""


def _set() -> threading.Event:
    event = threading.Event()
    event.set()
    return event


@dataclass
class Seen:
    """One request as it came in."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes = b""

    @property
    def query(self) -> dict[str, list[str]]:
        return parse_qs(urlsplit(self.path).query)


@dataclass
class FaultyRegistry:
    """State shared by the server's threads; tests change it and look at it."""

    host: str = ""
    manifests: dict[str, tuple[bytes, str]] = field(default_factory=dict)
    blobs: dict[str, bytes] = field(default_factory=dict)
    seen: list[Seen] = field(default_factory=list)
    faults: list[tuple[str, Fault]] = field(default_factory=list)
    challenge: str = ""
    """WWW-Authenticate of the 401 for requests without one of the accepted headers."""
    accepted: set[str] = field(default_factory=set)
    token: Fault | None = None
    bytes_per_second: float = 0
    """How fast blobs are sent, over each connection; 0 for as fast as can be."""
    connections: int = 0
    flows: threading.Event = field(default_factory=_set)
    """While it is clear, the bytes of blobs are held back."""
    waited: threading.Event = field(default_factory=threading.Event)
    """Set once bytes have been held back for somebody."""
    stopping: threading.Event = field(default_factory=threading.Event)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def add_blob(self, data: bytes) -> str:
        digest = sha256(data)
        self.blobs[digest] = data
        return digest

    def add_manifest(self, tag: str, data: bytes, media_type: str = OCI_MANIFEST) -> str:
        digest = sha256(data)
        self.manifests[tag] = self.manifests[digest] = (data, media_type)
        return digest

    def fault(self, path: str, *faults: Fault) -> None:
        """Have the next requests with `path` in their path answered by `faults`."""
        self.faults += [(path, fault) for fault in faults]

    def take_fault(self, path: str) -> Fault | None:
        with self.lock:
            for index, (part, fault) in enumerate(self.faults):
                if part in path:
                    del self.faults[index]
                    return fault
        return None

    def paths(self) -> list[str]:
        return [f"{seen.method} {urlsplit(seen.path).path}" for seen in self.seen]


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    registry: FaultyRegistry

    def setup(self) -> None:
        with self.registry.lock:
            self.registry.connections += 1
        super().setup()

    def do_GET(self) -> None:
        length = int(self.headers.get("Content-Length", "0"))
        body = self.rfile.read(length)
        seen = Seen(self.command, self.path, dict(self.headers.items()), body)
        self.registry.seen.append(seen)
        if fault := self.registry.take_fault(self.path):
            fault(self)
        elif self.path.startswith("/token") and self.registry.token:
            self.registry.token(self)
        elif self.registry.challenge and not self._authorized():
            self.answer(401, b"{}", {"WWW-Authenticate": self.registry.challenge})
        else:
            self.serve()

    do_HEAD = do_GET
    do_POST = do_GET

    def _authorized(self) -> bool:
        return self.headers.get("Authorization", "") in self.registry.accepted

    def serve(self) -> None:
        """Answer as a good registry does."""
        kind, _, name = urlsplit(self.path).path.rpartition("/")
        if kind.endswith("/manifests") and name in self.registry.manifests:
            data, media_type = self.registry.manifests[name]
            headers = {"Content-Type": media_type, "Docker-Content-Digest": sha256(data)}
            self.answer(200, data, headers)
        elif kind.endswith("/blobs") and name in self.registry.blobs:
            self.serve_range(self.registry.blobs[name])
        else:
            error = {"errors": [{"code": "NAME_UNKNOWN", "message": "no such\tthing"}]}
            self.answer(404, json.dumps(error).encode(), {"Content-Type": "application/json"})

    def serve_range(self, data: bytes) -> None:
        start = self.range_start()
        if start is None:
            self.answer(200, data)
        elif start >= len(data):
            self.answer(416, b"", {"Content-Range": f"bytes */{len(data)}"})
        else:
            stop = self.range_stop(len(data))
            said = f"bytes {start}-{stop - 1}/{len(data)}"
            self.answer(206, data[start:stop], {"Content-Range": said})

    def range_start(self) -> int | None:
        asked = self.headers.get("Range", "")
        return int(asked.removeprefix("bytes=").partition("-")[0]) if asked else None

    def range_stop(self, size: int) -> int:
        last = self.headers.get("Range", "").rpartition("-")[2]
        return min(int(last) + 1, size) if last else size

    def head(self, status: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()

    def answer(self, status: int, data: bytes, headers: dict[str, str] | None = None) -> None:
        self.head(status, {"Content-Length": str(len(data)), **(headers or {})})
        if self.command != "HEAD":
            self.send_body(data)

    def send_body(self, data: bytes) -> None:
        """Send as fast as the registry is told to."""
        pace = self.registry.bytes_per_second
        for start in range(0, len(data), _PIECE):
            piece = data[start : start + _PIECE]
            if not self.registry.flows.is_set():
                self.registry.waited.set()
                self.registry.flows.wait()
            if pace and self.registry.stopping.wait(len(piece) / pace):
                break
            self.wfile.write(piece)

    def log_message(self, format: str, *args: object) -> None:
        """Keep the tests' output free of requests."""


def status(code: int, **headers: str) -> Fault:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return lambda handler: handler.answer(code, b"", named)


def send(data: bytes, code: int = 200, **headers: str) -> Fault:
    """Answer with other content than asked for."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return lambda handler: handler.answer(code, data, named)


def raw(data: bytes) -> Fault:
    """Send `data` as it is, and hang up."""

    def fault(handler: Handler) -> None:
        handler.wfile.write(data)
        handler.close_connection = True

    return fault


def html() -> Fault:
    page = b"<html>Please log in to the guest network</html>"
    return send(page, Content_Type="text/html; charset=utf-8")


def _blob_tail(handler: Handler) -> bytes:
    """Send the head of a proper answer; return the body that is due."""
    data = handler.registry.blobs[handler.path.rpartition("/")[2].partition("?")[0]]
    start = handler.range_start()
    stop = handler.range_stop(len(data))
    headers = {"Content-Length": str(stop - (start or 0))}
    if start is not None:
        headers["Content-Range"] = f"bytes {start}-{stop - 1}/{len(data)}"
    handler.head(200 if start is None else 206, headers)
    return data[start or 0 : stop]


def cut(after: int) -> Fault:
    """Close the connection after `after` bytes of the body."""

    def fault(handler: Handler) -> None:
        handler.wfile.write(_blob_tail(handler)[:after])
        handler.close_connection = True

    return fault


def stall(after: int) -> Fault:
    """Say nothing more after `after` bytes, until the registry stops."""

    def fault(handler: Handler) -> None:
        handler.wfile.write(_blob_tail(handler)[:after])
        handler.registry.stopping.wait()
        handler.close_connection = True

    return fault


def dribble(pause: float) -> Fault:
    """Send one byte each `pause` seconds."""

    def fault(handler: Handler) -> None:
        for byte in _blob_tail(handler):
            if handler.registry.stopping.wait(pause):
                break
            handler.wfile.write(bytes([byte]))
        handler.close_connection = True

    return fault


def hang_up() -> Fault:
    """Close the connection without any answer."""
    return raw(b"")


def ignore_range() -> Fault:
    return lambda handler: handler.answer(200, _blob(handler))


def chunked(data: bytes) -> Fault:
    """Answer with a body that does not announce its length."""

    def fault(handler: Handler) -> None:
        handler.head(200, {"Transfer-Encoding": "chunked"})
        handler.wfile.write(b"%x\r\n%s\r\n0\r\n\r\n" % (len(data), data))

    return fault


def tokens(registry: FaultyRegistry, *, secret: str = "", expires_in: float = 300) -> Fault:
    """Be a token server whose every token is accepted; `secret` is `USER:PASSWORD`."""

    def fault(handler: Handler) -> None:
        login = handler.headers.get("Authorization", "")
        if secret and login != basic(secret):
            handler.answer(401, b'{"errors": [{"code": "UNAUTHORIZED", "message": "bad"}]}')
            return
        with registry.lock:
            token = f"token-{len(registry.accepted)}"
            registry.accepted.add(f"Bearer {token}")
        handler.answer(200, json.dumps({"token": token, "expires_in": expires_in}).encode())

    return fault


def basic(pair: str) -> str:
    return "Basic " + base64.b64encode(pair.encode()).decode()


def sha256(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()


def _blob(handler: Handler) -> bytes:
    return handler.registry.blobs[handler.path.rpartition("/")[2].partition("?")[0]]


class _Server(socketserver.ThreadingTCPServer):
    daemon_threads = True
    allow_reuse_address = True
    request_queue_size = 64

    def handle_error(self, request: object, client_address: object) -> None:
        """Expect clients to hang up: that is what several tests have them do."""


@contextmanager
def faulty_registry(*, tls: ssl.SSLContext | None = None) -> Iterator[FaultyRegistry]:
    registry = FaultyRegistry()
    handler = type("BoundHandler", (Handler,), {"registry": registry})
    with _Server(("127.0.0.1", 0), handler) as server:
        if tls is not None:
            server.socket = tls.wrap_socket(server.socket, server_side=True)
        registry.host = f"127.0.0.1:{server.server_address[1]}"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield registry
        finally:
            registry.stopping.set()
            registry.flows.set()
            server.shutdown()
            thread.join()
