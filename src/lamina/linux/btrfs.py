"""Subvolumes of btrfs: the ioctls of <linux/btrfs.h>, relative to open directories.

Requests are as encoded on x86, Arm, RISC-V and s390. Making a snapshot returns when it is on disk,
with everything that was written to its source before the call: it commits a transaction. Deleting
returns at once; a kernel thread frees the blocks.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import struct
from typing import NamedTuple

from lamina.linux.libc import function

BTRFS_SUPER_MAGIC = 0x9123683E
FIRST_FREE_OBJECTID = 256
"""Inode number of a subvolume's root directory, and the least id of a subvolume."""
LAST_FREE_OBJECTID = (1 << 64) - 256

SNAP_DESTROY = 0x5000940F
INO_LOOKUP = 0xD0009412
SNAP_CREATE_V2 = 0x50009417
SUBVOL_CREATE_V2 = 0x50009418
SUBVOL_GETFLAGS = 0x80089419
SUBVOL_SETFLAGS = 0x4008941A
FS_INFO = 0x8400941F
GET_SUBVOL_INFO = 0x81F8943C

_RDONLY = 1 << 1
_ROOT_RDONLY = 1 << 0
"""The same in what a tree's root says of itself, from <linux/btrfs_tree.h>."""
_WITH_GENERATION = 1 << 1

VOL_ARGS = struct.Struct("=q4088s")
VOL_ARGS_V2 = struct.Struct("=qQQ32x4040s")
LOOKUP_ARGS = struct.Struct("=QQ4080s")
FLAGS = struct.Struct("=Q")
SUBVOL_INFO = struct.Struct("=Q256sQQQQ16s16s16sQQQQ" + "QI4x" * 4 + "64x")
FILESYSTEM_INFO = struct.Struct("=48xQQ960x")
_MAX_NAME = 255

_fstatfs = function("fstatfs", ctypes.c_int, ctypes.c_char_p)


class SubvolumeInfo(NamedTuple):
    """What the kernel tells of a subvolume.

    Attributes:
        id: of its tree, unique in the filesystem for ever.
        parent_id: subvolume that its name is in.
        dir_id: inode of the directory there.
        generation: transaction of its last change.
        created: transaction that it was made in.
        is_read_only: nothing new can be opened for writing.
    """

    id: int
    parent_id: int
    dir_id: int
    generation: int
    created: int
    is_read_only: bool


def is_btrfs(fd: int) -> bool:
    """Tell whether a file is on btrfs, by the magic number of its filesystem."""
    buffer = ctypes.create_string_buffer(256)
    _fstatfs(fd, buffer)
    [magic] = struct.unpack_from("@L", buffer)
    return bool(magic == BTRFS_SUPER_MAGIC)


def is_subvolume(fd: int) -> bool:
    """Tell whether a directory on btrfs is the root of a subvolume."""
    return os.fstat(fd).st_ino == FIRST_FREE_OBJECTID


def create_subvolume(dir_fd: int, name: str) -> None:
    """Make an empty subvolume in a directory; its root has mode 0777 less the umask.

    Raises:
        OSError: EEXIST; ENOTTY: this is not btrfs; EROFS, ENOSPC, EDQUOT.
    """
    fcntl.ioctl(dir_fd, SUBVOL_CREATE_V2, bytearray(VOL_ARGS_V2.pack(0, 0, 0, _encoded(name))))


def create_snapshot(dir_fd: int, name: str, source_fd: int, *, read_only: bool = False) -> None:
    """Make a snapshot, in use or not, of the subvolume whose root is open as `source_fd`.

    What other subvolumes are nested in it show as empty directories.

    Raises:
        OSError: EEXIST; EINVAL: the source is no subvolume; EXDEV: of another filesystem; ENOSPC,
            EDQUOT.
    """
    flags = _RDONLY if read_only else 0
    arguments = VOL_ARGS_V2.pack(source_fd, 0, flags, _encoded(name))
    fcntl.ioctl(dir_fd, SNAP_CREATE_V2, bytearray(arguments))


def destroy_subvolume(dir_fd: int, name: str | bytes) -> None:
    """Delete a subvolume; mounts of it appear empty from then on.

    Raises:
        OSError: ENOENT; EINVAL, ENOTDIR: it is something else; ENOTEMPTY: there are subvolumes in
            it; EROFS: the one that it is in is read-only; EPERM: it is a send's source, the
            default subvolume, or one of the two directories is protected (chattr).
    """
    fcntl.ioctl(dir_fd, SNAP_DESTROY, bytearray(VOL_ARGS.pack(0, _encoded(name))))


def set_read_only(fd: int, wanted: bool) -> None:
    """Set or clear the property of a subvolume that nothing can be opened for writing in it.

    Descriptors that are open for writing still write: a snapshot is what they do not reach.
    """
    flags = bytearray(FLAGS.size)
    fcntl.ioctl(fd, SUBVOL_GETFLAGS, flags)
    [old] = FLAGS.unpack(flags)
    new = old | _RDONLY if wanted else old & ~_RDONLY
    if new != old:
        fcntl.ioctl(fd, SUBVOL_SETFLAGS, FLAGS.pack(new))


def is_read_only(fd: int) -> bool:
    """Tell whether a subvolume has that property."""
    flags = bytearray(FLAGS.size)
    fcntl.ioctl(fd, SUBVOL_GETFLAGS, flags)
    return bool(FLAGS.unpack(flags)[0] & _RDONLY)


def subvolume_id(fd: int) -> int:
    """Return the id of the subvolume that a file is in."""
    buffer = bytearray(LOOKUP_ARGS.pack(0, FIRST_FREE_OBJECTID, b""))
    fcntl.ioctl(fd, INO_LOOKUP, buffer)
    return int(LOOKUP_ARGS.unpack(buffer)[0])


def subvolume_info(fd: int) -> SubvolumeInfo:
    """Describe the subvolume that a file is in (>= 4.18)."""
    buffer = bytearray(SUBVOL_INFO.size)
    fcntl.ioctl(fd, GET_SUBVOL_INFO, buffer)
    id, _, parent, directory, generation, flags, *_, created, _, _ = SUBVOL_INFO.unpack(buffer)[:13]
    return SubvolumeInfo(id, parent, directory, generation, created, bool(flags & _ROOT_RDONLY))


def generation(fd: int) -> int:
    """Return the last transaction of the filesystem, running or done; 0 before Linux 5.10."""
    buffer = bytearray(FILESYSTEM_INFO.pack(_WITH_GENERATION, 0))
    fcntl.ioctl(fd, FS_INFO, buffer)
    return int(FILESYSTEM_INFO.unpack(buffer)[1])


def _encoded(name: str | bytes) -> bytes:
    raw = os.fsencode(name)
    if not raw or b"\0" in raw or b"/" in raw or raw in {b".", b".."}:
        raise ValueError(f"{raw!r} is no name of a subvolume")
    if len(raw) > _MAX_NAME:
        raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG), os.fsdecode(raw))
    return raw
