"""One call on the server, from its request's head to its status."""

from __future__ import annotations

import asyncio
import threading
from typing import TYPE_CHECKING

from lamina.api.call import Call, Method
from lamina.api.headers import STATUS_200, literal
from lamina.api.http2 import (
    DATA,
    END_HEADERS,
    END_STREAM,
    HEADERS,
    ErrorCode,
    frame,
    frame_header,
    rst_stream,
)
from lamina.api.message import PREFIX_SIZE, pack
from lamina.api.request import Request
from lamina.api.sender import Outgoing
from lamina.api.status import OK, encode_message
from lamina.core.cancel import CancelToken

if TYPE_CHECKING:
    from lamina.api.connection import Connection

_AHEAD = 4
"""Responses of a stream that may wait to be sent before its handler has to wait."""

_CONTENT_TYPE = literal(b"content-type", b"application/grpc")
_HEAD = STATUS_200 + _CONTENT_TYPE
_STATUS_OK = literal(b"grpc-status", b"0")


class Stream:
    """A call that the client has opened."""

    def __init__(
        self, connection: Connection, id: int, method: Method, request: Request, now: float
    ) -> None:
        deadline = None if request.timeout is None else now + request.timeout
        self.connection = connection
        self.outgoing = Outgoing(id, connection.sender.initial_window, self._sent)
        self.method = method
        self.request = request
        self.started = now
        self.token = CancelToken(deadline)
        self.call = Call(request.metadata, self.token)
        self.body = bytearray()
        self.half_closed = False
        self.is_open = True
        self.timer: asyncio.TimerHandle | None = None
        self.ahead = threading.Semaphore(_AHEAD)
        self._has_head = False

    # On the event loop

    def respond(self, message: bytes) -> None:
        """Send the one response, and the status OK."""
        id, sender = self.outgoing.id, self.connection.sender
        size = len(message) + PREFIX_SIZE
        head = frame(HEADERS, END_HEADERS, id, sender.first_block(_HEAD))
        ending = frame(HEADERS, END_HEADERS | END_STREAM, id, _STATUS_OK)
        if sender.fits(self.outgoing, size):
            body = frame_header(DATA, 0, id, size) + pack(message)
            sender.add_data(self.outgoing, size, head + body + ending)
        else:
            sender.add(head)
            sender.queue(self.outgoing, pack(message), ending=ending)
        self._end(OK)

    def send(self, message: bytes) -> None:
        """Send one response of several."""
        if not self.is_open:
            return
        if not self._has_head:
            self._has_head = True
            block = self.connection.sender.first_block(_HEAD)
            self.connection.sender.add(frame(HEADERS, END_HEADERS, self.outgoing.id, block))
        self.connection.sender.queue(self.outgoing, pack(message))

    def finish(self, code: int, text: str = "") -> None:
        """Send the status after what is sent already; the client may still be sending."""
        if not self.is_open:
            return
        id, sender = self.outgoing.id, self.connection.sender
        block = literal(b"grpc-status", b"%d" % code)
        if text:
            block += literal(b"grpc-message", encode_message(text))
        if not self._has_head:
            block = sender.first_block(_HEAD + block)
        ending = frame(HEADERS, END_HEADERS | END_STREAM, id, block)
        if not self.half_closed:
            ending += rst_stream(id, ErrorCode.NO_ERROR)
        sender.queue(self.outgoing, b"", ending=ending)
        self._end(code)

    def abandon(self) -> None:
        """Send nothing more: the client has given up, or is gone."""
        if self.is_open:
            self.connection.sender.drop(self.outgoing)
            self._end(1)

    def _end(self, code: int) -> None:
        self.is_open = False
        self.token.cancel()
        self.ahead.release()
        if self.timer is not None:
            self.timer.cancel()
        self.connection.ended(self, code)

    def _sent(self) -> None:
        self.ahead.release()
