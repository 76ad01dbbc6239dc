"""One network block device: its requests, answered from a cache file, and its connections.

The kernel's end of the connection is a socket of a pair; the other end and the memory of the
requests are held by others too, so that the kernel does not notice the death of the process that
answers. At every instant a request is in the socket, in a slot, or answered. How much of an answer
was sent is noted in the request's slot by the call that sends it: the next process goes on at that
byte, and never answers twice.

No request is answered through another connection than it came through: the kernel may have sent it
again. It does that by itself, `TIMEOUTS.answer` after it was first sent, with what a broken
connection has left.
"""

from __future__ import annotations

import errno
import logging
import os
import socket
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple, Protocol

from lamina.errors import LaminaError
from lamina.lazy.gates import GatedFile
from lamina.lazy.gates.intake import SLOW_THREADS
from lamina.lazy.slots import Slots
from lamina.linux import nbd, sendmmsg
from lamina.linux.nbd import Request

log = logging.getLogger(__name__)

TIMEOUTS = nbd.Timeouts(answer=120, connection=30)
"""Longer than a fill takes, unless it is configured to: then it is asked for again. Where nobody is
left to answer, reads wait for both times at the most, and fail."""

SENDS = 7
"""Notes of a slot: an answer is begun once, and gone on with after kills in the middle of it."""
SLOT_SIZE = 32 + SENDS * sendmmsg.NOTE_SIZE
SLOT_COUNT = nbd.QUEUE_DEPTH * 2
"""More than the kernel has under way, since a slot is cleared a moment after the answer."""

_ROOM = SLOT_SIZE - nbd.REQUEST.size
_MAGIC_BYTES = 4
_ERROR = nbd.REQUEST.size
"""Where in a slot is the byte that says that the answer is an error, with nothing behind it."""
_NOTES = 32
_BUFFER_BYTES = 1 << 20
_PAUSE_SECONDS = 0.05
_LONGEST_PAUSE = 2.0


class Link(Protocol):
    """The connection of a device."""

    @property
    def connection(self) -> int:
        """The end that answers; the descriptor is another one when there was a new connection."""
        ...

    @property
    def memory(self) -> int:
        """Of `SLOT_COUNT` slots of `SLOT_SIZE`."""
        ...

    def reconnect(self) -> bool:
        """Replace a broken connection; False when the device is disconnected.

        Raises:
            OSError: just now it cannot be done.
        """
        ...

    def disconnect(self) -> None:
        """Have the kernel end the connection, and never ask for another."""
        ...


class _Taken(NamedTuple):
    """A request in its slot, and which connection it came through."""

    connection: int
    position: int
    slot: memoryview
    request: Request


class NbdDevice:
    """Answers for one device, in threads of its own, until it is disconnected.

    Args:
        file: what is read.
        link: the connection.

    Attributes:
        is_over: there will never be a request again.
    """

    def __init__(self, file: GatedFile, link: Link) -> None:
        self.is_over = False
        self._file = file
        self._size = file.filler.size
        self._data = os.open(file.path, os.O_RDONLY | os.O_CLOEXEC)
        self._link = link
        self._slots = Slots(link.memory, SLOT_SIZE, room=_ROOM)
        self._left = list(self._slots.left())
        # Held to send, and to change the connection: answers never mix.
        self._lock = threading.Lock()
        self._connections = 0
        self._closing = False
        self._buffer = bytearray(_BUFFER_BYTES)
        name = f"nbd-{file.number}"
        self._pool = ThreadPoolExecutor(SLOW_THREADS, thread_name_prefix=f"{name}-fill")
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        """Answer the requests that were left, and those to come."""
        self._thread.start()

    def later(self, work: Callable[..., None], *arguments: object) -> None:
        """Have another thread do what may wait."""
        self._pool.submit(_logged, work, *arguments)

    def close(self) -> None:
        """Disconnect the device; return when no thread takes requests any more."""
        with self._lock:
            self._closing = True
        self._link.disconnect()
        self._thread.join()
        # Fills may take their time; what they were for has failed.
        threading.Thread(target=self._close_data, daemon=True).start()

    def _close_data(self) -> None:
        self._pool.shutdown()
        os.close(self._data)

    def _run(self) -> None:
        try:
            self._answer_left()
            while not self._serve():
                if not self._reconnect():
                    break
        except Exception:
            log.exception("cannot serve a network block device")
        self.is_over = True

    def _answer_left(self) -> None:
        """Go on with the answer that was being sent, before any other; then with all that wait."""
        waiting = []
        for index, slot in self._left:
            taken = _Taken(0, index, slot, nbd.parse_request(slot))
            sent = _sent(slot)
            if sent == _answer_bytes(taken):
                self._slots.clear(index)
            elif sent:
                self._go_on(taken, sent)
            else:
                waiting.append(taken)
        for taken in waiting:
            self.later(self._fill, taken)

    def _go_on(self, taken: _Taken, sent: int) -> None:
        """Send the rest of an answer; if that cannot be, the kernel is to ask again."""
        unused = (number for number in range(SENDS) if not _noted(taken.slot, number))
        number = next(unused, SENDS)
        content = bytearray(taken.request.length)
        request = taken.request
        if number == SENDS or not self._filled(request) or not self._read(request, content):
            _shut(self._link.connection)
            return
        answer = bytearray(nbd.reply_head(request.handle)) + content
        self._send(taken, number, [memoryview(answer)[sent:]])

    def _serve(self) -> bool:
        """Take requests as long as the connection lasts; True when the kernel says good-bye."""
        fd = self._link.connection
        while True:
            if self._slots.is_full:
                time.sleep(_PAUSE_SECONDS)
                continue
            try:
                found = self._slots.take(fd, note=bytes(_ROOM))
            except ConnectionResetError:
                return False
            if found is None:
                continue
            index, slot = found
            if not any(slot[:_MAGIC_BYTES]):
                self._slots.clear(index)
                return False
            taken = _Taken(self._connections, index, slot, nbd.parse_request(slot))
            if taken.request.kind == nbd.DISC:
                self._slots.clear(index)
                return True
            if taken.request.kind != nbd.READ:
                # What follows a request to write is no request.
                log.error("the kernel wants more than to read: command %d", taken.request.kind)
                _shut(fd)
                return False
            self._handle(taken)

    def _handle(self, taken: _Taken) -> None:
        """Answer a read that need not wait, and have any other answered later."""
        file, request = self._file, taken.request
        start, stop = self._range(request)
        if request.length > len(self._buffer) or not file.filler.is_local(start, stop):
            self.later(self._fill, taken)
            return
        self._answer(taken, memoryview(self._buffer)[: request.length])
        if file.is_news(start, stop) and not file.filler.is_complete:
            self.later(file.follow, start, stop)

    def _fill(self, taken: _Taken) -> None:
        if taken.connection != self._connections or self._closing:
            return
        if taken.request.length <= nbd.MAX_READ and self._filled(taken.request):
            self._answer(taken, memoryview(bytearray(taken.request.length)))
        else:
            self._fail(taken)

    def _filled(self, request: Request) -> bool:
        """Have what a request asks for in the file; False if that fails."""
        start, stop = self._range(request)
        try:
            self._file.filler.fill(start, stop)
        except (LaminaError, OSError) as error:
            log.warning("cannot fill bytes %d to %d: %s", start, stop, error,
                        extra={"path": str(self._file.path)})  # fmt: skip
        except Exception:
            log.exception("cannot fill", extra={"path": str(self._file.path)})
        else:
            return True
        return False

    def _answer(self, taken: _Taken, content: memoryview) -> None:
        """Answer with bytes that are local; `content` is as long as they are."""
        if not self._read(taken.request, content):
            self._fail(taken)
            return
        head = bytearray(nbd.reply_head(taken.request.handle))
        self._reply(taken, [head, content] if content else [head])

    def _fail(self, taken: _Taken) -> None:
        head = bytearray(nbd.reply_head(taken.request.handle, errno.EIO))
        self._reply(taken, [head], error=True)

    def _reply(
        self, taken: _Taken, buffers: list[bytearray | memoryview], *, error: bool = False
    ) -> None:
        with self._lock:
            if taken.connection == self._connections:  # else the slot may be another request's
                taken.slot[_ERROR] = error
                self._send(taken, 0, buffers)

    def _send(self, taken: _Taken, number: int, buffers: list[bytearray | memoryview]) -> None:
        """Send an answer, or the rest of it, and forget the request."""
        fd = self._link.connection
        try:
            sent = sendmmsg.send(fd, _note(taken.slot, number), buffers)
        except (BrokenPipeError, ConnectionResetError):
            return  # the requests end, too
        if sent == sum(map(len, buffers)):
            self._slots.clear(taken.position)
        else:
            _shut(fd)  # it broke in the middle

    def _range(self, request: Request) -> tuple[int, int]:
        """Return which bytes of the file a request asks for: it may end within a sector."""
        end = request.offset + request.length
        return min(request.offset, self._size), min(end, self._size)

    def _read(self, request: Request, content: bytearray | memoryview) -> bool:
        """Read what a request asks for, and zeros behind the file's end; False if that fails."""
        start, stop = self._range(request)
        view, length = memoryview(content), stop - start
        try:
            read = os.preadv(self._data, [view[:length]], start) if length else 0
        except OSError as error:
            log.warning("cannot read bytes %d to %d: %s", start, stop, error,
                        extra={"path": str(self._file.path)})  # fmt: skip
            return False
        view[length:] = bytes(len(view) - length)
        return read == length

    def _reconnect(self) -> bool:
        """Forget what came through the broken connection, and have another; False for no more."""
        pause = _PAUSE_SECONDS
        with self._lock:
            self._connections += 1
            for index, _ in list(self._slots.left()):
                self._slots.clear(index)
        while True:
            try:
                with self._lock:
                    return not self._closing and self._link.reconnect()
            except OSError as error:  # as when the holder has died
                log.warning("cannot connect a network block device again: %s", error,
                            extra={"path": str(self._file.path)})  # fmt: skip
            time.sleep(pause)
            pause = min(pause * 2, _LONGEST_PAUSE)


def _shut(fd: int) -> None:
    """End a connection, for every process that has it."""
    with socket.socket(fileno=os.dup(fd)) as end:
        try:
            end.shutdown(socket.SHUT_RDWR)
        except OSError as error:
            if error.errno != errno.ENOTCONN:
                raise


def _note(slot: memoryview, number: int) -> memoryview:
    start = _NOTES + number * sendmmsg.NOTE_SIZE
    return slot[start : start + sendmmsg.NOTE_SIZE]


def _noted(slot: memoryview, number: int) -> int:
    return sendmmsg.sent_bytes(_note(slot, number))


def _sent(slot: memoryview) -> int:
    return sum(_noted(slot, number) for number in range(SENDS))


def _answer_bytes(taken: _Taken) -> int:
    return nbd.REPLY.size + (0 if taken.slot[_ERROR] else taken.request.length)


def _logged(work: Callable[..., None], *arguments: object) -> None:
    """Do it; a fault in one request must not go unseen."""
    try:
        work(*arguments)
    except Exception:
        log.exception("cannot answer a request of the kernel")
