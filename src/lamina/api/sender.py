"""The sending half of the server's end of a connection: what may go out now, and what has to wait.

DATA waits for two windows, the stream's and the connection's, and for a peer that is slow to read;
all other frames go out at once. Everything is gathered, to be written in one piece.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable

from lamina.api.headers import EMPTY_TABLE
from lamina.api.http2 import (
    DATA,
    DEFAULT_FRAME_SIZE,
    DEFAULT_TABLE_SIZE,
    DEFAULT_WINDOW,
    MAX_WINDOW,
    ConnectionFault,
    ErrorCode,
    frame_header,
)

_WRITE = 64 * 1024
"""Bytes after which what is gathered is written, so that a peer that does not read is noticed."""
_FRAME = 128 * 1024
"""Bytes of DATA in one frame at most, even if the peer takes larger ones: streams take turns."""


class Outgoing:
    """What a stream has to send."""

    def __init__(self, id: int, window: int) -> None:
        self.id = id
        self.window = window  # negative after the peer has made it smaller
        self.waiting: deque[memoryview] = deque()
        self.ending = b""
        self.is_cut = False
        """The front message has gone out in part."""

    def message_sent(self) -> None:
        """Hook: one message has gone out."""

    def all_sent(self) -> None:
        """Hook: the stream has ended on our side."""


class Sender:
    """Gathers frames and keeps the windows; `write` gets what is to go to the socket."""

    def __init__(self, write: Callable[[bytes], object]) -> None:
        self._write = write
        self._gathered: list[bytes | memoryview] = []
        self._size = 0
        self._streams: dict[int, Outgoing] = {}
        self._is_table_used = True
        self._prefix = b""
        self._window = DEFAULT_WINDOW
        self.initial_window = DEFAULT_WINDOW
        self.frame_size = DEFAULT_FRAME_SIZE
        self.paused = False

    def add(self, frames: bytes) -> None:
        """Gather whole frames that no window holds back."""
        self._gathered.append(frames)
        self._size += len(frames)

    def fits(self, stream: Outgoing, size: int) -> bool:
        """Tell whether DATA of that size may go out at once, in one frame."""
        return (
            size <= self._window
            and size <= stream.window
            and size <= self.frame_size
            and not self._streams
            and not self.paused
        )

    def add_data(self, stream: Outgoing, size: int, frames: bytes) -> None:
        """Gather whole frames, `size` bytes of DATA that `fits` among them."""
        self._window -= size
        stream.window -= size
        self.add(frames)

    def queue(self, stream: Outgoing, message: bytes, *, ending: bytes = b"") -> None:
        """Send a message as soon as possible, and after it the frames that end the stream."""
        if message:
            stream.waiting.append(memoryview(message))
        stream.ending = ending
        self._streams[stream.id] = stream
        self.pump()

    def drop(self, stream: Outgoing) -> None:
        """Forget what the stream still has to send."""
        self._streams.pop(stream.id, None)
        stream.waiting.clear()
        stream.ending = b""

    def pump(self) -> None:
        """Gather what may go out by now, a frame of every stream in turn."""
        streams = list(self._streams.values())
        while streams and not self.paused:
            streams = [stream for stream in streams if self._advance(stream)]

    def flush(self) -> None:
        """Write what is gathered."""
        if self._gathered:
            gathered = b"".join(self._gathered)
            self._gathered.clear()
            self._size = 0
            self._write(gathered)

    def first_block(self, block: bytes) -> bytes:
        """Return a response's first header block, led by what HPACK wants to be said first."""
        if not self._prefix:
            return block
        prefix, self._prefix = self._prefix, b""
        return prefix + block

    def set_table_size(self, size: int) -> None:
        """Follow the peer's HEADER_TABLE_SIZE: one that shrinks must be acknowledged, once.

        We use no table; having said that, no smaller one needs an answer.
        """
        if size < DEFAULT_TABLE_SIZE and self._is_table_used:
            self._is_table_used = False
            self._prefix = EMPTY_TABLE

    def set_frame_size(self, size: int) -> None:
        """Follow the peer's MAX_FRAME_SIZE."""
        self.frame_size = min(size, _FRAME)

    def set_initial_window(self, streams: Iterable[Outgoing], window: int) -> None:
        """Follow the peer's INITIAL_WINDOW_SIZE, which changes the windows of open streams too.

        Nothing goes out here: the peer counts on a larger window only once it has seen the
        acknowledgement (RFC 9113, 6.5.3), so that comes first, and `pump` after it.
        """
        change = window - self.initial_window
        self.initial_window = window
        for stream in streams:
            stream.window = _checked(stream.window + change)

    def enlarge(self, increment: int) -> None:
        """Let more go out on the connection."""
        self._window = _checked(self._window + increment)
        self.pump()

    def enlarge_stream(self, stream: Outgoing, increment: int) -> bool:
        """Let more go out on a stream; false if that is more than a window can be."""
        stream.window += increment
        if stream.window > MAX_WINDOW:
            return False
        while not self.paused and stream.id in self._streams and self._advance(stream):
            pass
        return True

    def _advance(self, stream: Outgoing) -> bool:
        """Gather one frame of a stream; false if there is no more, or it may not go out yet."""
        if stream.waiting:
            message = stream.waiting[0]
            size = min(len(message), self._window, stream.window, self.frame_size)
            if size <= 0:
                return False
            self._gathered += (frame_header(DATA, 0, stream.id, size), message[:size])
            self._size += size
            self._window -= size
            stream.window -= size
            stream.is_cut = size < len(message)
            if stream.is_cut:
                stream.waiting[0] = message[size:]
            else:
                stream.waiting.popleft()
                stream.message_sent()
            if self._size >= _WRITE:
                self.flush()
        if stream.waiting:
            return True
        del self._streams[stream.id]
        if stream.ending:
            self.add(stream.ending)
            stream.all_sent()
        return False


def _checked(window: int) -> int:
    if window > MAX_WINDOW:
        raise ConnectionFault(ErrorCode.FLOW_CONTROL_ERROR, "a window of more than 2^31-1 bytes")
    return window
