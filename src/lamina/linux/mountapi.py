"""The mount system calls, old and new: mount(2), umount2(2), fsopen(2) and their family.

The new ones make a mount that is attached nowhere (a descriptor), so it can be given its
attributes first and appears all at once. Constants have the kernel's spelling
(<linux/mount.h>); all calls need CAP_SYS_ADMIN in the mount namespace's user namespace.
"""

from __future__ import annotations

import ctypes
import errno
import os

from lamina.linux.libc import (
    AT_EMPTY_PATH,
    AT_FDCWD,
    AT_RECURSIVE,
    Pathish,
    encoded,
    function,
    system_call,
)

MS_RDONLY = 1 << 0
MS_NOSUID = 1 << 1
MS_NODEV = 1 << 2
MS_NOEXEC = 1 << 3
MS_SYNCHRONOUS = 1 << 4
MS_REMOUNT = 1 << 5
MS_MANDLOCK = 1 << 6
MS_DIRSYNC = 1 << 7
MS_NOATIME = 1 << 10
MS_NODIRATIME = 1 << 11
MS_BIND = 1 << 12
MS_MOVE = 1 << 13
MS_REC = 1 << 14
MS_UNBINDABLE = 1 << 17
MS_PRIVATE = 1 << 18
MS_SLAVE = 1 << 19
MS_SHARED = 1 << 20
MS_SILENT = 1 << 15
MS_RELATIME = 1 << 21
MS_STRICTATIME = 1 << 24

MNT_FORCE = 1
MNT_DETACH = 2
UMOUNT_NOFOLLOW = 8

MOUNT_ATTR_RDONLY = 0x1
MOUNT_ATTR_NOSUID = 0x2
MOUNT_ATTR_NODEV = 0x4
MOUNT_ATTR_NOEXEC = 0x8
MOUNT_ATTR__ATIME = 0x70
MOUNT_ATTR_RELATIME = 0x0
MOUNT_ATTR_NOATIME = 0x10
MOUNT_ATTR_STRICTATIME = 0x20
MOUNT_ATTR_NODIRATIME = 0x80
MOUNT_ATTR_IDMAP = 0x100000

OPEN_TREE_CLONE = 1
MOVE_MOUNT_F_EMPTY_PATH = 0x4
MOVE_MOUNT_T_EMPTY_PATH = 0x40

_FSOPEN_CLOEXEC = 1
_FSMOUNT_CLOEXEC = 1
_FSCONFIG_SET_FLAG = 0
_FSCONFIG_SET_STRING = 1
_FSCONFIG_CMD_CREATE = 6
_FSCONFIG_CMD_RECONFIGURE = 7
_FSPICK_CLOEXEC = 1
_FSPICK_EMPTY_PATH = 8

DATA_MAX = os.sysconf("SC_PAGESIZE") - 1
"""Bytes of options that mount(2) takes: one page with the NUL that ends them."""
CONFIG_STRING_MAX = 255
"""The kernel refuses longer values of `fsconfig_string`, in bytes."""


class MountAttr(ctypes.Structure):
    """`struct mount_attr`, version 0: 32 bytes."""

    _fields_ = (
        ("attr_set", ctypes.c_uint64),
        ("attr_clr", ctypes.c_uint64),
        ("propagation", ctypes.c_uint64),
        ("userns_fd", ctypes.c_uint64),
    )


_CHARS = ctypes.c_char_p
_INT = ctypes.c_int
_UINT = ctypes.c_uint

_mount = function("mount", _CHARS, _CHARS, _CHARS, ctypes.c_ulong, _CHARS, path=1)
_umount2 = function("umount2", _CHARS, _INT, path=0)
_open_tree = system_call(428, _INT, _CHARS, _UINT, path=1)
_move_mount = system_call(429, _INT, _CHARS, _INT, _CHARS, _UINT)
_fsopen = system_call(430, _CHARS, _UINT)
_fsconfig = system_call(431, _INT, _UINT, _CHARS, _CHARS, _INT)
_fsmount = system_call(432, _INT, _UINT, _UINT)
_fspick = system_call(433, _INT, _CHARS, _UINT)
_mount_setattr = system_call(442, _INT, _CHARS, _UINT, ctypes.POINTER(MountAttr), ctypes.c_size_t)


def mount(source: Pathish, target: Pathish, type: str, flags: int, data: str = "") -> None:
    """Mount the old way.

    Raises:
        OSError: ENAMETOOLONG: `data` has more than DATA_MAX bytes, of which the kernel would drop
            the rest without a word.
    """
    raw = encoded(data)
    if len(raw) > DATA_MAX:
        raise OSError(errno.ENAMETOOLONG, f"the options have {len(raw)} bytes, over {DATA_MAX}")
    _mount(encoded(source), encoded(target), encoded(type), flags, raw or None)


def umount2(target: Pathish, flags: int = 0) -> None:
    """Unmount the topmost mount at a path.

    Raises:
        OSError: EBUSY (in use), EINVAL (no mount point), ENOENT, EPERM.
    """
    _umount2(encoded(target), flags)


def open_tree(path: Pathish, *, dir_fd: int = AT_FDCWD, recursive: bool = False) -> int:
    """Copy the mount that `path` lies on, with `path` as its root, attached nowhere (>= 5.2).

    Args:
        path: what becomes the root; "" for `dir_fd` itself.
        dir_fd: where a relative path starts.
        recursive: with the mounts below it.

    Returns:
        a descriptor of the copy; closing it before it is attached undoes it.
    """
    flags = OPEN_TREE_CLONE | os.O_CLOEXEC
    if recursive:
        flags |= AT_RECURSIVE
    raw = encoded(path)
    return _open_tree(dir_fd, raw, flags if raw else flags | AT_EMPTY_PATH)


def move_mount(mount_fd: int, target_fd: int) -> None:
    """Attach a mount that so far is attached nowhere on top of an open path (>= 5.2)."""
    _move_mount(mount_fd, b"", target_fd, b"", MOVE_MOUNT_F_EMPTY_PATH | MOVE_MOUNT_T_EMPTY_PATH)


def mount_setattr(
    mount_fd: int,
    *,
    set: int = 0,
    clear: int = 0,
    propagation: int = 0,
    userns_fd: int | None = None,
    recursive: bool = False,
) -> None:
    """Change a mount's attributes, or with `recursive` those of all below it, or none (>= 5.12).

    Args:
        mount_fd: from `open_tree` or `fsmount`, or any open root of a mount.
        set: MOUNT_ATTR_* to switch on.
        clear: those to switch off; to set an access time mode, clear MOUNT_ATTR__ATIME.
        propagation: one of MS_PRIVATE, MS_SLAVE, MS_SHARED, MS_UNBINDABLE, or 0.
        userns_fd: a user namespace whose id maps the mount gets; only while it is unattached.
        recursive: act on the whole tree.
    """
    if userns_fd is not None:
        set |= MOUNT_ATTR_IDMAP
    attributes = MountAttr(set, clear, propagation, userns_fd or 0)
    flags = AT_EMPTY_PATH | (AT_RECURSIVE if recursive else 0)
    size = ctypes.sizeof(attributes)
    _mount_setattr(mount_fd, b"", flags, ctypes.byref(attributes), size)


def fsopen(type: str) -> int:
    """Start the configuration of a filesystem (>= 5.2) and return its descriptor.

    Raises:
        OSError: ENODEV: the kernel does not know the type.
    """
    return _fsopen(encoded(type), _FSOPEN_CLOEXEC)


def fsconfig_string(fs_fd: int, key: str, value: str) -> None:
    """Set `key=value`, the value being at most CONFIG_STRING_MAX bytes."""
    _configure(fs_fd, _FSCONFIG_SET_STRING, key, encoded(value))


def fsconfig_flag(fs_fd: int, key: str) -> None:
    """Set an option that has no value."""
    _configure(fs_fd, _FSCONFIG_SET_FLAG, key, None)


def fsconfig_create(fs_fd: int) -> None:
    """Make the superblock from what was configured."""
    _configure(fs_fd, _FSCONFIG_CMD_CREATE, None, None)


def fspick(mount_fd: int) -> int:
    """Start to change the configuration of the filesystem of a mount (>= 5.2)."""
    return _fspick(mount_fd, b"", _FSPICK_CLOEXEC | _FSPICK_EMPTY_PATH)


def fsconfig_reconfigure(fs_fd: int) -> None:
    """Apply what was configured to the filesystem, with all of its mounts.

    Raises:
        OSError: EBUSY: to be read-only, while files are open for writing.
    """
    _configure(fs_fd, _FSCONFIG_CMD_RECONFIGURE, None, None)


def fsmount(fs_fd: int, attributes: int = 0) -> int:
    """Return a descriptor of a mount of the created filesystem, attached nowhere.

    Args:
        fs_fd: from `fsopen`, after `fsconfig_create`.
        attributes: MOUNT_ATTR_*.
    """
    return _fsmount(fs_fd, _FSMOUNT_CLOEXEC, attributes)


def _configure(fs_fd: int, command: int, key: str | None, value: bytes | None) -> None:
    raw = None if key is None else encoded(key)
    try:
        _fsconfig(fs_fd, command, raw, value, 0)
    except OSError as error:
        said = _messages(fs_fd)
        if said:
            text = f"{error.strerror} ({said})"
            raise OSError(error.errno, text) from error
        raise


def _messages(fs_fd: int) -> str:
    """Return what the filesystem says of a failure, without the `e `, `w `, `i ` in front."""
    messages = []
    while True:
        try:
            message = os.read(fs_fd, 4096)
        except OSError as error:
            if error.errno == errno.ENODATA:
                break
            raise
        messages.append(message.decode(errors="replace").strip()[2:])
    return "; ".join(messages)
