"""What the superblock in a file says: which filesystem it is, and in which condition.

Layouts: Documentation/filesystems/ext4/super.rst and fs/xfs/libxfs/xfs_format.h of the kernel.
"""

from __future__ import annotations

import enum
import struct
from pathlib import Path
from typing import NamedTuple

EXT_TYPES = ("ext2", "ext3", "ext4")

_HEAD = 2048
_EXT_AT = 1024
_EXT = struct.Struct("<56xHH36xI")
"""s_magic, s_state, s_feature_incompat; from byte 1024 on."""
assert _EXT.size == 0x64
_EXT_MAGIC = 0xEF53
_EXT_ERRORS = 0x2
_EXT_RECOVER = 0x4
_XFS_MAGIC = b"XFSB"


class Condition(enum.Enum):
    """What mounting a filesystem read-only would meet."""

    CLEAN = enum.auto()
    NEEDS_RECOVERY = enum.auto()
    """Its journal is to be replayed first, which takes a writable mount."""
    DAMAGED = enum.auto()
    """The kernel has noted errors in it."""
    UNKNOWN = enum.auto()
    """Only mounting it tells."""


class Superblock(NamedTuple):
    """What is known of the filesystem in a file; `family` is `ext`, `xfs` or "" (another)."""

    family: str
    condition: Condition


def read_superblock(file: Path) -> Superblock:
    """Read what the file says; a mounted one may say less than is in memory."""
    with file.open("rb", buffering=0) as opened:
        head = opened.read(_HEAD)
    if head.startswith(_XFS_MAGIC):
        return Superblock("xfs", Condition.UNKNOWN)
    if len(head) < _EXT_AT + _EXT.size:
        return Superblock("", Condition.UNKNOWN)
    magic, state, incompatible = _EXT.unpack_from(head, _EXT_AT)
    if magic != _EXT_MAGIC:
        return Superblock("", Condition.UNKNOWN)
    if state & _EXT_ERRORS:
        return Superblock("ext", Condition.DAMAGED)
    if incompatible & _EXT_RECOVER:
        return Superblock("ext", Condition.NEEDS_RECOVERY)
    return Superblock("ext", Condition.CLEAN)


def family_of(fs_type: str) -> str:
    """Return the family that a filesystem type belongs to, as in `Superblock`."""
    if fs_type in EXT_TYPES:
        return "ext"
    return "xfs" if fs_type == "xfs" else ""
