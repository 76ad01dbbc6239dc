"""HTTP/2 frames (RFC 9113), as far as both ends of a gRPC connection share them.

`FrameReader` cuts a byte stream into frames and keeps from its caller what only matters on the
wire: padding, priorities, and header blocks that come in pieces. The functions below it make
frames. All numbers are big-endian.
"""

from __future__ import annotations

import enum
from collections.abc import Iterator
from struct import Struct
from typing import Final, NamedTuple

PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"

DATA: Final = 0
HEADERS: Final = 1
PRIORITY: Final = 2
RST_STREAM: Final = 3
SETTINGS: Final = 4
PUSH_PROMISE: Final = 5
PING: Final = 6
GOAWAY: Final = 7
WINDOW_UPDATE: Final = 8
CONTINUATION: Final = 9

END_STREAM: Final = 0x1
ACK: Final = 0x1
END_HEADERS: Final = 0x4
PADDED: Final = 0x8
PRIORITISED: Final = 0x20

HEADER_TABLE_SIZE: Final = 1
ENABLE_PUSH: Final = 2
MAX_CONCURRENT_STREAMS: Final = 3
INITIAL_WINDOW_SIZE: Final = 4
MAX_FRAME_SIZE: Final = 5
MAX_HEADER_LIST_SIZE: Final = 6

DEFAULT_WINDOW: Final = 65_535
DEFAULT_FRAME_SIZE: Final = 16_384
DEFAULT_TABLE_SIZE: Final = 4_096
MAX_WINDOW: Final = 2**31 - 1
MAX_STREAM: Final = 2**31 - 1
HEADER_LIST_LIMIT: Final = 64 * 1024
"""Bytes of header fields that either end takes in one header block."""

_HEADER = Struct(">LBL")
_SETTING = Struct(">HL")
_WORD = Struct(">L")
_TWO_WORDS = Struct(">LL")
_HEADER_SIZE = _HEADER.size
_SIZES = {PRIORITY: 5, RST_STREAM: 4, PING: 8, WINDOW_UPDATE: 4}
assert (_HEADER_SIZE, _SETTING.size) == (9, 6)


class ErrorCode(enum.IntEnum):
    """Error codes of RST_STREAM and GOAWAY (RFC 9113, section 7)."""

    NO_ERROR = 0
    PROTOCOL_ERROR = 1
    INTERNAL_ERROR = 2
    FLOW_CONTROL_ERROR = 3
    SETTINGS_TIMEOUT = 4
    STREAM_CLOSED = 5
    FRAME_SIZE_ERROR = 6
    REFUSED_STREAM = 7
    CANCEL = 8
    COMPRESSION_ERROR = 9
    CONNECT_ERROR = 10
    ENHANCE_YOUR_CALM = 11
    INADEQUATE_SECURITY = 12
    HTTP_1_1_REQUIRED = 13


class ConnectionFault(Exception):
    """The peer breaks a rule in a way that ends the connection."""

    def __init__(self, code: ErrorCode, reason: str) -> None:
        super().__init__(f"{code.name}: {reason}")
        self.code = code
        self.reason = reason


class Frame(NamedTuple):
    """A frame without its padding and priority.

    Attributes:
        type: DATA, HEADERS, ...; never CONTINUATION, and PRIORITY and unknown ones never come up.
        flags: of these only END_STREAM and ACK are left to look at.
        stream: the stream's id; 0 is the connection.
        payload: what is in it; of HEADERS the whole header block.
        size: bytes that flow control counts.
    """

    type: int
    flags: int
    stream: int
    payload: bytes
    size: int


class FrameReader:
    """Cuts what arrives into frames. After a ConnectionFault it must not be fed again."""

    def __init__(self) -> None:
        self._rest = b""
        self._block: bytearray | None = None
        self._block_start = Frame(HEADERS, 0, 0, b"", 0)

    def feed(self, data: bytes) -> Iterator[Frame]:
        """Yield the frames that `data` completes; the iterator has to be used up.

        Raises:
            ConnectionFault: a frame is malformed, or not allowed where it is.
        """
        buffer = self._rest + data if self._rest else data
        position, end = 0, len(buffer)
        while end - position >= _HEADER_SIZE:
            length_and_type, flags, stream = _HEADER.unpack_from(buffer, position)
            length = length_and_type >> 8
            if length > DEFAULT_FRAME_SIZE:
                raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, f"a frame of {length} bytes")
            start = position + _HEADER_SIZE
            position = start + length
            if position > end:
                position = start - _HEADER_SIZE
                break
            payload = buffer[start:position]
            found = self._frame(length_and_type & 0xFF, flags, stream & MAX_STREAM, payload)
            if found is not None:
                yield found
        self._rest = buffer[position:]

    def _frame(self, type: int, flags: int, stream: int, payload: bytes) -> Frame | None:
        if self._block is not None:
            return self._continuation(type, flags, stream, payload)
        size = len(payload)
        if type in {DATA, HEADERS}:
            if stream == 0:
                raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "a stream's frame on stream 0")
            if flags & (PADDED | PRIORITISED):
                payload = _bare(type, flags, payload)
            found = Frame(type, flags, stream, payload, size)
            if type == HEADERS and not flags & END_HEADERS:
                self._block = bytearray(payload)
                self._block_start = found
                return None
            return found
        _check_control(type, stream, size)
        if type == PRIORITY or type > CONTINUATION:
            return None
        return Frame(type, flags, stream, payload, size)

    def _continuation(self, type: int, flags: int, stream: int, payload: bytes) -> Frame | None:
        start = self._block_start
        if type != CONTINUATION or stream != start.stream or self._block is None:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "a frame inside a header block")
        self._block += payload
        # An empty piece counts as well: an endless row of them is no header block either.
        size = start.size + len(payload) + _HEADER_SIZE
        if size > HEADER_LIST_LIMIT:
            raise ConnectionFault(ErrorCode.ENHANCE_YOUR_CALM, "header block too large")
        self._block_start = start._replace(size=size)
        if not flags & END_HEADERS:
            return None
        block, self._block = bytes(self._block), None
        return start._replace(payload=block)


def _bare(type: int, flags: int, payload: bytes) -> bytes:
    """Take padding, and of HEADERS the priority, off a payload."""
    start, padding = 0, 0
    if flags & PADDED:
        start, padding = 1, payload[0] if payload else 1
    if flags & PRIORITISED and type == HEADERS:
        start += 5
    if start + padding > len(payload):
        raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "padding longer than its frame")
    return payload[start : len(payload) - padding]


def _check_control(type: int, stream: int, size: int) -> None:
    """Check what can be told without the connection's state of anything but DATA and HEADERS."""
    if size != _SIZES.get(type, size):
        raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, f"frame type {type} of {size} bytes")
    if type in {SETTINGS, PING, GOAWAY} and stream:
        raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "the connection's frame on a stream")
    if type in {PRIORITY, RST_STREAM} and not stream:
        raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "a stream's frame on stream 0")
    if type in {PUSH_PROMISE, CONTINUATION}:
        raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, f"unexpected frame of type {type}")


def parse_settings(payload: bytes) -> Iterator[tuple[int, int]]:
    """Yield identifier and value of each setting.

    Raises:
        ConnectionFault: the payload, or the value of a known setting, is not allowed.
    """
    if len(payload) % _SETTING.size:
        raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, f"SETTINGS of {len(payload)} bytes")
    for setting, value in _SETTING.iter_unpack(payload):
        if setting == INITIAL_WINDOW_SIZE and value > MAX_WINDOW:
            raise ConnectionFault(ErrorCode.FLOW_CONTROL_ERROR, f"initial window of {value}")
        if setting == MAX_FRAME_SIZE and not DEFAULT_FRAME_SIZE <= value < 2**24:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, f"maximum frame size {value}")
        if setting == ENABLE_PUSH and value > 1:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, f"ENABLE_PUSH {value}")
        yield setting, value


def parse_word(payload: bytes) -> int:
    """Return the number that RST_STREAM (an error code) or WINDOW_UPDATE (bytes) consists of."""
    word: int = _WORD.unpack(payload)[0]
    return word


def parse_increment(payload: bytes) -> int:
    """Return by how many bytes a WINDOW_UPDATE enlarges a window; 0 is for the caller to refuse."""
    return parse_word(payload) & MAX_WINDOW


def parse_goaway(payload: bytes) -> tuple[int, int, str]:
    """Return last stream id, error code and debug text of a GOAWAY."""
    if len(payload) < _TWO_WORDS.size:
        raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, f"GOAWAY of {len(payload)} bytes")
    last, code = _TWO_WORDS.unpack_from(payload)
    return last & MAX_STREAM, code, payload[_TWO_WORDS.size :].decode(errors="replace")


def frame(type: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    """Make a frame."""
    return _HEADER.pack(len(payload) << 8 | type, flags, stream) + payload


def frame_header(type: int, flags: int, stream: int, length: int) -> bytes:
    """Make the nine bytes before a payload."""
    return _HEADER.pack(length << 8 | type, flags, stream)


def settings(values: dict[int, int]) -> bytes:
    """Make a SETTINGS frame."""
    return frame(SETTINGS, 0, 0, b"".join(_SETTING.pack(*item) for item in values.items()))


def rst_stream(stream: int, code: int) -> bytes:
    """Make an RST_STREAM frame."""
    return frame(RST_STREAM, 0, stream, _WORD.pack(code))


def window_update(stream: int, increment: int) -> bytes:
    """Make a WINDOW_UPDATE frame."""
    return frame(WINDOW_UPDATE, 0, stream, _WORD.pack(increment))


def goaway(last: int, code: int, reason: str = "") -> bytes:
    """Make a GOAWAY frame; `last` is the highest stream id that is, or will be, looked at."""
    return frame(GOAWAY, 0, 0, _TWO_WORDS.pack(last, code) + reason.encode()[:1024])
