"""The server's end of one HTTP/2 connection."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import TYPE_CHECKING

from lamina.api.headers import STATUS_200, HeaderDecoder, literal
from lamina.api.http2 import (
    ACK,
    DATA,
    END_STREAM,
    GOAWAY,
    HEADER_TABLE_SIZE,
    HEADERS,
    INITIAL_WINDOW_SIZE,
    MAX_CONCURRENT_STREAMS,
    MAX_FRAME_SIZE,
    MAX_HEADER_LIST_SIZE,
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
from lamina.api.message import unpack
from lamina.api.request import Malformed, parse_request
from lamina.api.sender import Sender, enlarge_stream
from lamina.api.status import to_status
from lamina.api.stream import Stream
from lamina.errors import LaminaError, NotImplementedHere

if TYPE_CHECKING:
    from lamina.api.dispatch import Dispatcher

log = logging.getLogger(__name__)

_STREAMS = 1000


class Connection(asyncio.Protocol):
    """What a client and its calls are to the server."""

    def __init__(self, dispatcher: Dispatcher) -> None:
        self._dispatcher = dispatcher
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._reader = FrameReader()
        self._decoder = HeaderDecoder()
        self._preface = PREFACE
        self._streams: dict[int, Stream] = {}
        self._last = 0
        self.sender = Sender(self._write)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._dispatcher.connections.add(self)
        self.sender.add(settings({MAX_CONCURRENT_STREAMS: _STREAMS, MAX_HEADER_LIST_SIZE: 65536}))
        self.sender.flush()

    def _write(self, data: bytes) -> None:
        if self._transport is not None:
            self._transport.write(data)

    def data_received(self, data: bytes) -> None:
        try:
            if self._preface:
                data = self._take_preface(data)
            for each in self._reader.feed(data):
                handler = _HANDLERS.get(each.type)
                if handler is not None:
                    handler(self, each)
        except ConnectionFault as fault:
            log.warning("connection closed: %s", fault)
            self.sender.add(goaway(self._last, fault.code, fault.reason))
            self.sender.flush()
            self._transport.close()
            return
        self.sender.flush()

    def _take_preface(self, data: bytes) -> bytes:
        known = self._preface[: len(data)]
        if not data.startswith(known):
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "not HTTP/2")
        self._preface = self._preface[len(known) :]
        return data[len(known) :]

    def _headers(self, each: Frame) -> None:
        fields = self._decoder.decode(each.payload)
        self._last = each.stream
        request = parse_request(fields)
        method = self._dispatcher.methods.get(request.path)
        stream = Stream(self, each.stream, method, request, self._loop.time())
        self._streams[each.stream] = stream
        stream.half_closed = bool(each.flags & END_STREAM)
        if method is None:
            stream.finish(12, f"unknown method {request.path}")

    def _data(self, each: Frame) -> None:
        if each.size:
            self.sender.add(window_update(0, each.size))
        stream = self._streams.get(each.stream)
        if stream is None:
            return
        stream.body += each.payload
        if not each.flags & END_STREAM:
            self.sender.add(window_update(each.stream, each.size))
            return
        stream.half_closed = True
        try:
            message = unpack(stream.body, stream.request.metadata.get("grpc-encoding", ""))
        except LaminaError as error:
            stream.finish(*to_status(error))
            return
        self._dispatcher.start(stream, message)

    def _settings(self, each: Frame) -> None:
        if each.flags & ACK:
            return
        for setting, value in parse_settings(each.payload):
            if setting == INITIAL_WINDOW_SIZE:
                self.sender.resize([s.outgoing for s in self._streams.values()], value)
            elif setting == MAX_FRAME_SIZE:
                self.sender.frame_size = value
        self.sender.add(frame(SETTINGS, ACK, 0))

    def _ping(self, each: Frame) -> None:
        if not each.flags & ACK:
            self.sender.add(frame(PING, ACK, 0, each.payload))

    def _window_update(self, each: Frame) -> None:
        increment = parse_increment(each.payload)
        if not each.stream:
            self.sender.enlarge(increment)
            return
        stream = self._streams.get(each.stream)
        if stream is not None:
            enlarge_stream(stream.outgoing, increment)
            self.sender.pump()

    def _rst_stream(self, each: Frame) -> None:
        stream = self._streams.get(each.stream)
        if stream is not None:
            stream.abandon()

    def ended(self, stream: Stream, code: int) -> None:
        self._streams.pop(stream.outgoing.id, None)

    def connection_lost(self, error: Exception | None) -> None:
        self._dispatcher.connections.discard(self)
        for stream in list(self._streams.values()):
            stream.abandon()

    def close(self) -> None:
        self._transport.close()


_HANDLERS: dict[int, Callable[[Connection, Frame], None]] = {
    DATA: Connection._data,
    HEADERS: Connection._headers,
    RST_STREAM: Connection._rst_stream,
    SETTINGS: Connection._settings,
    PING: Connection._ping,
    WINDOW_UPDATE: Connection._window_update,
}
