"""Owner, mode, attributes and times of what a layer contains."""

from __future__ import annotations

import errno
import logging
import os
import stat

from lamina.formats.tar import Entry

log = logging.getLogger(__name__)


def set_xattrs(target: int | bytes, entry: Entry, *, hidden: tuple[bytes, ...]) -> list[bytes]:
    """Set the entry's attributes on a descriptor, or on a path without following a link.

    Args:
        target: what to set them on.
        entry: where they come from.
        hidden: prefixes of attributes that steer the overlay; a layer may not set them.

    Returns:
        Names that were left out: hidden ones, ones that the filesystem does not have, and `user.`
        ones on what is neither a file nor a directory.

    Raises:
        OSError: the kernel refuses another one.
    """
    left_out = []
    for name, value in entry.xattrs.items():
        if name.startswith(hidden) or not _set_xattr(target, name, value):
            left_out.append(name)
    return left_out


def _set_xattr(target: int | bytes, name: bytes, value: bytes) -> bool:
    try:
        if isinstance(target, int):
            os.setxattr(target, name, value)
        else:
            os.setxattr(target, name, value, follow_symlinks=False)
    except OSError as error:
        if error.errno == errno.EOPNOTSUPP:
            return False
        if error.errno == errno.EPERM and name.startswith(b"user.") and not isinstance(target, int):
            return stat.S_IFMT(os.lstat(target).st_mode) in {stat.S_IFREG, stat.S_IFDIR}
        raise
    return True


def copy_directory(source: int, target: int, *, hidden: tuple[bytes, ...]) -> tuple[int, int]:
    """Give one directory owner, attributes and mode of another; return the times it is to have.

    Attributes that the target has already, and those with a hidden prefix, are not copied.
    """
    status = os.fstat(source)
    os.fchown(target, status.st_uid, status.st_gid)
    for name in os.listxattr(source):
        if not os.fsencode(name).startswith(hidden):
            _copy_xattr(source, target, name)
    os.fchmod(target, stat.S_IMODE(status.st_mode))
    return status.st_atime_ns, status.st_mtime_ns


def _copy_xattr(source: int, target: int, name: str) -> None:
    value = os.getxattr(source, name)
    try:
        os.setxattr(target, name, value, os.XATTR_CREATE)
    except OSError as error:
        if error.errno not in {errno.EEXIST, errno.EOPNOTSUPP}:
            raise
