"""Which sectors of a writable device were written: one byte per sector, in memory and on disk.

The file: a slot of 4096 bytes with a header of 64 (little-endian), a byte per region of 4096
sectors, padded to 4096, and a byte per sector. A region's byte says what 0 means for its sectors,
so that a discard of half the device is some bytes. What was not touched is a hole of the file.

A sector that is written for the first time since it was something else is FRESH until the next
flush has synced its data: after a power loss it is what it was before. So a sector that is WRITTEN
has data of its own on the disk, whatever the kernel had written of the two files by then.
"""

from __future__ import annotations

import errno
import mmap
import os
import re
import struct
import threading
import zlib
from collections.abc import Iterator
from contextlib import suppress

from lamina.errors import FormatError
from lamina.lazy.writable.sector_states import (
    FRESH_RUNS,
    REVERT,
    SEEN,
    SEEN_ZEROED,
    SETTLE,
    WRITE,
    ZERO,
    ZERO_TOUCHED,
    Run,
    State,
    runs,
)
from lamina.meta.boot import boot_id

FORMAT = "sector map"
REGION = 4096
"""Sectors of a region; 2 MiB of the device."""
_MAGIC = b"LaminaSM"
_VERSION = 1
_LOST = 1
_SLOT = 4096
_HEADER = struct.Struct("<8sIIQ36sI")
assert _HEADER.size == 64
"""Magic, version, flags, sectors, boot id, CRC-32."""
_PIECE = 256 * REGION
_MAP_NORESERVE = 0x4000
"""Of <asm-generic/mman.h>: room for a map that is hardly touched need not be there."""


def write_all(fd: int, data: bytes | memoryview, offset: int) -> None:
    """Write all bytes at an offset of a file.

    Raises:
        OSError: ENOSPC, EIO, ...; some of it may be written.
    """
    done = os.pwrite(fd, data, offset)
    while done < len(data):
        done += os.pwrite(fd, memoryview(data)[done:], offset + done)


class SectorMap:
    """The map of one device. Safe to use from any thread.

    Attributes:
        sectors: of the device.
        is_lost: the disk could not take what had been written: some sectors are not what they were.
    """

    def __init__(self, fd: int, *, has_lower: bool) -> None:
        """Read a map; what a power loss has left in doubt becomes what it was before.

        Args:
            fd: of the file, for reading and writing; stays the caller's.
            has_lower: whether anything lies below; else what was not written is zeros.

        Raises:
            FormatError: it is damaged, or no map.
            OSError: it cannot be read or written.
        """
        self._fd = fd
        self._has_lower = has_lower
        self._lock = threading.Lock()
        self._fresh: list[range] = []
        self._unsynced = True
        boot = self._read_header()
        regions = -(-self.sectors // REGION)
        self._base = _SLOT + _padded(regions)
        self._zeroed = bytearray(os.pread(fd, regions, _SLOT))
        self._touched = bytearray(regions)
        self._bytes = mmap.mmap(
            -1, self.sectors, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_NORESERVE
        )
        with suppress(OSError):  # EINVAL of a kernel that has none
            self._bytes.madvise(mmap.MADV_NOHUGEPAGE)
        self._load(revert=boot != boot_id())
        if boot != boot_id():
            os.fdatasync(fd)
            self._write_header()

    @staticmethod
    def create(fd: int, sectors: int) -> None:
        """Write the map of a device of which nothing was written, into an empty file.

        Raises:
            OSError: it cannot be written.
        """
        os.ftruncate(fd, _SLOT + _padded(-(-sectors // REGION)) + sectors)
        write_all(fd, _header(0, sectors), 0)

    def states(self, first: int, stop: int) -> bytes:
        """Return the `State` of each sector from `first` up to `stop`; waits for nothing."""
        found = self._bytes[first:stop]
        if not self._has_lower:
            return found.translate(SEEN_ZEROED)
        regions = range(first // REGION, -(-stop // REGION))
        if not any(self._zeroed[regions.start : regions.stop]):
            return found.translate(SEEN)
        parts = []
        for region in regions:
            begin = max(region * REGION, first) - first
            part = found[begin : (region + 1) * REGION - first]
            parts.append(part.translate(SEEN_ZEROED if self._zeroed[region] else SEEN))
        return b"".join(parts)

    def mark_written(self, first: int, stop: int) -> None:
        """Note that the data file has these sectors now.

        Raises:
            OSError: it cannot be written; then nothing has changed.
        """
        with self._lock:
            if self._change(first, stop, WRITE):
                self._note_fresh(range(first, stop))

    def mark_zeros(self, first: int, stop: int) -> None:
        """Note that these sectors are zeros now.

        Raises:
            OSError: it cannot be written; some of them may be noted.
        """
        with self._lock:
            if not self._has_lower:
                self._zero_touched(first, stop)
                return
            whole = range(-(-first // REGION), stop // REGION)
            if not whole:
                self._change(first, stop, ZERO)
                return
            self._change(first, whole.start * REGION, ZERO)
            self._change(whole.stop * REGION, stop, ZERO)
            self._zero_touched(whole.start * REGION, whole.stop * REGION)
            self._zero_regions(whole)

    def begin_flush(self) -> list[range]:
        """Return which sectors are fresh: what was written to them is to be synced now."""
        with self._lock:
            fresh, self._fresh = self._fresh, []
        return fresh

    def settle(self, fresh: list[range]) -> None:
        """Note that what was written to sectors that were fresh is on the disk.

        Raises:
            OSError: it cannot be written.
        """
        with self._lock:
            for sectors in fresh:
                self._change(sectors.start, sectors.stop, SETTLE)

    def abandon_flush(self, fresh: list[range]) -> None:
        """Take back what `begin_flush` has returned."""
        with self._lock:
            self._fresh = fresh + self._fresh
            self._unsynced = True

    def sync(self) -> None:
        """Have the map survive a power loss.

        Raises:
            OSError: the disk does not take it.
        """
        with self._lock:
            unsynced, self._unsynced = self._unsynced, False
        if unsynced:
            os.fdatasync(self._fd)

    def note_loss(self) -> None:
        """Note, for good, that the disk could not take what had been written."""
        self.is_lost = True
        with suppress(OSError):  # of a disk that fails
            self._write_header()
            os.fdatasync(self._fd)

    def runs(self) -> Iterator[Run]:
        """Yield the whole device, in runs that ascend; neighbours differ."""
        last = Run(0, 0, State.LOWER)
        for run in self._pieces():
            if run.state == last.state:
                last = last._replace(stop=run.stop)
                continue
            if last.stop:
                yield last
            last = run
        yield last

    @property
    def written(self) -> int:
        """How many sectors the data file has; O(sectors that were touched)."""
        found = self._touched.find(1)
        count = 0
        while found >= 0:
            part = self._bytes[found * REGION : (found + 1) * REGION]
            count += len(part) - part.count(0) - part.count(State.ZEROS)
            found = self._touched.find(1, found + 1)
        return count

    def close(self) -> None:
        """Give back its memory."""
        self._bytes.close()

    def _pieces(self) -> Iterator[Run]:
        region, count = 0, len(self._touched)
        while region < count:
            touched = self._touched.find(1, region)
            touched = count if touched < 0 else touched
            zeroed = bytes(self._zeroed[region:touched]) if self._has_lower else b""
            default = State.LOWER if self._has_lower else State.ZEROS
            if touched > region and not any(zeroed):
                yield self._run(region, touched, default)
            elif touched > region:
                for found in re.finditer(rb"\x00+|\x01+", zeroed):
                    state = State.ZEROS if zeroed[found.start()] else State.LOWER
                    yield self._run(region + found.start(), region + found.end(), state)
            if touched < count:
                first = touched * REGION
                for run in runs(self.states(first, min(first + REGION, self.sectors))):
                    yield Run(first + run.first, first + run.stop, run.state)
            region = touched + 1

    def _run(self, first: int, stop: int, state: State) -> Run:
        return Run(first * REGION, min(stop * REGION, self.sectors), state)

    def _change(self, first: int, stop: int, table: bytes) -> bool:
        """Replace the bytes of sectors; False if that changes nothing."""
        old = self._bytes[first:stop]
        new = old.translate(table)
        if old == new:
            return False
        self._unsynced = True
        write_all(self._fd, new, self._base + first)
        self._bytes[first:stop] = new
        for region in range(first // REGION, -(-stop // REGION)):
            self._touched[region] = 1
        return True

    def _zero_touched(self, first: int, stop: int) -> None:
        """Zero what was touched, where what was not is zeros without that."""
        end = -(-stop // REGION)
        region = self._touched.find(1, first // REGION, end)
        while region >= 0:
            begin = region * REGION
            self._change(max(begin, first), min(begin + REGION, stop), ZERO_TOUCHED)
            region = self._touched.find(1, region + 1, end)

    def _zero_regions(self, regions: range) -> None:
        ones = b"\1" * len(regions)
        if self._zeroed[regions.start : regions.stop] != ones:
            self._unsynced = True
            write_all(self._fd, ones, _SLOT + regions.start)
            self._zeroed[regions.start : regions.stop] = ones

    def _note_fresh(self, sectors: range) -> None:
        if self._fresh and self._fresh[-1].stop == sectors.start:
            sectors = range(self._fresh.pop().start, sectors.stop)
        self._fresh.append(sectors)

    def _load(self, *, revert: bool) -> None:
        end = self._base + self.sectors
        position = self._base
        while (position := _data_from(self._fd, position)) < end:
            first = (position - self._base) // REGION * REGION
            piece = os.pread(self._fd, min(_PIECE, self.sectors - first), self._base + first)
            if revert and (reverted := piece.translate(REVERT)) != piece:
                write_all(self._fd, reverted, self._base + first)
                piece = reverted
            self._load_piece(first, piece)
            position = self._base + first + len(piece)

    def _load_piece(self, first: int, piece: bytes) -> None:
        for begin in range(0, len(piece), REGION):
            part = piece[begin : begin + REGION]
            if part.count(0) != len(part):
                self._touched[(first + begin) // REGION] = 1
                self._bytes[first + begin : first + begin + len(part)] = part
        for found in FRESH_RUNS.finditer(piece):
            self._note_fresh(range(first + found.start(), first + found.end()))

    def _read_header(self) -> str:
        raw = os.pread(self._fd, _HEADER.size, 0)
        if len(raw) < _HEADER.size:
            raise _damaged(0, "a header", f"{len(raw)} bytes")
        magic, version, flags, self.sectors, boot, crc = _HEADER.unpack(raw)
        if (magic, version) != (_MAGIC, _VERSION):
            raise _damaged(0, f"{_MAGIC!r}, version {_VERSION}", repr(raw[:12]))
        if crc != zlib.crc32(raw[:-4]):
            raise _damaged(60, f"the CRC {zlib.crc32(raw[:-4]):#x}", f"{crc:#x}")
        size = _SLOT + _padded(-(-self.sectors // REGION)) + self.sectors
        if (got := os.fstat(self._fd).st_size) != size:
            raise _damaged(0, f"a file of {size} bytes", f"{got}")
        self.is_lost = bool(flags & _LOST)
        return str(boot.decode("ascii", "replace"))

    def _write_header(self) -> None:
        write_all(self._fd, _header(_LOST if self.is_lost else 0, self.sectors), 0)


def _header(flags: int, sectors: int) -> bytes:
    fields = _MAGIC, _VERSION, flags, sectors, boot_id().encode("ascii")
    body = _HEADER.pack(*fields, 0)[:-4]
    return body + zlib.crc32(body).to_bytes(4, "little")


def _padded(regions: int) -> int:
    return -(-regions // _SLOT) * _SLOT


def _data_from(fd: int, offset: int) -> int:
    """Return where the next byte is that is not in a hole; the file's end if there is none."""
    try:
        return os.lseek(fd, offset, os.SEEK_DATA)
    except OSError as error:
        if error.errno != errno.ENXIO:
            raise
        return os.fstat(fd).st_size


def _damaged(offset: int, expected: str, got: str) -> FormatError:
    return FormatError(FORMAT, offset, expected=expected, got=got)
