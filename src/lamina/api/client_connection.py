"""The client's end of one HTTP/2 connection, which carries one call at a time."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from lamina.api.headers import HeaderDecoder
from lamina.api.http2 import (
    ACK,
    DATA,
    DEFAULT_FRAME_SIZE,
    DEFAULT_WINDOW,
    ENABLE_PUSH,
    END_HEADERS,
    END_STREAM,
    GOAWAY,
    HEADER_LIST_LIMIT,
    HEADERS,
    INITIAL_WINDOW_SIZE,
    MAX_HEADER_LIST_SIZE,
    PING,
    PREFACE,
    PUSH_PROMISE,
    RST_STREAM,
    SETTINGS,
    WINDOW_UPDATE,
    ConnectionFault,
    ErrorCode,
    Frame,
    FrameReader,
    frame,
    parse_goaway,
    parse_increment,
    parse_settings,
    parse_word,
    settings,
    window_update,
)
from lamina.api.message import pack
from lamina.api.response import Response
from lamina.api.window import ReceiveWindow
from lamina.errors import DeadlineExceeded, InvalidArgument, PermissionDenied, Unavailable

_WINDOW = 4 * 1024 * 1024
_READ = 64 * 1024
_LAST_STREAM = 2**31 - 2
_GREETING = (
    PREFACE
    + settings(
        {ENABLE_PUSH: 0, INITIAL_WINDOW_SIZE: _WINDOW, MAX_HEADER_LIST_SIZE: HEADER_LIST_LIMIT}
    )
    + window_update(0, _WINDOW - DEFAULT_WINDOW)
)


class NotProcessed(Exception):
    """The server has not looked at the request, and will not: it can be sent again elsewhere."""


class ClientConnection:
    """A connection to the server at `path`; for one thread at a time.

    After any exception it is of no use any more, but for the error of a call's own status.

    Raises:
        Unavailable: nobody listens there.
        PermissionDenied: this user may not connect.
    """

    def __init__(self, path: Path, deadline: float | None) -> None:
        self._path = path
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        try:
            self._connect(deadline)
        except BaseException:
            self._socket.close()
            raise
        self._unsent = _GREETING  # goes out together with the first request
        self._reader = FrameReader()
        self._decoder = HeaderDecoder()
        self._window = ReceiveWindow(_WINDOW)
        self._send_window = DEFAULT_WINDOW
        self._initial_window = DEFAULT_WINDOW
        self._is_going_away = False
        self._stream = -1
        self._stream_send_window = 0
        self._stream_window = self._window
        self._response: Response | None = None

    @property
    def is_usable(self) -> bool:
        """Whether another call can be made, as far as is known without looking."""
        return (
            self._response is None and not self._is_going_away and self._stream + 2 < _LAST_STREAM
        )

    def is_alive(self) -> bool:
        """Look whether the server has gone, or has said that it will."""
        self._socket.settimeout(0)
        try:
            self._take(self._socket.recv(_READ))
            self._flush(None)
        except BlockingIOError:
            return True
        except (OSError, ConnectionFault, NotProcessed):
            return False
        return self.is_usable

    def call(
        self, method: str, head: bytes, request: bytes, deadline: float | None
    ) -> Iterator[bytes]:
        """Make a call, and yield the messages of its response.

        Args:
            method: the method's path, for messages.
            head: header block of the request.
            request: the message.
            deadline: `time.monotonic()` seconds at which to give up; None for never.

        Raises:
            NotProcessed: nothing has been done.
            LaminaError: the status, if it is not OK; or the connection's end.
        """
        self._stream += 2
        self._stream_send_window = self._initial_window
        self._stream_window = ReceiveWindow(_WINDOW)
        response = self._response = Response(method)
        self._send(head, pack(request), deadline)
        while True:
            yield from response.messages()
            if response.is_over:
                break
            self._receive(deadline)
        self._response = None
        if response.error is not None:
            raise response.error

    def close(self) -> None:
        """Hang up; a call that is still going on is cancelled by that."""
        self._socket.close()

    def _connect(self, deadline: float | None) -> None:
        path = str(self._path)
        try:
            self._within(deadline, lambda: self._socket.connect(path))
        except PermissionError as error:
            hint = "the socket is for another user; try as root"
            raise PermissionDenied("connect to", path, hint=hint) from error
        except (FileNotFoundError, ConnectionRefusedError) as error:
            hint = "nobody listens there; is the daemon running?"
            raise Unavailable("connect to", path, hint=hint) from error
        except OSError as error:
            # A path that does not fit into a socket address has no errno.
            kind = Unavailable if error.errno else InvalidArgument
            raise kind("connect to", path, hint=error.strerror or str(error)) from error

    def _send(self, head: bytes, message: bytes, deadline: float | None) -> None:
        """Send the request, and read meanwhile if the server's windows are too small for it."""
        self._unsent += frame(HEADERS, END_HEADERS, self._stream, head)
        rest = memoryview(message)
        try:
            while rest and not self._is_answered():
                size = min(
                    len(rest), self._send_window, self._stream_send_window, DEFAULT_FRAME_SIZE
                )
                if size <= 0:
                    self._flush(deadline)
                    self._receive(deadline)
                    continue
                flags = END_STREAM if size == len(rest) else 0
                self._unsent += frame(DATA, flags, self._stream, bytes(rest[:size]))
                self._send_window -= size
                self._stream_send_window -= size
                rest = rest[size:]
                if len(self._unsent) >= _READ:
                    self._flush(deadline)
            self._flush(deadline)
        except (BrokenPipeError, ConnectionResetError) as error:
            # The end of the request has not got through.
            raise NotProcessed(f"{self._path}: {error.strerror}") from error

    def _is_answered(self) -> bool:
        return self._response is not None and self._response.is_over

    def _flush(self, deadline: float | None) -> None:
        if self._unsent:
            unsent, self._unsent = self._unsent, b""
            self._within(deadline, lambda: self._socket.sendall(unsent))

    def _receive(self, deadline: float | None) -> None:
        """Wait for something to come, and deal with it."""
        try:
            data = self._within(deadline, lambda: self._socket.recv(_READ))
        except ConnectionResetError:
            data = b""
        if not data:
            raise Unavailable("call", self._path, hint="the server has closed the connection")
        try:
            self._take(data)
        except ConnectionFault as fault:
            hint = f"what listens there does not speak gRPC: {fault}"
            raise Unavailable("call", self._path, hint=hint) from fault
        try:
            self._flush(deadline)
        except (BrokenPipeError, ConnectionResetError):
            pass  # what it has sent before it went may still be the whole answer

    def _within(self, deadline: float | None, operation: Callable[[], bytes | None]) -> bytes:
        """Do something with the socket that has to be done by the deadline."""
        left = None if deadline is None else deadline - time.monotonic()
        if left is not None and left <= 0:
            raise DeadlineExceeded("call", self._path)
        self._socket.settimeout(left)
        try:
            return operation() or b""
        except TimeoutError as error:
            raise DeadlineExceeded("call", self._path) from error

    def _take(self, data: bytes) -> None:
        if not data:
            self._is_going_away = True
        for each in self._reader.feed(data):
            if each.type == DATA:
                self._data(each)
            elif each.type == HEADERS:
                self._headers(each)
            elif each.type == SETTINGS:
                self._settings(each)
            elif each.type == PUSH_PROMISE:
                raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "a push that was not asked for")
            else:
                self._control(each)

    def _control(self, each: Frame) -> None:
        if each.type == PING and not each.flags & ACK:
            self._unsent += frame(PING, ACK, 0, each.payload)
        elif each.type == WINDOW_UPDATE and not each.stream:
            self._send_window += parse_increment(each.payload)
        elif each.type == WINDOW_UPDATE and each.stream == self._stream:
            self._stream_send_window += parse_increment(each.payload)
        elif each.type == RST_STREAM and each.stream == self._stream:
            code = parse_word(each.payload)
            if code == ErrorCode.REFUSED_STREAM:
                raise NotProcessed(f"{self._path}: the server takes no more calls")
            if self._response is not None:
                self._response.add_reset(code)
        elif each.type == GOAWAY:
            self._is_going_away = True
            last, code, reason = parse_goaway(each.payload)
            if self._response is not None and last < self._stream:
                raise NotProcessed(f"{self._path}: the server goes away ({code} {reason})")

    def _headers(self, each: Frame) -> None:
        fields = self._decoder.decode(each.payload)
        if each.stream == self._stream and self._response is not None:
            self._response.add_fields(fields, ends=bool(each.flags & END_STREAM))

    def _data(self, each: Frame) -> None:
        increment = self._window.take(each.size)
        if increment:
            self._unsent += window_update(0, increment)
        if each.stream != self._stream or self._response is None:
            return
        increment = self._stream_window.take(each.size)
        if increment:
            self._unsent += window_update(each.stream, increment)
        self._response.add_data(each.payload, ends=bool(each.flags & END_STREAM))

    def _settings(self, each: Frame) -> None:
        if each.flags & ACK:
            return
        for setting, value in parse_settings(each.payload):
            if setting == INITIAL_WINDOW_SIZE:
                self._stream_send_window += value - self._initial_window
                self._initial_window = value
        self._unsent += frame(SETTINGS, ACK, 0)
