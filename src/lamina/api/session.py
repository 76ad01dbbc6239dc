"""What a client and the server say to each other on one connection (RFC 9113).

No socket and no waiting here: frames go in, calls come out, and what they answer is gathered.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import TYPE_CHECKING

from lamina.api.http2 import (
    ACK,
    DATA,
    DEFAULT_WINDOW,
    END_STREAM,
    HEADER_LIST_LIMIT,
    HEADER_TABLE_SIZE,
    HEADERS,
    INITIAL_WINDOW_SIZE,
    MAX_CONCURRENT_STREAMS,
    MAX_FRAME_SIZE,
    MAX_HEADER_LIST_SIZE,
    MAX_STREAM,
    PING,
    PREFACE,
    RST_STREAM,
    SETTINGS,
    WINDOW_UPDATE,
    ConnectionFault,
    ErrorCode,
    Frame,
    FrameReader,
    frame,
    goaway,
    parse_increment,
    parse_settings,
    rst_stream,
    settings,
    window_update,
)
from lamina.api.message import MESSAGE_LIMIT, PREFIX_SIZE, unpack
from lamina.api.request import Malformed, Request, RequestDecoder
from lamina.api.sender import Sender
from lamina.api.status import to_status
from lamina.api.stream import RECEIVE_WINDOW, Stream
from lamina.api.window import ReceiveWindow
from lamina.errors import LaminaError, NotImplementedHere, ResourceExhausted, Unavailable

if TYPE_CHECKING:
    from lamina.api.dispatch import Dispatcher

log = logging.getLogger(__name__)

STREAMS = 1000
"""Calls that a client may have open at a time; those it has given up count as long as they run."""
RESETS = 1000
"""Calls that may end by a reset, more than end otherwise, before a client is sent away."""

_CONNECTION_WINDOW = 4 * RECEIVE_WINDOW
_HEARD = b"goodbye?"
"""What a PING carries whose answer says that the client has heard of the end."""

_LOGGED_PATH = 200
_STOPPING = "the server is stopping"

GREETING = settings(
    {
        MAX_CONCURRENT_STREAMS: STREAMS,
        INITIAL_WINDOW_SIZE: RECEIVE_WINDOW,
        MAX_HEADER_LIST_SIZE: HEADER_LIST_LIMIT,
    }
) + window_update(0, _CONNECTION_WINDOW - DEFAULT_WINDOW)


class Session:
    """One client's calls.

    Args:
        dispatcher: has the methods, and runs them.
        write: gets what is to go to the client.
        finished: called when the session is over because the server is stopping.

    Attributes:
        peer: the client's process; 0 where this process cannot see it.
    """

    def __init__(
        self,
        dispatcher: Dispatcher,
        *,
        write: Callable[[bytes], None],
        finished: Callable[[], None],
    ) -> None:
        self.sender = Sender(write)
        self.peer = 0
        self.is_introduced = False
        self._dispatcher = dispatcher
        self._finished = finished
        self._loop = asyncio.get_running_loop()
        self._preface = PREFACE
        self._reader = FrameReader()
        self._requests = RequestDecoder()
        self._window = ReceiveWindow(_CONNECTION_WINDOW)
        self._streams: dict[int, Stream] = {}
        self._slots = 0  # streams that are not over, or whose thread is still at work
        self._last = 0
        self._resets = 0
        self._is_draining = False

    def take(self, data: bytes) -> None:
        """Deal with what the client has sent.

        Raises:
            ConnectionFault: it breaks a rule, so that there is nothing left to say but `give_up`.
        """
        if self._preface:
            known = self._preface[: len(data)]
            if not data.startswith(known):
                raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "this is not HTTP/2")
            self._preface = self._preface[len(known) :]
            data = data[len(known) :]
        for each in self._reader.feed(data):
            if not self.is_introduced and each.type != SETTINGS:
                raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "the first frame is not SETTINGS")
            handler = _HANDLERS.get(each.type)
            if handler is not None:
                handler(self, each)

    def flush(self) -> None:
        """Write what is gathered, and finish if there is nothing more to come."""
        self.sender.flush()
        if self._is_draining and not self._streams:
            self._finished()

    def give_up(self, fault: ConnectionFault) -> None:
        """Abandon all calls, and tell the client why."""
        self.abandon_all()
        self.sender.add(goaway(self._last, fault.code, fault.reason))

    def abandon_all(self) -> None:
        """Cancel all calls: there is nobody to answer."""
        for stream in list(self._streams.values()):
            stream.abandon()

    # Stopping

    def announce_goodbye(self) -> None:
        """Ask for no more calls, and for an answer to that; those on their way are still taken."""
        self.sender.add(goaway(MAX_STREAM, ErrorCode.NO_ERROR, _STOPPING))
        self.sender.add(frame(PING, 0, 0, _HEARD))

    def say_goodbye(self) -> None:
        """Refuse all calls from here on."""
        if not self._is_draining:
            self._is_draining = True
            self.sender.add(goaway(self._last, ErrorCode.NO_ERROR, _STOPPING))

    def break_off(self) -> None:
        """End all calls with UNAVAILABLE."""
        self.say_goodbye()
        text = str(Unavailable(f"finish the call: {_STOPPING}"))
        for stream in list(self._streams.values()):
            stream.break_off(Unavailable.grpc_code, text)

    # Called by streams and the dispatcher

    def stream_over(self, stream: Stream) -> None:
        """Forget a stream whose client has got all of it, or will not."""
        del self._streams[stream.id]
        if not stream.is_running:
            self.free(stream)

    def count_answer(self) -> None:
        """Balance a reset by a call that has been answered."""
        if self._resets:
            self._resets -= 1

    def free(self, stream: Stream) -> None:
        """Take back what a call occupied, now that it is over and no thread is at work for it."""
        self._slots -= 1
        self._dispatcher.hold(stream, 0)

    # Frames of the connection

    def _settings(self, each: Frame) -> None:
        if each.flags & ACK:
            return
        self.is_introduced = True
        for setting, value in parse_settings(each.payload):
            if setting == INITIAL_WINDOW_SIZE:
                self.sender.set_initial_window(self._streams.values(), value)
            elif setting == HEADER_TABLE_SIZE:
                self.sender.set_table_size(value)
            elif setting == MAX_FRAME_SIZE:
                self.sender.set_frame_size(value)
        self.sender.add(frame(SETTINGS, ACK, 0))
        self.sender.pump()

    def _ping(self, each: Frame) -> None:
        if not each.flags & ACK:
            self.sender.add(frame(PING, ACK, 0, each.payload))
        elif each.payload == _HEARD:
            self.say_goodbye()

    # Streams

    def _headers(self, each: Frame) -> None:
        if each.stream <= self._last:
            self._trailers(each)
            return
        if each.stream % 2 == 0:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, f"a request on stream {each.stream}")
        try:
            request = self._requests.decode(each.payload)
        except Malformed as error:
            log.debug("request refused: %s", error)
            self._refuse(each.stream, ErrorCode.PROTOCOL_ERROR)
            return
        if self._slots >= STREAMS or self._is_draining:
            self._refuse(each.stream, ErrorCode.REFUSED_STREAM)
            return
        self._last = each.stream
        self._open(each, request)

    def _open(self, each: Frame, request: Request) -> None:
        now = self._loop.time()
        method = self._dispatcher.methods.get(request.path)
        stream = Stream(self, each.stream, request, method, now)
        stream.half_closed = bool(each.flags & END_STREAM)
        self._streams[each.stream] = stream
        self._slots += 1
        if request.refusal is not None:
            status, code, text = request.refusal
            stream.finish(code, text, status=status)
        elif method is None:
            fields = {"method": request.path[:_LOGGED_PATH], "code": "Unimplemented"}
            log.info("call of an unknown method", extra=fields)
            stream.finish(*to_status(NotImplementedHere("call method", request.path)))
        elif stream.half_closed:
            self._request_complete(stream)
        elif stream.token.deadline is not None:
            stream.timer = self._loop.call_at(stream.token.deadline, stream.expire)

    def _refuse(self, stream: int, code: ErrorCode) -> None:
        """Reset a stream that never comes to be a call."""
        self._last = stream
        self._count_reset()
        self.sender.add(rst_stream(stream, code))

    def _trailers(self, each: Frame) -> None:
        """Take header fields after a request's message; gRPC has no use for any."""
        self._requests.skip(each.payload)
        stream = self._known(each)
        if not each.flags & END_STREAM or (stream is not None and stream.half_closed):
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, f"stream {each.stream} is used again")
        if stream is not None and not stream.is_decided:
            self._request_complete(stream)

    def _data(self, each: Frame) -> None:
        stream = self._known(each)
        increment = self._window.take(each.size)
        if increment:
            self.sender.add(window_update(0, increment))
        if stream is None or stream.is_decided:
            return
        if stream.half_closed:
            self._reset(stream, ErrorCode.STREAM_CLOSED)
            return
        if each.flags & END_STREAM:
            self._request_complete(stream, each.payload)
            return
        stream.body = stream.body or bytearray()
        stream.body += each.payload
        increment = stream.receive_window.take(each.size)
        if increment:
            self.sender.add(window_update(stream.id, increment))
        self._hold(stream, stream.held + len(each.payload))

    def _hold(self, stream: Stream, size: int) -> None:
        if size > MESSAGE_LIMIT + PREFIX_SIZE:
            error = ResourceExhausted(f"read a message of more than {MESSAGE_LIMIT} bytes")
        elif not self._dispatcher.hold(stream, size):
            error = ResourceExhausted("read a message: too many large ones are on their way")
        else:
            return
        stream.body = None
        stream.finish(*to_status(error))

    def _request_complete(self, stream: Stream, last: bytes = b"") -> None:
        stream.half_closed = True
        body = last
        if stream.body is not None:
            stream.body += last
            body, stream.body = bytes(stream.body), None
        try:
            message = unpack(body, stream.request.encoding)
        except LaminaError as error:
            stream.finish(*to_status(error))
            return
        self._dispatcher.start(stream, message)

    def _window_update(self, each: Frame) -> None:
        increment = parse_increment(each.payload)
        stream = self._known(each) if each.stream else None
        if stream is not None:
            if not increment:
                self._reset(stream, ErrorCode.PROTOCOL_ERROR)
            elif not self.sender.enlarge_stream(stream, increment):
                self._reset(stream, ErrorCode.FLOW_CONTROL_ERROR)
        elif not each.stream:
            if not increment:
                raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "a WINDOW_UPDATE of 0 bytes")
            self.sender.enlarge(increment)

    def _rst_stream(self, each: Frame) -> None:
        stream = self._known(each)
        if stream is not None:
            self._count_reset()
            stream.abandon()

    def _reset(self, stream: Stream, code: ErrorCode) -> None:
        """Reset a stream whose client breaks a rule."""
        self._count_reset()
        stream.reset(code)

    def _known(self, each: Frame) -> Stream | None:
        """Return the frame's stream; None if that is over."""
        stream = self._streams.get(each.stream)
        if stream is None and (each.stream > self._last or each.stream % 2 == 0):
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, f"stream {each.stream} is not open")
        return stream

    def _count_reset(self) -> None:
        self._resets += 1
        if self._resets > RESETS:
            raise ConnectionFault(ErrorCode.ENHANCE_YOUR_CALM, "too many calls are cancelled")


_HANDLERS: dict[int, Callable[[Session, Frame], None]] = {
    DATA: Session._data,
    HEADERS: Session._headers,
    RST_STREAM: Session._rst_stream,
    SETTINGS: Session._settings,
    PING: Session._ping,
    WINDOW_UPDATE: Session._window_update,
}
"""What to do with a frame; a GOAWAY needs nothing, as we open no streams."""
