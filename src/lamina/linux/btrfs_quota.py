"""Quotas of btrfs: whether they count, and the group that each subvolume has for itself.

Of both kinds: full ones, which know what is shared, and simple ones (>= 6.7), which charge an
extent for ever to the subvolume that wrote it. Reading needs CAP_SYS_ADMIN, changing as well.
"""

from __future__ import annotations

import enum
import errno
import fcntl
import struct
from typing import NamedTuple

from lamina.linux.btrfs import FIRST_FREE_OBJECTID
from lamina.linux.btrfs_tree import ROOT_TREE, Key, search

QUOTA_CTL = 0xC0109428
QUOTA_CTL_ENABLE = 1
QUOTA_CTL_ENABLE_SIMPLE_QUOTA = 4
QGROUP_CREATE = 0x4010942A
QGROUP_LIMIT = 0x8030942B
QUOTA_TREE = 8
STATUS_KEY = 240
INFO_KEY = 242
LIMIT_KEY = 244
ROOT_ITEM_KEY = 132
LAST_OF_SUBVOLUMES = (1 << 48) - 1
"""Greater numbers are of groups of groups."""

CTL_ARGS = struct.Struct("=QQ")
CREATE_ARGS = struct.Struct("=QQ")
LIMIT_ARGS = struct.Struct("=QQQQQQ")
STATUS = struct.Struct("<QQQ")
INFO = struct.Struct("<QQQQQ")
LIMIT = struct.Struct("<QQQQQ")

_MAX64 = (1 << 64) - 1
_ON = 1
_SIMPLE = 1 << 3
_MAX_REFERENCED = 1
_STAYS = frozenset({errno.ENOENT, errno.EBUSY, errno.ENOTCONN, errno.EINVAL})


class QuotaMode(enum.StrEnum):
    """How a filesystem counts."""

    OFF = "off"
    FULL = "full"
    SIMPLE = "simple"


class Group(NamedTuple):
    """What a subvolume's own group counts, in bytes, as of the last transaction.

    Attributes:
        referenced: all that it has; with simple quotas, what it has written.
        exclusive: what nothing else has; the same with simple quotas.
    """

    referenced: int
    exclusive: int


def quota_mode(fd: int) -> QuotaMode:
    """Return how the filesystem that a file is on counts."""
    status = _item(fd, Key(0, STATUS_KEY, 0))
    if status is None:
        return QuotaMode.OFF
    flags = STATUS.unpack_from(status)[2]
    if not flags & _ON:
        return QuotaMode.OFF
    return QuotaMode.SIMPLE if flags & _SIMPLE else QuotaMode.FULL


def enable_quota(fd: int, *, simple: bool) -> None:
    """Switch quotas on; where they are on already, their kind stays as it is.

    Asked of the kernel, since btrfs-progs before 6.7 knows nothing of simple ones.

    Args:
        fd: of the filesystem's root directory.
        simple: (>= 6.7) older kernels do not mount the filesystem any more.

    Raises:
        OSError: EINVAL: the kernel is too old for `simple`; EPERM; EROFS.
    """
    command = QUOTA_CTL_ENABLE_SIMPLE_QUOTA if simple else QUOTA_CTL_ENABLE
    fcntl.ioctl(fd, QUOTA_CTL, CTL_ARGS.pack(command, 0))


def quota_group(fd: int, subvolume: int) -> Group | None:
    """Return what is counted for a subvolume; None where nothing is."""
    item = _item(fd, Key(0, INFO_KEY, subvolume))
    if item is None:
        return None
    _, referenced, _, exclusive, _ = INFO.unpack_from(item)
    return Group(referenced, exclusive)


def quota_limit(fd: int, subvolume: int) -> int | None:
    """Return the bound on what a subvolume references, in bytes; None where there is none."""
    item = _item(fd, Key(0, LIMIT_KEY, subvolume))
    if item is None:
        return None
    flags, referenced, *_ = LIMIT.unpack_from(item)
    return int(referenced) if flags & _MAX_REFERENCED else None


def set_quota_limit(fd: int, subvolume: int, size: int) -> None:
    """Bound what a subvolume references to `size` bytes; writing beyond gets EDQUOT.

    Raises:
        OSError: ENOTCONN: there are no quotas; ENOENT: the subvolume has no group.
    """
    fcntl.ioctl(fd, QGROUP_LIMIT, LIMIT_ARGS.pack(subvolume, _MAX_REFERENCED, size, 0, 0, 0))


def remove_quota_group(fd: int, subvolume: int) -> None:
    """Remove the group of a subvolume that is deleted, where the kernel leaves that to others.

    Where it refuses as long as blocks are counted there, `remove_stale_groups` does it later; since
    6.10 it removes the group itself when those of a deleted subvolume are free.
    """
    try:
        fcntl.ioctl(fd, QGROUP_CREATE, CREATE_ARGS.pack(0, subvolume))
    except OSError as error:
        if error.errno not in _STAYS:
            raise


def remove_stale_groups(fd: int) -> None:
    """Remove the groups of subvolumes that are gone, with nothing counted any more.

    That is when the kernel has freed their blocks. With simple quotas it is when no snapshot has
    what they wrote any more, and no kernel removes such a group itself.
    """
    first, last = Key(0, INFO_KEY, FIRST_FREE_OBJECTID), Key(0, INFO_KEY, LAST_OF_SUBVOLUMES)
    try:
        empty = [
            key.offset
            for key, item in search(fd, QUOTA_TREE, first, last)
            if not any(INFO.unpack_from(item)[1:])
        ]
    except FileNotFoundError:
        return
    for subvolume in empty:
        root = Key(subvolume, ROOT_ITEM_KEY)
        if not any(search(fd, ROOT_TREE, root, Key(subvolume, ROOT_ITEM_KEY, _MAX64))):
            remove_quota_group(fd, subvolume)


def _item(fd: int, key: Key) -> bytes | None:
    try:
        return next(
            (item for found, item in search(fd, QUOTA_TREE, key, key) if found == key), None
        )
    except FileNotFoundError:
        return None
