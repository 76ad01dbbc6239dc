"""The kernel's side of FUSE: /dev/fuse, mounting, and the records of the protocol.

Records are in the machine's byte order. Protocol 7.31, or later ones that the kernel speaks down
from. Source: <linux/fuse.h> and Documentation/filesystems/fuse.rst of the kernel.
"""

from __future__ import annotations

import os
import struct
from typing import NamedTuple

from lamina.linux import mountapi as api
from lamina.linux.libc import Pathish

MAJOR = 7
MINOR = 31
ROOT_ID = 1
"""The node number of the root directory."""

LOOKUP = 1
FORGET = 2
GETATTR = 3
OPEN = 14
READ = 15
WRITE = 16
STATFS = 17
RELEASE = 18
FSYNC = 20
INIT = 26
OPENDIR = 27
READDIR = 28
RELEASEDIR = 29
INTERRUPT = 36
DESTROY = 38
BATCH_FORGET = 42
FALLOCATE = 43

NO_REPLY = frozenset({FORGET, BATCH_FORGET, INTERRUPT})

ASYNC_READ = 1 << 0
BIG_WRITES = 1 << 5
ASYNC_DIO = 1 << 15
PARALLEL_DIROPS = 1 << 18
MAX_PAGES = 1 << 22

FOPEN_KEEP_CACHE = 1 << 1
FOPEN_PARALLEL_DIRECT_WRITES = 1 << 6

READ_BUFFER = 8192
"""What a read of /dev/fuse must offer at least; requests other than WRITE are shorter.

Where files are written to, also `WRITE_HEADER` and `max_write`.
"""

IN_HEADER = struct.Struct("=IIQQIIIHH")
"""`fuse_in_header`: len, opcode, unique, nodeid, uid, gid, pid, total_extlen, padding."""
OUT_HEADER = struct.Struct("=IiQ")
"""`fuse_out_header`: len, error (0 or a negative errno), unique."""
INIT_IN = struct.Struct("=IIII")
"""The part of `fuse_init_in` that all versions have: major, minor, max_readahead, flags."""
INIT_OUT = struct.Struct("=IIIIHHIIHHI28x")
"""`fuse_init_out`: major, minor, max_readahead, flags, max_background, congestion_threshold,
max_write, time_gran, max_pages, map_alignment, flags2."""
ATTR = struct.Struct("=QQQQQQIIIIIIIIII")
"""`fuse_attr`: ino, size, blocks, atime, mtime, ctime, their ns, mode, nlink, uid, gid, rdev,
blksize, flags."""
ENTRY_OUT = struct.Struct("=QQQQII")
"""`fuse_entry_out` up to its `fuse_attr`: nodeid, generation, entry_valid, attr_valid, their ns."""
ATTR_OUT = struct.Struct("=QII")
"""`fuse_attr_out` up to its `fuse_attr`: attr_valid, attr_valid_nsec, dummy."""
OPEN_OUT = struct.Struct("=QII")
"""`fuse_open_out`: fh, open_flags, padding."""
READ_IN = struct.Struct("=QQIIQII")
"""`fuse_read_in`: fh, offset, size, read_flags, lock_owner, flags, padding."""
WRITE_IN = struct.Struct("=QQIIQII")
"""`fuse_write_in`: fh, offset, size, write_flags, lock_owner, flags, padding; the data follows."""
WRITE_OUT = struct.Struct("=II")
"""`fuse_write_out`: size, padding."""
WRITE_HEADER = IN_HEADER.size + WRITE_IN.size
FALLOCATE_IN = struct.Struct("=QQQII")
"""`fuse_fallocate_in`: fh, offset, length, mode, padding."""
KSTATFS = struct.Struct("=QQQQQIIII24x")
"""`fuse_kstatfs`: blocks, bfree, bavail, files, ffree, bsize, namelen, frsize, padding."""
DIRENT = struct.Struct("=QQII")
"""`fuse_dirent` up to its name: ino, off, namelen, type; padded to 8 bytes with the name."""


class Request(NamedTuple):
    """The head of a request."""

    opcode: int
    unique: int
    node: int


def open_device() -> int:
    """Return a new connection, non-blocking, which the first mount with it makes use of.

    Closing the last copy of it makes every use of the filesystem fail with ENOTCONN.
    """
    return os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)


def mount(device: int, target: Pathish, source: str, *, writable: bool = False) -> None:
    """Mount the filesystem that is served through `device`, for everyone (`allow_other`).

    Needs CAP_SYS_ADMIN in the first user namespace, as `nosuid,nodev` mounts of users do not.

    Args:
        device: from `open_device`.
        target: a directory.
        source: for show.
        writable: let its files be written to.
    """
    data = f"fd={device},rootmode=40000,user_id={os.geteuid()},group_id={os.getegid()},allow_other"
    flags = api.MS_NOSUID | api.MS_NODEV | api.MS_NOEXEC
    flags |= 0 if writable else api.MS_RDONLY
    api.mount(source, target, "fuse", flags, data)


def parse_request(data: bytes | memoryview) -> Request:
    """Parse the head of a request as read(2) returned it."""
    _, opcode, unique, node, *_ = IN_HEADER.unpack_from(data)
    return Request(opcode, unique, node)


def reply(device: int, unique: int, payload: bytes | memoryview = b"") -> None:
    """Answer a request with its result.

    Raises:
        OSError: ENOENT: the request is answered already, or nobody waits for it any more.
    """
    header = OUT_HEADER.pack(OUT_HEADER.size + len(payload), 0, unique)
    os.writev(device, (header, payload))


def reply_error(device: int, unique: int, number: int) -> None:
    """Answer a request with an errno.

    Raises:
        OSError: ENOENT: as `reply`.
    """
    os.write(device, OUT_HEADER.pack(OUT_HEADER.size, -number, unique))
