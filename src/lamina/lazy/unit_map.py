"""Which units of a layer are in its cache file: one byte per unit, in memory and on disk.

The file: a header (128 bytes, little-endian), then a byte per unit. A unit's byte is written after
its data; nothing is synced then, so it is worth only as much as the boot in which it was written.
`docs/internals/lazy-cache.md` has the rules.
"""

from __future__ import annotations

import enum
import os
import re
import struct
import threading
import zlib
from collections.abc import Iterator
from typing import NamedTuple

from lamina.errors import FormatError

FORMAT = "unit map"
MAGIC = b"LaminaUM"
VERSION = 1
_HEADER = struct.Struct("<8sIIQQ32s36s24xI")
assert _HEADER.size == 128
"""Magic, version, 0, units, inode of the data file, digest of the table, boot id, CRC-32."""
HEADER_BYTES = _HEADER.size
_RUNS = re.compile(rb"\x01+")
_WANTED = re.compile(rb"[\x00\x03]")


class State(enum.IntEnum):
    """Where a unit is; the numbers are those of the file."""

    MISSING = 0
    LOCAL = 1
    """In the cache, verified in this boot; a power loss may take it back."""
    DURABLE = 2
    """In the cache, verified, and synced since."""
    DOUBTFUL = 3
    """Was in the cache; to be verified there before it is used, or else fetched."""


_LOCAL_TO_DOUBTFUL = bytes.maketrans(b"\x01", b"\x03")
_ALL_TO_DOUBTFUL = bytes.maketrans(b"\x01\x02", b"\x03\x03")
_IS_LOCAL = bytes.maketrans(b"\x00\x01\x02\x03", b"\x00\x01\x01\x00")


class Identity(NamedTuple):
    """What a map is true of: units, the data file's inode, the table's digest, the boot's id."""

    units: int
    inode: int
    table: bytes
    boot: str


class Snapshot(NamedTuple):
    """All states at one time, and how often some had been lost by then."""

    states: bytes
    losses: int


class UnitMap:
    """The map of one layer. Changes are for one process at a time; its threads are told apart here.

    Args:
        fd: the map's file, open for reading and writing; stays the caller's.
        identity: what the map has to be true of.
        data_whole: whether the data file has its full size.
    """

    def __init__(self, fd: int, identity: Identity, *, data_whole: bool = True) -> None:
        self._fd = fd
        self._lock = threading.Lock()
        self.reset_reason = ""
        """Why the map on disk was not believed as it is; "" if it was."""
        self._states = self._load(identity, data_whole)
        self._losses = 0
        self._not_durable = len(self._states) - self.count(State.DURABLE)
        self._left = self._not_durable - self.count(State.LOCAL)

    @property
    def is_complete(self) -> bool:
        """Whether every unit is in the cache."""
        return not self._left

    @property
    def is_durable(self) -> bool:
        """Whether every unit is in the cache and was synced."""
        return not self._not_durable

    @property
    def selectors(self) -> bytes:
        """1 for each unit in the cache, 0 for each that is not."""
        return bytes(self._states).translate(_IS_LOCAL)

    def count(self, state: State) -> int:
        """Return how many units are in this state."""
        return self._states.count(state)

    def state(self, number: int) -> State:
        """Return the state of a unit."""
        return State(self._states[number])

    def is_local(self, units: range) -> bool:
        """Tell whether all these are in the cache."""
        return self.next_wanted(units.start, units.stop) is None

    def next_wanted(self, start: int, stop: int) -> int | None:
        """Return the first unit in [start, stop) that is not in the cache."""
        if not self._left:
            return None
        match = _WANTED.search(self._states, start, stop)
        return None if match is None else match.start()

    def mark(self, number: int, state: State) -> None:
        """Set a unit's state, on disk first. Its data is written before, and not synced.

        Raises:
            OSError: the map's file cannot be written; the state is as it was.
        """
        with self._lock:
            os.pwrite(self._fd, bytes((state,)), _HEADER.size + number)
            if self._states[number] == State.DURABLE:
                # Or a power loss could bring it back beside data that is being written anew.
                os.fdatasync(self._fd)
            self._set(number, number + 1, state)

    def snapshot(self) -> Snapshot:
        """Return all states as they are, for `settle` after a sync."""
        with self._lock:
            return Snapshot(bytes(self._states), self._losses)

    def doubt_on_disk(self, before: Snapshot) -> None:
        """Have the file say that what was local in the snapshot and still is, is doubtful.

        Raises:
            OSError: it cannot be written.
        """
        with self._lock:
            for start, stop in self._still_local(before.states):
                self._write(start, stop, State.DOUBTFUL)

    def forget(self) -> None:
        """Make every unit missing that is local, but not durable.

        Raises:
            OSError: the map's file cannot be written; they are missing to this process then.
        """
        with self._lock:
            self._losses += 1
            stretches = list(self._still_local(bytes(self._states)))
            for start, stop in stretches:
                self._set(start, stop, State.MISSING)
            for start, stop in stretches:
                self._write(start, stop, State.MISSING)

    def settle(self, before: Snapshot) -> bool:
        """Make every unit durable that was local in the snapshot, and still is.

        Returns:
            False if there was a `forget` since, so that nothing was done.

        Raises:
            OSError: the map's file cannot be written.
        """
        with self._lock:
            if self._losses != before.losses:
                return False
            for start, stop in self._still_local(before.states):
                self._write(start, stop, State.DURABLE)
                self._set(start, stop, State.DURABLE)
            return True

    def _still_local(self, states: bytes) -> Iterator[tuple[int, int]]:
        """Yield the stretches of units that are local in `states` and now; with the lock."""
        for match in _RUNS.finditer(states):
            yield from [still.span() for still in _RUNS.finditer(self._states, *match.span())]

    def _write(self, start: int, stop: int, state: State) -> None:
        os.pwrite(self._fd, bytes((state,)) * (stop - start), _HEADER.size + start)

    def _set(self, start: int, stop: int, state: State) -> None:
        """Set the state of units that have all the same, in memory; the lock is the caller's."""
        was, count = self._states[start], stop - start
        self._left += count * (_is_local(was) - _is_local(state))
        self._not_durable += count * ((was == State.DURABLE) - (state == State.DURABLE))
        self._states[start:stop] = bytes((state,)) * count

    def _load(self, identity: Identity, data_whole: bool) -> bytearray:
        """Return the states that can be relied on, and have the file say the same."""
        raw = _read_all(self._fd, _HEADER.size + identity.units + 1)
        states = self._believed(raw, identity, data_whole)
        header = pack_header(identity)
        if raw == header + states:
            return bytearray(states)
        # The states go first: until the header names this boot, none that is only local counts.
        _write_all(self._fd, states, len(header))
        if self.reset_reason:
            os.fdatasync(self._fd)
        _write_all(self._fd, header, 0)
        os.ftruncate(self._fd, len(header) + len(states))
        return bytearray(states)

    def _believed(self, raw: bytes, identity: Identity, data_whole: bool) -> bytes:
        try:
            found = unpack_header(raw[: _HEADER.size])
        except FormatError as error:
            if not raw:
                return bytes(identity.units)
            return self._doubt_all(identity, str(error), found=True)
        states = raw[_HEADER.size :]
        if found.table != identity.table or found.units != identity.units:
            return self._doubt_all(identity, "it is that of another table", found=False)
        if len(states) != identity.units or states.translate(None, b"\x00\x01\x02\x03"):
            return self._doubt_all(identity, "it is damaged", found=True)
        if found.inode != identity.inode or not data_whole:
            self.reset_reason = "the data file is another, or not whole"
            return states.translate(_ALL_TO_DOUBTFUL)
        if found.boot != identity.boot:
            if b"\x01" in states:
                self.reset_reason = "the machine was started anew before it was synced"
            return states.translate(_LOCAL_TO_DOUBTFUL)
        return states

    def _doubt_all(self, identity: Identity, reason: str, found: bool) -> bytes:
        self.reset_reason = reason
        return (b"\x03" if found else b"\x00") * identity.units


def _is_local(state: int) -> bool:
    return state in {State.LOCAL, State.DURABLE}


def pack_header(identity: Identity) -> bytes:
    """Return a map's first 128 bytes."""
    fields = (identity.units, identity.inode, identity.table, identity.boot.encode("ascii"))
    head = _HEADER.pack(MAGIC, VERSION, 0, *fields, 0)
    return head[:-4] + struct.pack("<I", zlib.crc32(head[:-4]))


def unpack_header(data: bytes) -> Identity:
    """Return what a map says it is true of.

    Raises:
        FormatError: it is not a map's header.
    """
    if len(data) < _HEADER.size:
        raise FormatError(FORMAT, len(data), expected=f"{_HEADER.size} bytes", got=f"{len(data)}")
    magic, version, _, units, inode, table, boot, checksum = _HEADER.unpack(data)
    if magic != MAGIC or version != VERSION:
        got = f"{magic!r} version {version}"
        raise FormatError(FORMAT, 0, expected=f"{MAGIC!r} version {VERSION}", got=got)
    if zlib.crc32(data[:-4]) != checksum:
        raise FormatError(FORMAT, len(data) - 4, expected="its CRC-32", got="another")
    return Identity(units, inode, table, boot.rstrip(b"\0").decode("ascii", "replace"))


def _read_all(fd: int, most: int) -> bytes:
    """Return up to `most` bytes of the file from its start."""
    data = bytearray()
    while len(data) < most and (part := os.pread(fd, most - len(data), len(data))):
        data += part
    return bytes(data)


def _write_all(fd: int, data: bytes, offset: int) -> None:
    view = memoryview(data)
    while view:
        written = os.pwrite(fd, view, offset)
        view, offset = view[written:], offset + written
