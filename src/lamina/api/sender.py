"""The sending half of a connection: what may be written now, and what has to wait.

DATA frames wait for two windows, the stream's and the connection's, and for a peer that reads too
slowly; all other frames go out at once. Everything is gathered, and written in one piece.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable

from lamina.api.http2 import (
    DATA,
    DEFAULT_FRAME_SIZE,
    DEFAULT_WINDOW,
    MAX_WINDOW,
    ConnectionFault,
    ErrorCode,
    frame_header,
)

_WRITE = 64 * 1024
"""Bytes after which what is gathered is written, so that a peer that does not read is noticed."""


class Outgoing:
    """What a stream has to send. `window` may be negative, after the peer has made it smaller."""

    __slots__ = ("ending", "id", "messages", "sent", "window")

    def __init__(self, id: int, window: int, sent: Callable[[], object]) -> None:
        """Args: `sent` is called for each message when the last of it has gone out."""
        self.id = id
        self.window = window
        self.sent = sent
        self.messages: deque[memoryview] = deque()
        self.ending = b""


class Sender:
    """Gathers frames and keeps the windows; `write` gets what is to go to the socket."""

    def __init__(self, write: Callable[[bytes], object]) -> None:
        self._write = write
        self._gathered: list[bytes | memoryview] = []
        self._size = 0
        self._waiting: dict[int, Outgoing] = {}
        self.window = DEFAULT_WINDOW
        self.initial_window = DEFAULT_WINDOW
        self.frame_size = DEFAULT_FRAME_SIZE
        self.paused = False
        self._shrunk = False

    def first_block(self, block: bytes) -> bytes:
        """Return a response's first header block, with the notice that we use no table if due."""
        if not self._shrunk:
            return block
        self._shrunk = False
        return EMPTY_TABLE + block

    def fits(self, stream: Outgoing, size: int) -> bool:
        """Tell whether DATA of that size can go out as one frame, at once."""
        return (
            size <= self.window
            and size <= stream.window
            and size <= self.frame_size
            and not self.paused
            and not self._waiting
        )

    def add(self, frames: bytes) -> None:
        """Gather whole frames that no window holds back."""
        self._gathered.append(frames)
        self._size += len(frames)

    def add_data(self, stream: Outgoing, size: int, frames: bytes) -> None:
        """Gather whole frames with `size` bytes of DATA that `fits`."""
        self.window -= size
        stream.window -= size
        self.add(frames)

    def queue(self, stream: Outgoing, message: bytes, *, ending: bytes = b"") -> None:
        """Send a message as DATA as soon as possible, and after it frames that end the stream."""
        if message:
            stream.messages.append(memoryview(message))
        stream.ending = ending
        self._waiting[stream.id] = stream
        self.pump()

    def drop(self, stream: Outgoing) -> None:
        """Forget what the stream still has to send."""
        self._waiting.pop(stream.id, None)
        stream.messages.clear()

    def pump(self) -> None:
        """Gather what may go out now, of every stream a frame in turn."""
        waiting = list(self._waiting.values())
        while waiting and not self.paused:
            waiting = [stream for stream in waiting if self._advance(stream)]

    def flush(self) -> None:
        """Write what is gathered."""
        if self._gathered:
            gathered = b"".join(self._gathered)
            self._gathered.clear()
            self._size = 0
            self._write(gathered)

    def resize(self, streams: Iterable[Outgoing], initial_window: int) -> None:
        """Follow the peer's INITIAL_WINDOW_SIZE, which counts for open streams as well."""
        change = initial_window - self.initial_window
        self.initial_window = initial_window
        for stream in streams:
            stream.window = _checked(stream.window + change)
        self.pump()

    def enlarge(self, increment: int) -> None:
        """Let more go out on the connection."""
        self.window = _checked(self.window + increment)
        self.pump()

    def _advance(self, stream: Outgoing) -> bool:
        """Gather one frame of a stream; false if it has no more, or may not go on."""
        if stream.messages:
            message = stream.messages[0]
            size = min(len(message), self.window, stream.window, self.frame_size)
            if size <= 0:
                return False
            self.add(frame_header(DATA, 0, stream.id, size))
            self.add_data(stream, size, message[:size])
            if size < len(message):
                stream.messages[0] = message[size:]
            else:
                stream.messages.popleft()
                stream.sent()
            if self._size >= _WRITE:
                self.flush()
        if stream.messages:
            return True
        del self._waiting[stream.id]
        if stream.ending:
            self.add(stream.ending)
        return False


def enlarge_stream(stream: Outgoing, increment: int) -> bool:
    """Let more go out on a stream; false if the window would be larger than allowed."""
    stream.window += increment
    return stream.window <= MAX_WINDOW


def _checked(window: int) -> int:
    if window > MAX_WINDOW:
        raise ConnectionFault(ErrorCode.FLOW_CONTROL_ERROR, "a window of more than 2^31-1 bytes")
    return window
