"""One writable device: reads that put together what was written and what lies below, and writes."""

from __future__ import annotations

import errno
import logging
import os
import threading
from contextlib import ExitStack
from pathlib import Path

from lamina.errors import FailedPrecondition, FormatError
from lamina.formats.lsmt.layout import SECTOR
from lamina.lazy.layer import LayerLock
from lamina.lazy.users import Users
from lamina.lazy.writable.directory import (
    DATA,
    DATA_START,
    MAP,
    DeviceFile,
    read_device,
    sync_directory,
)
from lamina.lazy.writable.lower import Lower, read_exactly
from lamina.lazy.writable.sector_map import SectorMap, write_all
from lamina.lazy.writable.sector_states import State, runs
from lamina.linux.fallocate import punch_hole

log = logging.getLogger(__name__)

_END_SECONDS = 60.0


class WritableDevice:
    """The device of a directory, used by one process; its methods may be called from any thread.

    What `write` and `discard` have returned from survives the end of the process, and a power loss
    once `flush` has returned. What was not flushed is after a power loss, sector by sector, as it
    was written or as it was before. All of it can be done twice.

    Attributes:
        directory: the device's.
        described: what `device.json` says.
        size: bytes.
        lower: what lies below; None for zeros.
    """

    def __init__(self, directory: Path, lower: Lower | None) -> None:
        """Open the device in `directory`; `close` closes it.

        Args:
            directory: as `create_writable` makes it.
            lower: what lies below; closed with the device, once it is open.

        Raises:
            NotFound: there is none.
            FailedPrecondition: another process has it open; the hint says which.
            FormatError: it is damaged.
            OSError: a file cannot be opened.
        """
        self.directory = directory
        self.lower = lower
        self._users = Users("use writable device", directory)
        self._flushing = threading.Lock()
        self._unaligned = threading.Lock()
        self._unsynced = True
        self._is_named = False
        with ExitStack() as opened:
            opened.callback(LayerLock(directory).release)
            self.described: DeviceFile = read_device(directory)
            self.size = self.described.size
            self._data = _open(directory / DATA, opened)
            map_fd = _open(directory / MAP, opened)
            self.map = SectorMap(map_fd, has_lower=lower is not None)
            opened.callback(self.map.close)
            self._check_sizes()
            if lower is not None:
                opened.callback(lower.close)
            self._opened = opened.pop_all()

    def is_local(self, start: int, stop: int) -> bool:
        """Tell at once whether `read_into` of these bytes need not wait for what lies below."""
        lower = self.lower
        if lower is None or lower.is_local(start, stop):
            return True
        try:
            with self._users.one():
                states = self.map.states(start // SECTOR, -(-stop // SECTOR))
        except FailedPrecondition:
            return False
        return State.LOWER not in states

    def can_write(self, start: int, stop: int) -> bool:
        """Tell at once whether `write` of these bytes need not wait for what lies below."""
        if not start % SECTOR and not stop % SECTOR:
            return True
        return self.is_local(start, start + 1) and self.is_local(stop - 1, stop)

    def read_into(self, buffer: memoryview, start: int) -> None:
        """Read bytes of the device, from byte `start` on, after they were filled where need be.

        Raises:
            LaminaError: what lies below cannot be had.
            OSError: it cannot be read.
        """
        stop = start + len(buffer)
        first = start // SECTOR
        with self._users.one():
            for run in runs(self.map.states(first, -(-stop // SECTOR))):
                begin = max((first + run.first) * SECTOR, start)
                end = min((first + run.stop) * SECTOR, stop)
                self._read_run(run.state, buffer[begin - start : end - start], begin)

    def write(self, start: int, data: memoryview) -> None:
        """Write bytes; those of a sector that is written in part are read before.

        Raises:
            OSError: ENOSPC: the disk is full; those who wrote there before have what they wrote.
            LaminaError: what lies below a sector that is written in part cannot be had.
        """
        with self._users.one():
            if start % SECTOR or len(data) % SECTOR:
                with self._unaligned:
                    self._write_in_part(start, data)
            else:
                self._write_sectors(start, data)

    def discard(self, start: int, stop: int) -> None:
        """Make bytes zeros, and give back what they take of the disk.

        Raises:
            OSError, LaminaError: as `write`.
        """
        first, last = -(-start // SECTOR) * SECTOR, stop // SECTOR * SECTOR
        if first >= last:
            self.write(start, memoryview(bytes(stop - start)))
            return
        if start < first:
            self.write(start, memoryview(bytes(first - start)))
        if last < stop:
            self.write(last, memoryview(bytes(stop - last)))
        with self._users.one():
            self._check_lost()
            try:
                self.map.mark_zeros(first // SECTOR, last // SECTOR)
                self._punch(first, last)
            finally:
                self._unsynced = True

    def flush(self) -> None:
        """Return when what was written survives a power loss.

        Raises:
            OSError: the disk does not take it. What it could not take may be lost, so that nothing
                is written and flushed any more.
        """
        with self._users.one(), self._flushing:
            self._check_lost()
            if not self._unsynced:
                return
            self._unsynced = False
            fresh = self.map.begin_flush()
            try:
                self._sync(fresh)
            except BaseException:
                self.map.abandon_flush(fresh)
                self._unsynced = True
                raise

    @property
    def local_bytes(self) -> int:
        """How many bytes have been written, and not discarded since."""
        with self._users.one():
            return self.map.written * SECTOR

    @property
    def data_path(self) -> Path:
        """The file of what was written; not the device."""
        return self.directory / DATA

    @property
    def is_complete(self) -> bool:
        """False: it is served until it is removed."""
        return False

    @property
    def is_durable(self) -> bool:
        """False, as `is_complete`."""
        return False

    def fill(self, start: int, stop: int) -> range:
        """Return when bytes can be read without waiting.

        Raises:
            LaminaError, OSError: what lies below cannot be had.
        """
        if self.lower is not None:
            self.lower.fill(start, stop)
        return range(start, stop)

    def fetch_wanted(self) -> None:
        """Do nothing: what is wanted is known of what lies below."""

    def complete(self, *, at_once: bool = False) -> None:
        """Do nothing: what lies below is completed as a layer of its own."""

    def close(self) -> None:
        """Let go of the files once nothing is under way; calling it again does nothing.

        What does not end keeps them open, and the directory locked.
        """
        self._users.refuse()
        if self._users.gone(_END_SECONDS):
            self._opened.close()
        else:
            log.warning("a request does not end", extra={"path": str(self.directory)})

    def _read_run(self, state: int, part: memoryview, start: int) -> None:
        if state == State.WRITTEN:
            read_exactly(self._data, part, DATA_START + start)
        elif state == State.LOWER and self.lower is not None:
            self.lower.fill(start, start + len(part))
            self.lower.read_into(part, start)
        else:
            part[:] = bytes(len(part))

    def _write_sectors(self, start: int, data: memoryview) -> None:
        self._check_lost()
        try:
            write_all(self._data, data, DATA_START + start)
            self.map.mark_written(start // SECTOR, (start + len(data)) // SECTOR)
        finally:
            # Not before: a flush that is under way now may do without it, a later one not.
            self._unsynced = True

    def _punch(self, first: int, last: int) -> None:
        try:
            punch_hole(self._data, DATA_START + first, last - first)
        except OSError as error:
            if error.errno != errno.EOPNOTSUPP:  # then it goes on taking room, unseen
                raise

    def _write_in_part(self, start: int, data: memoryview) -> None:
        stop = start + len(data)
        first, last = start // SECTOR * SECTOR, -(-stop // SECTOR) * SECTOR
        whole = memoryview(bytearray(last - first))
        self.read_into(whole[:SECTOR], first)
        self.read_into(whole[-SECTOR:], last - SECTOR)
        whole[start - first : stop - first] = data
        self._write_sectors(first, whole)

    def _sync(self, fresh: list[range]) -> None:
        if not self._is_named:
            sync_directory(self.directory)
            self._is_named = True
        with self._noting_loss():
            os.fdatasync(self._data)
        self.map.settle(fresh)
        with self._noting_loss():
            self.map.sync()

    def _noting_loss(self) -> ExitStack:
        """Note when the body fails: the kernel tells of lost pages once, and shows them as kept."""
        stack = ExitStack()

        def note(kind: type[BaseException] | None, error: BaseException | None, _: object) -> None:
            if isinstance(error, OSError):
                log.error("the disk has lost what was written to a device: %s", error.strerror,
                          extra={"path": str(self.directory)})  # fmt: skip
                self.map.note_loss()

        stack.push(note)
        return stack

    def _check_lost(self) -> None:
        if self.map.is_lost:
            raise OSError(errno.EIO, "the disk has lost what was written", self.directory / DATA)

    def _check_sizes(self) -> None:
        expected, got = DATA_START + self.size, os.fstat(self._data).st_size
        if got != expected or self.map.sectors * SECTOR != self.size:
            told = f"{got} bytes, and a map of {self.map.sectors} sectors"
            raise FormatError("writable device", 0, expected=f"{expected} bytes", got=told,
                              source=self.directory)  # fmt: skip


def _open(path: Path, opened: ExitStack) -> int:
    fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    opened.callback(os.close, fd)
    return fd
