"""An HTTP/2 client that sends whatever a test wants to, and reads frames."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Self

from hpack import Decoder

from lamina.api.headers import METHOD_POST, SCHEME_HTTP, literal
from lamina.api.http2 import (
    ACK,
    DATA,
    END_HEADERS,
    END_STREAM,
    GOAWAY,
    HEADERS,
    PING,
    PREFACE,
    SETTINGS,
    Frame,
    FrameReader,
    frame,
    parse_goaway,
    settings,
)
from lamina.api.message import pack
from tests.grpc_server import WAIT


def head(path: str = "/test/Echo", **fields: str) -> bytes:
    """Make a request's header block; underscores in names stand for hyphens."""
    values = {"content_type": "application/grpc", "te": "trailers", **fields}
    return b"".join(
        (
            METHOD_POST,
            SCHEME_HTTP,
            literal(b":path", path.encode()),
            literal(b":authority", b"localhost"),
            *(literal(k.replace("_", "-").encode(), v.encode()) for k, v in values.items()),
        )
    )


def request(stream: int, path: str = "/test/Echo", message: bytes = b"hello") -> bytes:
    """Make the frames of a whole small request."""
    return frame(HEADERS, END_HEADERS, stream, head(path)) + frame(
        DATA, END_STREAM, stream, pack(message)
    )


class Raw:
    """A connection; reading gives up after `WAIT` seconds."""

    def __init__(self, path: Path) -> None:
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(WAIT)
        self.socket.connect(str(path))
        self._reader = FrameReader()
        self._decoder = Decoder()
        self._frames: list[Frame] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.socket.close()

    def greet(self, values: Mapping[int, int] | None = None) -> Self:
        """Send preface and settings, and take note of the server's."""
        self.send(PREFACE + settings(dict(values or {})))
        self.wait_for(SETTINGS, flags=ACK)
        return self

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def frames(self) -> Iterator[Frame]:
        """Yield frames until the server closes the connection."""
        while True:
            while self._frames:
                yield self._frames.pop(0)
            try:
                data = self.socket.recv(65536)
            except ConnectionResetError:
                return
            if not data:
                return
            self._frames += self._reader.feed(data)

    def wait_for(self, type: int, *, flags: int = 0, stream: int | None = None) -> Frame:
        """Return the next frame of that type, with all of the flags."""
        for each in self.frames():
            wanted = stream is None or each.stream == stream
            if each.type == type and each.flags & flags == flags and wanted:
                return each
        raise AssertionError(f"the connection ended without a frame of type {type}")

    def fields(self, block: bytes) -> dict[str, str]:
        return {str(name): str(value) for name, value in self._decoder.decode(block)}

    def answer(self, stream: int) -> tuple[bytes, dict[str, str]]:
        """Return what DATA a stream has, and its header fields and trailers, up to its end."""
        data = b""
        fields: dict[str, str] = {}
        for each in self.frames():
            if each.type == HEADERS:
                decoded = self.fields(each.payload)
                if each.stream == stream:
                    fields |= decoded
            elif each.type == DATA and each.stream == stream:
                data += each.payload
            if each.stream == stream and each.type in {HEADERS, DATA} and each.flags & END_STREAM:
                return data, fields
        raise AssertionError(f"the connection ended before stream {stream}")

    def status(self, stream: int) -> str:
        return self.answer(stream)[1]["grpc-status"]

    def goaway(self) -> tuple[int, int, str]:
        return parse_goaway(self.wait_for(GOAWAY).payload)

    def is_closed(self) -> bool:
        """Wait for the connection's end."""
        with contextlib.suppress(TimeoutError):
            for _ in self.frames():
                pass
            return True
        return False

    def ping(self) -> None:
        """Wait until the server has dealt with all that was sent."""
        self.send(frame(PING, 0, 0, b"12345678"))
        self.wait_for(PING, flags=ACK)
