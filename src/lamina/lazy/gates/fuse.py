"""The gate `fuse`: cache files as the files of a FUSE filesystem that is mounted for nothing else.

Reads of what is not local wait for the filler; a read whose server is gone fails with ENOTCONN,
never with wrong bytes. All state is in the numbers: node N + 1 is the file `N`, so that a new
process serves an old mount without knowing what was looked up or opened before.
"""

from __future__ import annotations

import errno
import logging
import os
import threading
from pathlib import Path

from lamina.errors import LaminaError
from lamina.lazy.gates import GatedFile
from lamina.lazy.gates.fuse_answers import MAX_READ, Answers, Terms
from lamina.lazy.gates.intake import Intake
from lamina.lazy.slots import Slots
from lamina.linux import fuse

log = logging.getLogger(__name__)

SLOT_SIZE = fuse.READ_BUFFER
SLOT_COUNT = 128
MAX_BACKGROUND = 64
"""Read-ahead requests that the kernel sends at a time; fewer than slots, so that others pass."""


class _Shown:
    """A file that is shown: its descriptor, and how many reads make use of it."""

    __slots__ = ("fd", "file", "reads", "removed")

    def __init__(self, file: GatedFile) -> None:
        self.file = file
        self.fd = os.open(file.path, os.O_RDONLY | os.O_CLOEXEC)
        self.reads = 0
        self.removed = False


class FuseGate:
    """Serves one connection.

    Args:
        device: from `fuse.open_device`, held by others too; mounted at `point`.
        memory: of `SLOT_COUNT` slots of `SLOT_SIZE`, held by others too.
        point: where it is mounted.
    """

    def __init__(self, device: int, memory: int, point: Path) -> None:
        self._device = device
        self._point = point
        self._slots = Slots(memory, SLOT_SIZE)
        self._files: dict[int, _Shown] = {}
        self._lock = threading.Lock()
        self._buffer = memoryview(bytearray(MAX_READ))
        self._left = list(self._slots.left())
        self._intake = Intake(device, self._slots, self._take, "fuse")
        flags = fuse.ASYNC_READ | fuse.PARALLEL_DIROPS
        self._answers = Answers(device, self._sizes, Terms(flags, MAX_BACKGROUND))

    def add(self, file: GatedFile) -> Path:
        """Show the file and return where.

        Raises:
            OSError: the cache file cannot be opened.
        """
        with self._lock:
            if file.number not in self._files:
                self._files[file.number] = _Shown(file)
        return self._point / str(file.number)

    def remove(self, number: int) -> None:
        """Show it no more; open files of it fail to read what is not in the page cache."""
        with self._lock:
            shown = self._files.pop(number, None)
            if shown is None:
                return
            shown.removed = True
            if not shown.reads:
                os.close(shown.fd)

    @property
    def is_needed(self) -> bool:
        """Whether a file is shown: the kernel may ask for its bytes again at any time.

        Not once the filesystem is unmounted, in each namespace, and all that was mounted from it.
        """
        with self._lock:
            return bool(self._files) and not self._intake.is_over

    def wait_for_end(self, seconds: float) -> bool:
        """Wait for the end of an unmounted filesystem; tell whether it is there."""
        return self._intake.wait_for_end(seconds)

    def start(self) -> None:
        """Answer the requests that were left, and serve those to come."""
        for index, slot in self._left:
            self._intake.later(self._handle, index, slot, None)
        self._intake.start()

    def _take(self, index: int, slot: memoryview) -> None:
        self._handle(index, slot, self._buffer)

    def _handle(self, index: int, slot: memoryview, buffer: memoryview | None) -> None:
        """Answer a request; `buffer` is for reads that need not wait, else all are put off."""
        request = fuse.parse_request(slot)
        if request.opcode == fuse.READ:
            self._read(index, slot, request, buffer)
            return
        self._answers.answer(slot, request)
        self._slots.clear(index)

    def _read(
        self, index: int, slot: memoryview, request: fuse.Request, buffer: memoryview | None
    ) -> None:
        _, offset, size, *_ = fuse.READ_IN.unpack_from(slot, fuse.IN_HEADER.size)
        shown = self._begin_read(request.node - 1)
        if shown is None:
            self._answers.fail(request, errno.EIO)
            self._slots.clear(index)
            return
        filler = shown.file.filler
        start, stop = min(offset, filler.size), min(offset + size, filler.size)
        if buffer is None or not filler.is_local(start, stop):
            self._intake.later(self._fill, index, request, shown, start, stop)
            return
        try:
            self._send(request, shown.fd, start, buffer[: stop - start])
        finally:
            self._end_read(index, shown)
        if shown.file.is_news(start, stop) and not filler.is_complete:
            self._intake.later(shown.file.follow, start, stop)

    def _fill(
        self, index: int, request: fuse.Request, shown: _Shown, start: int, stop: int
    ) -> None:
        try:
            shown.file.filler.fill(start, stop)
        except (LaminaError, OSError) as error:
            log.warning("cannot fill bytes %d to %d: %s", start, stop, error,
                        extra={"path": str(shown.file.path)})  # fmt: skip
            self._answers.fail(request, errno.EIO)
        except Exception:
            log.exception("cannot fill", extra={"path": str(shown.file.path)})
            self._answers.fail(request, errno.EIO)
        else:
            self._send(request, shown.fd, start, memoryview(bytearray(stop - start)))
        finally:
            self._end_read(index, shown)

    def _sizes(self) -> dict[int, int]:
        with self._lock:
            return {number: shown.file.filler.size for number, shown in self._files.items()}

    def _begin_read(self, number: int) -> _Shown | None:
        with self._lock:
            shown = self._files.get(number)
            if shown is not None:
                shown.reads += 1
            return shown

    def _end_read(self, index: int, shown: _Shown) -> None:
        self._slots.clear(index)
        with self._lock:
            shown.reads -= 1
            if shown.removed and not shown.reads:
                os.close(shown.fd)

    def _send(self, request: fuse.Request, fd: int, start: int, buffer: memoryview) -> None:
        """Answer a read with bytes that are local."""
        if os.preadv(fd, [buffer], start) == len(buffer):
            self._answers.reply(request, buffer)
        else:
            self._answers.fail(request, errno.EIO)
