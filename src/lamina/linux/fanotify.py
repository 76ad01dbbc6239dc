"""fanotify: readers that wait until their bytes have been put into the file, and files opened.

Of fanotify(7) only what is needed here; all of it needs CAP_SYS_ADMIN.

- A filler has a group of class FAN_CLASS_PRE_CONTENT with FAN_PRE_ACCESS marks on single files.
  Linux >= 6.14 on filesystems that allow it (ext4, xfs, btrfs; not tmpfs). A file that was opened
  while it was not marked raises nothing, ever.
- A recorder has a group of class FAN_CLASS_NOTIF with a FAN_OPEN mark on a filesystem (Linux >=
  4.20), which is told of every file opened there, through whatever mount, in whatever namespace.

Records are in the machine's byte order. Source: <linux/fanotify.h>, fanotify(7).
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
import threading
from pathlib import Path
from typing import NamedTuple

from lamina.linux.libc import AT_FDCWD, Pathish, encoded, function

FAN_CLOEXEC = 0x1
FAN_NONBLOCK = 0x2
FAN_CLASS_NOTIF = 0x0
FAN_CLASS_PRE_CONTENT = 0x8
FAN_UNLIMITED_QUEUE = 0x10

FAN_MARK_ADD = 0x1
FAN_MARK_REMOVE = 0x2
FAN_MARK_FILESYSTEM = 0x100

FAN_OPEN = 0x20
FAN_Q_OVERFLOW = 0x4000
FAN_PRE_ACCESS = 0x100000

FAN_ALLOW = 1
FAN_DENY = 2
FAN_ERRNO_SHIFT = 24
FAN_NOFD = -1

FAN_EVENT_INFO_TYPE_RANGE = 6
METADATA_VERSION = 3

EVENT = struct.Struct("=IBBHQii")
"""`struct fanotify_event_metadata`: event_len, vers, reserved, metadata_len, mask, fd, pid."""
RANGE = struct.Struct("=BBHIQQ")
"""`struct fanotify_event_info_range`: info_type, pad, len, pad, offset, count."""
RESPONSE = struct.Struct("=iI")
"""`struct fanotify_response`: fd, response."""
EVENT_SIZE = EVENT.size + RANGE.size
"""Bytes of a FAN_PRE_ACCESS event: 48."""

_OPENS_AT_ONCE = 128
"""Each is a descriptor of the process that reads them."""
_EXPECTED = FAN_PRE_ACCESS | FAN_Q_OVERFLOW
_PROBE_BYTES = b"lamina"
_PROBE_PAUSE = 0.0005
_PROBE_SECONDS = 5.0

_fanotify_init = function("fanotify_init", ctypes.c_uint, ctypes.c_uint)
_fanotify_mark = function(
    "fanotify_mark",
    ctypes.c_int,
    ctypes.c_uint,
    ctypes.c_uint64,
    ctypes.c_int,
    ctypes.c_char_p,
    path=4,
)


class PreAccess(NamedTuple):
    """Somebody waits for bytes of a file.

    Attributes:
        fd: the number by which the event is answered; in the process that read the event also a
            descriptor of the file, which that process closes after the answer. FAN_NOFD: no event,
            but the queue has overflowed.
        pid: process that waits.
        offset: first byte.
        length: bytes; may reach past the end of the file. 0 when the kernel told no range.
    """

    fd: int
    pid: int
    offset: int
    length: int


def new_group() -> int:
    """Return the descriptor of a new group, non-blocking, with a queue that cannot overflow.

    Closing the last copy of it lets every reader that waits go on, whatever is in the file, and
    removes the marks.

    Raises:
        OSError: EINVAL: no permission events in this kernel; EPERM; EMFILE: too many groups.
    """
    flags = FAN_CLOEXEC | FAN_NONBLOCK | FAN_CLASS_PRE_CONTENT | FAN_UNLIMITED_QUEUE
    return _fanotify_init(flags, os.O_RDONLY | os.O_LARGEFILE | os.O_CLOEXEC)


def add_mark(group: int, path: Pathish) -> None:
    """Have reads of this file ask the group first; those through files opened from now on.

    Raises:
        OSError: EINVAL: the kernel is older than 6.14; EOPNOTSUPP: not on this filesystem.
    """
    _fanotify_mark(group, FAN_MARK_ADD, FAN_PRE_ACCESS, AT_FDCWD, encoded(path))


def remove_mark(group: int, path: Pathish) -> None:
    """Have reads of this file ask no more; those that wait are still to be answered.

    Raises:
        OSError: ENOENT: it is not marked.
    """
    _fanotify_mark(group, FAN_MARK_REMOVE, FAN_PRE_ACCESS, AT_FDCWD, encoded(path))


def has_marks(group: int) -> bool:
    """Tell whether anything is marked for the group; a deleted file is, until it is closed.

    Source: proc_pid_fdinfo(5).
    """
    return "fanotify ino:" in Path(f"/proc/self/fdinfo/{group}").read_text()


def parse_event(data: bytes | memoryview) -> PreAccess:
    """Parse one event as read(2) on the group returned it.

    Raises:
        OSError: EPROTO: the kernel speaks another version, or this is no FAN_PRE_ACCESS event.
    """
    total, version, _, start, mask, fd, pid = EVENT.unpack_from(data)
    if version != METADATA_VERSION or total > len(data) or not mask & _EXPECTED:
        raise OSError(errno.EPROTO, f"fanotify event of version {version}, mask {mask:#x}")
    while start + RANGE.size <= total:
        kind, _, size, _, offset, length = RANGE.unpack_from(data, start)
        if kind == FAN_EVENT_INFO_TYPE_RANGE:
            return PreAccess(fd, pid, offset, length)
        start += max(size, 4)
    return PreAccess(fd, pid, 0, 0)


def allow(group: int, fd: int) -> None:
    """Let the reader of an event read what is in the file now.

    Raises:
        OSError: ENOENT: the event is answered already, or its reader was killed.
    """
    os.write(group, RESPONSE.pack(fd, FAN_ALLOW))


def deny(group: int, fd: int, number: int = errno.EIO) -> None:
    """Have the read of an event fail.

    Args:
        group: the group.
        fd: of the event.
        number: what the reader gets where the kernel takes it, else EPERM: one of EIO, EBUSY,
            ETXTBSY, EAGAIN, ENOSPC, EDQUOT.

    Raises:
        OSError: ENOENT: the event is answered already, or its reader was killed.
    """
    try:
        os.write(group, RESPONSE.pack(fd, FAN_DENY | number << FAN_ERRNO_SHIFT))
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        os.write(group, RESPONSE.pack(fd, FAN_DENY))


def new_open_group() -> int:
    """Return the descriptor of a new group that can be told of opened files, non-blocking.

    Its queue has no limit of its own; it counts as memory of this process's cgroup.

    Raises:
        OSError: EPERM; EMFILE: too many groups.
    """
    flags = FAN_CLOEXEC | FAN_NONBLOCK | FAN_CLASS_NOTIF | FAN_UNLIMITED_QUEUE
    # Non-blocking, because a pipe's reading end would wait for a writer when the kernel opens it.
    opening = os.O_RDONLY | os.O_NONBLOCK | os.O_LARGEFILE | os.O_CLOEXEC
    return _fanotify_init(flags, opening)


def add_open_mark(group: int, path: Pathish) -> None:
    """Tell the group of every file, but no directory, that is opened on the filesystem of `path`.

    Files opened with O_PATH are not, executed ones and their interpreters are.

    Raises:
        OSError: EINVAL: the kernel is older than 4.20.
    """
    _fanotify_mark(group, FAN_MARK_ADD | FAN_MARK_FILESYSTEM, FAN_OPEN, AT_FDCWD, encoded(path))


def read_opened(group: int) -> list[int]:
    """Return the files opened next, in order, as descriptors that the caller closes.

    It is empty when there are none just now. Equal events may come as one, the first.

    Raises:
        OSError: ENOSPC: files were opened that nothing is known of. Another errno: a file cannot
            be opened again; that event is gone, and those behind it are still to be read.
    """
    try:
        data = os.read(group, EVENT.size * _OPENS_AT_ONCE)
    except BlockingIOError:
        return []
    found: list[int] = []
    lost = position = 0
    while position < len(data):
        total, version, _, _, mask, fd, _ = EVENT.unpack_from(data, position)
        if version != METADATA_VERSION or total < EVENT.size:
            raise OSError(errno.EPROTO, f"fanotify event of version {version}, {total} bytes")
        position += total
        lost |= mask & FAN_Q_OVERFLOW
        if fd != FAN_NOFD:
            found.append(fd)
    if lost:
        for fd in found:
            os.close(fd)
        raise OSError(errno.ENOSPC, "the queue of fanotify has overflowed")
    return found


def probe(directory: Path) -> str | None:
    """Have a read of a file in this directory filled while it waits; None, or why that failed."""
    path = directory / f"probe-{os.getpid()}-{threading.get_ident()}"
    try:
        path.write_bytes(bytes(len(_PROBE_BYTES)))
        try:
            return _try(path)
        finally:
            path.unlink()
    except OSError as error:
        return error.strerror or str(error)


def _try(path: Path) -> str | None:
    found: list[bytes] = []
    # Opened before it is marked: what is written through it asks nobody.
    writer = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    group = -1
    try:
        group = new_group()
        add_mark(group, path)
        thread = threading.Thread(target=lambda: found.append(path.read_bytes()), daemon=True)
        thread.start()
        answered = _fill_for(thread, group, writer)
    finally:
        os.close(writer)
        if group >= 0:
            os.close(group)  # frees the reader, if it waits
    thread.join()
    return None if answered and found == [_PROBE_BYTES] else "reads of a marked file do not wait"


def _fill_for(reader: threading.Thread, group: int, writer: int) -> bool:
    """Fill what the first event asks for, allow whatever the reader asks for besides."""
    import select  # this function alone waits

    poll = select.poll()
    poll.register(group, select.POLLIN)
    if not poll.poll(_PROBE_SECONDS * 1000):
        return False
    os.pwrite(writer, _PROBE_BYTES, 0)
    while reader.is_alive():
        if poll.poll(0):  # the end of the file may be asked for as well
            event = parse_event(os.read(group, EVENT_SIZE))
            allow(group, event.fd)
            os.close(event.fd)
        reader.join(_PROBE_PAUSE)
    return True
