"""One call on the server, from the head of its request to its status.

Everything here runs on the event loop, but for `wait_for_room`.
"""

from __future__ import annotations

import threading
from asyncio import TimerHandle
from typing import TYPE_CHECKING

from lamina.api.call import Call, Method
from lamina.api.headers import STATUS_200, http_status, literal
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
from lamina.api.status import encode_message
from lamina.api.window import ReceiveWindow
from lamina.core.cancel import CancelToken
from lamina.errors import DeadlineExceeded, Unavailable

if TYPE_CHECKING:
    from lamina.api.session import Session

RECEIVE_WINDOW = 1024 * 1024
"""Bytes of a request that its client may send before it has to wait for us."""

_AHEAD = 4
"""Responses of a stream that may wait to be sent, before the handler has to wait."""
_STALL = 60.0
"""Seconds for which a handler waits for a client that takes nothing."""

_CONTENT_TYPE = literal(b"content-type", b"application/grpc")
_IDENTITY = literal(b"grpc-accept-encoding", b"identity")
_HEAD = STATUS_200 + _CONTENT_TYPE + _IDENTITY
_STATUS_OK = literal(b"grpc-status", b"0")


class Stream(Outgoing):
    """A call that the client has opened; `method` is None where there is no such method.

    Attributes:
        half_closed: the whole request has come.
        is_decided: the status is on its way, or the client gone: nothing is sent after that.
        is_running: a thread is at work for it, which it may be when all else is over.
        is_over: the client has got, or will not get, all of it.
        body: what has come of the request's message, if it comes in several pieces.
        held: bytes of memory that `body`, and the message on its way to a thread, count for.
    """

    def __init__(
        self, session: Session, id: int, request: Request, method: Method | None, now: float
    ) -> None:
        super().__init__(id, session.sender.initial_window)
        self.session = session
        self.request = request
        self.method = method
        self.token = CancelToken(None if request.timeout is None else now + request.timeout)
        self.call = Call(request.metadata, self.token, session.peer)
        self.body: bytearray | None = None
        self.held = 0
        self.receive_window = ReceiveWindow(RECEIVE_WINDOW)
        self.half_closed = False
        self.is_decided = False
        self.is_running = False
        self.is_over = False
        self.timer: TimerHandle | None = None
        self._sender = session.sender
        self._room = threading.Semaphore(_AHEAD) if method and method.stream else None
        self._has_head = False

    def respond(self, message: bytes) -> None:
        """Send the one response, and the status OK."""
        if self.is_decided:
            return
        self.is_decided = True
        size = len(message) + PREFIX_SIZE
        head = frame(HEADERS, END_HEADERS, self.id, self._sender.first_block(_HEAD))
        ending = frame(HEADERS, END_HEADERS | END_STREAM, self.id, _STATUS_OK)
        if not self._sender.fits(self, size):
            self._sender.add(head)
            self._sender.queue(self, pack(message), ending=ending)
            return
        body = frame_header(DATA, 0, self.id, size) + pack(message)
        self._sender.add_data(self, size, head + body + ending)
        self.all_sent()

    def send(self, message: bytes) -> None:
        """Send one response of several."""
        if self.is_decided:
            return
        if not self._has_head:
            self._has_head = True
            block = self._sender.first_block(_HEAD)
            self._sender.add(frame(HEADERS, END_HEADERS, self.id, block))
        self._sender.queue(self, pack(message))

    def finish(self, code: int, text: str = "", *, status: int = 200) -> None:
        """Send the status, after what is to be sent already.

        Args:
            code: the status code.
            text: its message.
            status: HTTP status, if nothing has been sent yet.
        """
        if self.is_decided:
            return
        self.is_decided = True
        block = literal(b"grpc-status", b"%d" % code)
        if text:
            block += literal(b"grpc-message", encode_message(text))
        if not self._has_head:
            block = self._sender.first_block(
                http_status(status) + _CONTENT_TYPE + _IDENTITY + block
            )
        ending = frame(HEADERS, END_HEADERS | END_STREAM, self.id, block)
        if not self.half_closed:
            ending += rst_stream(self.id, ErrorCode.NO_ERROR)
        self._sender.queue(self, b"", ending=ending)

    def break_off(self, code: int, text: str) -> None:
        """Send the status now, instead of what is still to be sent."""
        self._sender.drop(self)
        if self.is_decided or self.is_cut:
            self.reset(ErrorCode.CANCEL)
        else:
            self.finish(code, text)

    def expire(self) -> None:
        """Tell the client that its deadline has passed."""
        self.break_off(DeadlineExceeded.grpc_code, str(DeadlineExceeded(self.request.path)))
        self.session.flush()

    def reset(self, code: ErrorCode) -> None:
        """End the stream without a status."""
        if not self.is_over:
            self._sender.add(rst_stream(self.id, code))
            self.abandon()

    def abandon(self) -> None:
        """Send nothing more: the client has given up, or is gone."""
        if not self.is_over:
            self.is_decided = True
            self._sender.drop(self)
            self._end()

    def message_sent(self) -> None:
        """Let the handler go on."""
        if self._room is not None:
            self._room.release()

    def all_sent(self) -> None:
        """Be done: the client gets all of it."""
        self.session.count_answer()
        self._end()

    def _end(self) -> None:
        """End the call, but for a thread that may still be at work for it."""
        self.is_over = True
        self.token.cancel()
        self.message_sent()
        if self.timer is not None:
            self.timer.cancel()
        self.session.stream_over(self)

    def wait_for_room(self) -> None:
        """Wait, on the handler's thread, until another response can be sent.

        Raises:
            Cancelled, DeadlineExceeded: the client has given up.
            Unavailable: it takes nothing any more.
        """
        if self._room is not None and not self._room.acquire(timeout=_STALL):
            raise Unavailable(f"send a response: the client has taken nothing for {_STALL:.0f} s")
        self.token.check()
