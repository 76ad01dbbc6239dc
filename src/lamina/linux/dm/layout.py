"""The bytes of device-mapper's ioctls (<linux/dm-ioctl.h>), packed and parsed without a kernel.

Each ioctl takes one buffer: `struct dm_ioctl`, then what the command adds, both ways. Numbers are
in native byte order. Sectors are 512 bytes whatever the device's own sector is.
"""

from __future__ import annotations

import ctypes
import os
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from lamina.errors import FormatError

SECTOR = 512

DM_VERSION = 0
DM_LIST_DEVICES = 2
DM_DEV_CREATE = 3
DM_DEV_REMOVE = 4
DM_DEV_SUSPEND = 6
DM_DEV_STATUS = 7
DM_TABLE_LOAD = 9
DM_TABLE_CLEAR = 10
DM_TABLE_DEPS = 11
DM_TABLE_STATUS = 12
DM_LIST_VERSIONS = 13
DM_TARGET_MSG = 14

DM_READONLY_FLAG = 1 << 0
DM_SUSPEND_FLAG = 1 << 1
DM_STATUS_TABLE_FLAG = 1 << 4
DM_ACTIVE_PRESENT_FLAG = 1 << 5
DM_INACTIVE_PRESENT_FLAG = 1 << 6
DM_BUFFER_FULL_FLAG = 1 << 8
DM_SKIP_LOCKFS_FLAG = 1 << 10
DM_NOFLUSH_FLAG = 1 << 11
DM_UEVENT_GENERATED_FLAG = 1 << 13
DM_DATA_OUT_FLAG = 1 << 16
DM_DEFERRED_REMOVE = 1 << 17

INTERFACE = (4, 0, 0)
"""The version asked for; the kernel serves every lower minor of its major."""

_NAME_BYTES = 128
_UUID_BYTES = 129
_IOC_READ_WRITE = 3
_DM_IOCTL = 0xFD
_ALIGNMENT = 8


class DmIoctl(ctypes.Structure):
    """`struct dm_ioctl`: 312 bytes."""

    _fields_ = (
        ("version", ctypes.c_uint32 * 3),
        ("data_size", ctypes.c_uint32),
        ("data_start", ctypes.c_uint32),
        ("target_count", ctypes.c_uint32),
        ("open_count", ctypes.c_int32),
        ("flags", ctypes.c_uint32),
        ("event_nr", ctypes.c_uint32),
        ("padding", ctypes.c_uint32),
        ("dev", ctypes.c_uint64),
        ("name", ctypes.c_char * _NAME_BYTES),
        ("uuid", ctypes.c_char * _UUID_BYTES),
        ("data", ctypes.c_char * 7),
    )


HEADER_BYTES = ctypes.sizeof(DmIoctl)

TARGET_SPEC = struct.Struct("=QQiI16s")
"""`struct dm_target_spec`: sector_start, length, status, next, target_type; 40 bytes."""
_NAME_LIST = struct.Struct("=QI")
_DEPS = struct.Struct("=II")
_VERSIONS = struct.Struct("=I3I")
_MESSAGE = struct.Struct("=Q")


class Target(NamedTuple):
    """One line of a table, or of its status.

    Attributes:
        start: the first sector of the device that it maps.
        length: how many sectors it maps.
        type: the target's name, such as `thin`.
        params: its arguments in a table, its state in a status.
    """

    start: int
    length: int
    type: str
    params: str


class Listed(NamedTuple):
    """A device in the list of all: its name and its dev_t (see `os.major`, `os.minor`)."""

    name: str
    number: int


@dataclass(frozen=True, slots=True)
class DeviceInfo:
    """The state of a device.

    Attributes:
        name: its name.
        uuid: its uuid; "" for none.
        number: its dev_t (see `os.major`, `os.minor`).
        open_count: by how many it is open: mounts, other devices, processes.
        event_number: how many events its targets have raised.
        target_count: targets in its live table.
        flags: the kernel's DM_*_FLAG bits.
    """

    name: str
    uuid: str
    number: int
    open_count: int
    event_number: int
    target_count: int
    flags: int

    @property
    def live(self) -> bool:
        """Whether it has a table in effect; one that was only created has none."""
        return bool(self.flags & DM_ACTIVE_PRESENT_FLAG)

    @property
    def has_inactive_table(self) -> bool:
        """Whether a table is loaded that the next `resume` puts into effect."""
        return bool(self.flags & DM_INACTIVE_PRESENT_FLAG)

    @property
    def suspended(self) -> bool:
        """Whether it holds I/O back."""
        return bool(self.flags & DM_SUSPEND_FLAG)

    @property
    def read_only(self) -> bool:
        """Whether it refuses writes."""
        return bool(self.flags & DM_READONLY_FLAG)

    @property
    def goes_when_closed(self) -> bool:
        """Whether its removal waits for the last to close it."""
        return bool(self.flags & DM_DEFERRED_REMOVE)


def request(command: int) -> int:
    """Return the ioctl request of a DM_* command."""
    return _IOC_READ_WRITE << 30 | HEADER_BYTES << 16 | _DM_IOCTL << 8 | command


def pack(
    *,
    name: str = "",
    uuid: str = "",
    flags: int = 0,
    event_number: int = 0,
    target_count: int = 0,
    payload: bytes = b"",
    room: int = 0,
) -> bytearray:
    """Return the buffer of an ioctl.

    Args:
        name: which device.
        uuid: of a device to be made; otherwise the kernel looks the device up by it.
        flags: DM_*_FLAG bits.
        event_number: the udev cookie, of the commands that raise uevents.
        target_count: how many targets the payload has.
        payload: what the command adds.
        room: bytes for the answer, where it may be longer than the payload.

    Raises:
        ValueError: the name or the uuid is too long, or has a NUL.
    """
    buffer = bytearray(HEADER_BYTES + max(len(payload), room))
    buffer[HEADER_BYTES : HEADER_BYTES + len(payload)] = payload
    header = DmIoctl.from_buffer(buffer)
    header.version[:] = INTERFACE
    header.data_size = len(buffer)
    header.data_start = HEADER_BYTES
    header.target_count = target_count
    header.flags = flags
    header.event_nr = event_number
    header.name = _text(name, _NAME_BYTES, "name")
    header.uuid = _text(uuid, _UUID_BYTES, "uuid")
    return buffer


def _text(text: str, size: int, what: str) -> bytes:
    encoded = os.fsencode(text)
    if len(encoded) >= size or b"\0" in encoded:
        raise ValueError(f"not a device's {what}, of at most {size - 1} bytes: {text!r}")
    return encoded


def header_of(buffer: bytearray) -> DmIoctl:
    """Return a copy of the buffer's header."""
    return DmIoctl.from_buffer_copy(buffer)


def answer_of(buffer: bytearray) -> bytes:
    """Return what follows the header, from where the kernel says it starts."""
    return bytes(buffer[header_of(buffer).data_start :])


def parse_info(header: DmIoctl) -> DeviceInfo:
    """Return the device that an answer's header describes."""
    return DeviceInfo(
        name=os.fsdecode(header.name),
        uuid=os.fsdecode(header.uuid),
        number=header.dev,
        open_count=header.open_count,
        event_number=header.event_nr,
        target_count=header.target_count,
        flags=header.flags,
    )


def pack_targets(targets: Sequence[Target]) -> bytes:
    """Return the table's payload for DM_TABLE_LOAD; `next` counts from the same target's start."""
    packed = bytearray()
    for target in targets:
        params = target.params.encode() + b"\0"
        params += bytes(-len(params) % _ALIGNMENT)
        size = TARGET_SPEC.size + len(params)
        packed += TARGET_SPEC.pack(target.start, target.length, 0, size, target.type.encode())
        packed += params
    return bytes(packed)


def parse_targets(answer: bytes, count: int) -> list[Target]:
    """Parse the answer of DM_TABLE_STATUS; `next` counts from the first target's start.

    Raises:
        FormatError: a target lies outside of the answer.
    """
    targets = []
    offset = 0
    for _ in range(count):
        start, length, _status, following, type_ = _unpack(TARGET_SPEC, answer, offset, "table")
        params = _string(answer, offset + TARGET_SPEC.size)
        targets.append(Target(start, length, type_.split(b"\0")[0].decode(), params.strip()))
        offset = following
    return targets


def parse_names(answer: bytes) -> list[Listed]:
    """Parse the answer of DM_LIST_DEVICES; one record with number 0 means that there is none.

    Raises:
        FormatError: a record lies outside of the answer.
    """
    return [
        Listed(_string(answer, offset + _NAME_LIST.size), number)
        for offset, (number, _) in _chain(_NAME_LIST, 1, answer, "list of devices")
        if number
    ]


def parse_versions(answer: bytes) -> dict[str, tuple[int, int, int]]:
    """Parse the answer of DM_LIST_VERSIONS: the targets that are there, and their versions.

    Raises:
        FormatError: a record lies outside of the answer.
    """
    return {
        _string(answer, offset + _VERSIONS.size): (major, minor, patch)
        for offset, (_, major, minor, patch) in _chain(_VERSIONS, 0, answer, "list of targets")
    }


def parse_deps(answer: bytes) -> list[int]:
    """Parse the answer of DM_TABLE_DEPS: the dev_t of each device below.

    Raises:
        FormatError: it counts more devices than it has.
    """
    count, _ = _unpack(_DEPS, answer, 0, "dependencies")
    numbers = struct.Struct(f"={count}Q")
    return list(_unpack(numbers, answer, _DEPS.size, "dependencies"))


def pack_message(sector: int, text: str) -> bytes:
    """Return the payload of DM_TARGET_MSG."""
    return _MESSAGE.pack(sector) + text.encode() + b"\0"


def parse_text(answer: bytes) -> str:
    """Parse what a target says to a message."""
    return _string(answer, 0)


def _chain(
    record: struct.Struct, next_field: int, answer: bytes, what: str
) -> Iterator[tuple[int, tuple[int, ...]]]:
    """Yield records with their offsets; `next` counts from the same record's start, 0 ends."""
    offset = step = 0
    while not offset or step:
        offset += step
        fields = _unpack(record, answer, offset, what)
        yield offset, fields
        step = fields[next_field]
        if not step:
            return


def _unpack(record: struct.Struct, answer: bytes, offset: int, what: str) -> tuple[Any, ...]:
    if offset + record.size > len(answer):
        expected = f"a record of {record.size} bytes"
        got = f"the end of the answer at {len(answer)}"
        raise FormatError(f"device-mapper's {what}", offset, expected=expected, got=got)
    return record.unpack_from(answer, offset)


def _string(answer: bytes, offset: int) -> str:
    return os.fsdecode(answer[offset:].split(b"\0", 1)[0])
