"""The gate `fanotify`: readers wait at the cache file itself until their bytes are in it.

The mark is set before anything mounts the file, and taken off when the file is complete and synced:
a sync that fails takes bytes back. From then on nothing of Lamina has a part in reading it. Should
every process that holds the group end at one time, the kernel lets readers through to bytes that
are not there: see the holder.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import struct
import threading
from collections.abc import Iterable
from pathlib import Path

from lamina.errors import LaminaError
from lamina.lazy.gates import GatedFile
from lamina.lazy.gates.intake import Intake
from lamina.lazy.slots import Slots
from lamina.linux import fanotify

log = logging.getLogger(__name__)

_IDENTITY = struct.Struct("=QQ")
"""st_dev and st_ino of an event's file, noted behind the event: its descriptor dies with us."""
SLOT_SIZE = fanotify.EVENT_SIZE + _IDENTITY.size
SLOT_COUNT = 2048


class FanotifyGate:
    """Serves the events of one group.

    Made before the process opens anything but what lasts as long as it: see `_reserve`.

    Args:
        group: from `fanotify.new_group`, held by others too.
        memory: of `SLOT_COUNT` slots of `SLOT_SIZE`, held by others too.
    """

    def __init__(self, group: int, memory: int) -> None:
        self._group = group
        self._slots = Slots(memory, SLOT_SIZE, room=_IDENTITY.size)
        self._files: dict[tuple[int, int], GatedFile] = {}
        self._lock = threading.Lock()
        self._pid = os.getpid()
        self._left = list(self._slots.left())
        self._reserved = self._reserve()
        self._intake = Intake(group, self._slots, self._handle, "fanotify")

    def add(self, file: GatedFile) -> Path:
        """Mark the file unless it is durable; whoever mounts it has to open it after this.

        Raises:
            OSError: EOPNOTSUPP, EINVAL, ... of `fanotify.add_mark`.
        """
        status = file.path.stat()
        with self._lock:
            self._files[status.st_dev, status.st_ino] = file
        if not self._settle(file):
            fanotify.add_mark(self._group, file.path)
        return file.path

    def remove(self, number: int) -> None:
        """Take the mark off and forget the file."""
        with self._lock:
            found = [key for key, file in self._files.items() if file.number == number]
            removed = [self._files.pop(key) for key in found]
        for file in removed:
            self._unmark(file)

    @property
    def is_needed(self) -> bool:
        """Whether a file is marked."""
        with self._lock:
            files = list(self._files.values())
        return not all(self._settle(file) for file in files)

    def start(self) -> None:
        """Answer the events that were left, and serve those to come."""
        for index, slot in self._left:
            self._intake.later(self._answer_left, index, slot)
        self._intake.start()

    def _reserve(self) -> frozenset[int]:
        """Keep the numbers of events that are left from being given to new events.

        An answer names its event by a number that is unique in the process that read it. Were an
        event of this process to have the number of one that is left, an answer to either could
        let the other's reader through.
        """
        left = {fanotify.parse_event(slot).fd for _, slot in self._left}
        null = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
        # A number that is in use belongs to something that is never closed.
        reserved = {number for number in left if number == null or _is_free(number)}
        for number in reserved - {null}:
            os.dup2(null, number, inheritable=False)
        if null not in reserved:
            os.close(null)
        return frozenset(reserved)

    def _handle(self, index: int, slot: memoryview) -> None:
        event = fanotify.parse_event(slot)
        if event.fd == fanotify.FAN_NOFD:
            self._slots.clear(index)
            return
        status = os.fstat(event.fd)
        _IDENTITY.pack_into(slot, fanotify.EVENT_SIZE, status.st_dev, status.st_ino)
        if event.pid == self._pid:  # a filler writes, through a descriptor opened after the mark
            self._answer(event, None)
            self._finish(index, slot, event)
            return
        files = self._of((status.st_dev, status.st_ino))
        if not files or not all(file.filler.is_local(*_range(event, file)) for file in files):
            self._intake.later(self._fill, index, slot, event, files)
            return
        self._answer(event, None)
        self._finish(index, slot, event)
        for file in files:
            read = _range(event, file)
            if file.is_news(*read) and not file.filler.is_complete:
                self._intake.later(file.follow, *read)

    def _answer_left(self, index: int, slot: memoryview) -> None:
        event = fanotify.parse_event(slot)
        identity = _IDENTITY.unpack_from(slot, fanotify.EVENT_SIZE)
        if identity == (0, 0):
            # Its process was killed before the note: whichever file it is, it is one of these.
            with self._lock:
                files = list(self._files.values())
        else:
            files = self._of(identity)
        self._answer(event, _filled(event, files))
        self._finish(index, slot, event, close=event.fd in self._reserved)

    def _fill(
        self, index: int, slot: memoryview, event: fanotify.PreAccess, files: list[GatedFile]
    ) -> None:
        self._answer(event, _filled(event, files))
        self._finish(index, slot, event)
        for file in files:
            self._settle(file)

    def _of(self, identity: tuple[int, ...]) -> list[GatedFile]:
        with self._lock:
            file = self._files.get((identity[0], identity[1]))
        return [] if file is None else [file]

    def _answer(self, event: fanotify.PreAccess, error: Exception | None) -> None:
        """Let the reader go on, or fail."""
        try:
            if error is None:
                fanotify.allow(self._group, event.fd)
            else:
                fanotify.deny(self._group, event.fd)
        except OSError as failure:
            if failure.errno != errno.ENOENT:  # its reader was killed
                raise

    def _finish(
        self, index: int, slot: memoryview, event: fanotify.PreAccess, *, close: bool = True
    ) -> None:
        """Forget an answered event, in this order: a number is free when its slot is."""
        _IDENTITY.pack_into(slot, fanotify.EVENT_SIZE, 0, 0)
        self._slots.clear(index)
        if close:
            os.close(event.fd)

    def _settle(self, file: GatedFile) -> bool:
        """Take the mark off a durable file; tell whether it is one."""
        if not file.filler.is_durable:
            return False
        self._unmark(file)
        return True

    def _unmark(self, file: GatedFile) -> None:
        try:
            fanotify.remove_mark(self._group, file.path)
        except OSError as error:
            if error.errno != errno.ENOENT:  # not marked, or deleted
                raise


def _filled(event: fanotify.PreAccess, files: Iterable[GatedFile]) -> Exception | None:
    """Fill what an event asks for; return why that failed."""
    error: Exception | None = FileNotFoundError(errno.ENOENT, "no layer has that file")
    for file in files:
        start, stop = _range(event, file)
        error = None
        try:
            if start < stop:
                file.filler.fill(start, stop)
        except (LaminaError, OSError) as failure:
            log.warning("cannot fill bytes %d to %d: %s", start, stop, failure,
                        extra={"path": str(file.path)})  # fmt: skip
            return failure
        except Exception as failure:
            log.exception("cannot fill", extra={"path": str(file.path)})
            return failure
    return error


def _range(event: fanotify.PreAccess, file: GatedFile) -> tuple[int, int]:
    """Return the bytes that an event asks for; all of the file where it does not say."""
    size = file.filler.size
    if not event.length:
        return 0, size
    return min(event.offset, size), min(event.offset + event.length, size)


def _is_free(number: int) -> bool:
    if number < 0:
        return False
    try:
        fcntl.fcntl(number, fcntl.F_GETFD)
    except OSError as error:
        if error.errno != errno.EBADF:
            raise
        return True
    return False
