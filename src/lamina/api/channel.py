"""A blocking gRPC client on a unix socket."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

from lamina.api.headers import METHOD_POST, SCHEME_HTTP, Fields, HeaderDecoder, block
from lamina.api.http2 import (
    ACK,
    DATA,
    END_HEADERS,
    END_STREAM,
    HEADERS,
    PING,
    PREFACE,
    SETTINGS,
    FrameReader,
    frame,
    settings,
    window_update,
)
from lamina.api.message import PREFIX_SIZE, message_size, pack
from lamina.api.status import decode_message, from_status
from lamina.errors import PermissionDenied, Unavailable


class Channel:
    """Calls methods of the server that listens at `path`; for several threads.

    Args:
        path: the unix socket.
        timeout: seconds that a call may take if it does not say otherwise; None for any time.
    """

    def __init__(self, path: Path, *, timeout: float | None = None) -> None:
        self._path = path
        self._timeout = timeout

    def unary(
        self,
        method: str,
        request: bytes,
        *,
        metadata: Mapping[str, str] | None = None,
        timeout: float | None = None,
    ) -> bytes:
        """Call a method with one response."""
        return list(self.stream(method, request, metadata=metadata, timeout=timeout))[0]

    def stream(
        self,
        method: str,
        request: bytes,
        *,
        metadata: Mapping[str, str] | None = None,
        timeout: float | None = None,
    ) -> Iterator[bytes]:
        """Call a method with any number of responses."""
        with socket.socket(socket.AF_UNIX) as sock:
            try:
                sock.connect(str(self._path))
            except PermissionError as error:
                raise PermissionDenied("connect to", self._path) from error
            except OSError as error:
                raise Unavailable("connect to", self._path) from error
            head = METHOD_POST + SCHEME_HTTP + block(
                [(b":path", method.encode()), (b":authority", b"localhost"), (b"te", b"trailers"),
                 (b"content-type", b"application/grpc"),
                 *((k.encode(), v.encode()) for k, v in (metadata or {}).items())]
            )  # fmt: skip
            sock.sendall(PREFACE + settings({}) + frame(HEADERS, END_HEADERS, 1, head)
                         + frame(DATA, END_STREAM, 1, pack(request)))  # fmt: skip
            decoder, reader, body = HeaderDecoder(), FrameReader(), bytearray()
            while data := sock.recv(65536):
                for each in reader.feed(data):
                    if each.type == DATA:
                        sock.sendall(window_update(0, each.size) + window_update(1, each.size))
                        body += each.payload
                        while len(body) >= 5 and len(body) - 5 >= message_size(body, ""):
                            size = message_size(body, "")
                            yield bytes(body[PREFIX_SIZE : PREFIX_SIZE + size])
                            del body[: PREFIX_SIZE + size]
                    elif each.type == SETTINGS and not each.flags & ACK:
                        sock.sendall(frame(SETTINGS, ACK, 0))
                    elif each.type == PING and not each.flags & ACK:
                        sock.sendall(frame(PING, ACK, 0, each.payload))
                    elif each.type == HEADERS:
                        fields = dict(decoder.decode(each.payload))
                        if each.flags & END_STREAM:
                            code = int(fields["grpc-status"])
                            if code:
                                raise from_status(code, decode_message(fields.get("grpc-message", "")))
                            return
            raise Unavailable("call", method)

    def close(self) -> None:
        """Close the connection."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()
