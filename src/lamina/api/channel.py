"""A blocking gRPC client of a server on a unix socket."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from math import ceil
from pathlib import Path
from types import TracebackType
from typing import Self

from lamina.api.client_connection import ClientConnection, NotProcessed
from lamina.api.headers import METHOD_POST, SCHEME_HTTP, literal
from lamina.errors import Internal, InvalidArgument, Unavailable
from lamina.version import VERSION

_IDLE = 8
"""Connections that are kept open for the next calls."""
_DIGITS = 99_999_999
_UNITS = ((b"u", 1_000_000), (b"m", 1_000), (b"S", 1))
_PSEUDO = METHOD_POST + SCHEME_HTTP + literal(b":authority", b"localhost")
_FIELDS = b"".join(
    (
        literal(b"content-type", b"application/grpc"),
        literal(b"te", b"trailers"),
        literal(b"user-agent", f"lamina/{VERSION}".encode()),
    )
)


class Channel:
    """Calls methods of the server that listens at `path`; for several threads; context manager.

    There is a connection for each call that is going on, made when it is needed, so a server may
    be restarted between two calls. Calls raise the error tree's class of their status, and:

        Unavailable: nobody listens, or the server went away in the middle of the call.
        PermissionDenied: this user may not connect.
        DeadlineExceeded: the time is over; the server knows by then.
        InvalidArgument: a value of the metadata is not printable ASCII.

    Args:
        path: the unix socket.
        timeout: seconds that a call may take if it does not say otherwise; None for any time.
    """

    def __init__(self, path: Path, *, timeout: float | None = None) -> None:
        self._path = path
        self._timeout = timeout
        self._idle: list[ClientConnection] = []
        self._is_closed = False

    def unary(
        self,
        method: str,
        request: bytes,
        *,
        metadata: Mapping[str, str] | None = None,
        timeout: float | None = None,
    ) -> bytes:
        """Call a method with one response, and return that.

        Args:
            method: `/package.Service/Method`.
            request: the serialised request.
            metadata: header fields to send along, by lower-case name.
            timeout: seconds after which to give up, instead of the channel's.
        """
        responses = list(self.stream(method, request, metadata=metadata, timeout=timeout))
        if len(responses) != 1:
            raise Internal("call", method, hint=f"it has {len(responses)} responses instead of one")
        return responses[0]

    def stream(
        self,
        method: str,
        request: bytes,
        *,
        metadata: Mapping[str, str] | None = None,
        timeout: float | None = None,
    ) -> Iterator[bytes]:
        """Call a method with any number of responses, and yield them; see `unary`.

        The call begins with the first of them, and closing the iterator cancels it.
        """
        if timeout is None:
            timeout = self._timeout
        head = _encode_head(method, metadata or {}, timeout)
        deadline = None if timeout is None else time.monotonic() + timeout
        while (connection := self._take_idle()) is not None:
            try:
                yield from self._use(connection, method, head, request, deadline)
            except NotProcessed:
                continue  # the server has ended, and maybe there is a new one
            return
        connection = ClientConnection(self._path, deadline)
        try:
            yield from self._use(connection, method, head, request, deadline)
        except NotProcessed as error:
            raise Unavailable("call", method, hint=str(error)) from error

    def close(self) -> None:
        """Close the connections that no call is using; the others close after their calls."""
        self._is_closed = True
        while (connection := self._pop()) is not None:
            connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _use(
        self,
        connection: ClientConnection,
        method: str,
        head: bytes,
        request: bytes,
        deadline: float | None,
    ) -> Iterator[bytes]:
        try:
            yield from connection.call(method, head, request, deadline)
        finally:
            if connection.is_usable and not self._is_closed and len(self._idle) < _IDLE:
                self._idle.append(connection)
            else:
                connection.close()

    def _take_idle(self) -> ClientConnection | None:
        while (connection := self._pop()) is not None:
            if connection.is_alive():
                return connection
            connection.close()
        return None

    def _pop(self) -> ClientConnection | None:
        try:
            return self._idle.pop()  # atomic, so there is no lock
        except IndexError:
            return None


def _encode_head(method: str, metadata: Mapping[str, str], timeout: float | None) -> bytes:
    head = [_PSEUDO, literal(b":path", method.encode()), _FIELDS]
    if timeout is not None:
        head.append(literal(b"grpc-timeout", encode_timeout(timeout)))
    for name, value in metadata.items():
        if not (value.isascii() and value.isprintable()):
            raise InvalidArgument(f"send metadata {name}", value)
        head.append(literal(name.encode(), value.encode()))
    return b"".join(head)


def encode_timeout(seconds: float) -> bytes:
    """Return the value of `grpc-timeout`, which has at most eight digits: as exact as it can be."""
    for unit, per_second in _UNITS:
        count = max(0, ceil(seconds * per_second))
        if count <= _DIGITS:
            return b"%d%s" % (count, unit)
    return b"%dS" % _DIGITS
