"""The empty filesystem that snapshots without parent start from, and what becomes of it."""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lamina.core.units import format_size
from lamina.errors import InvalidArgument, ToolError
from lamina.linux import mountapi as api
from lamina.snapshotters.lost_and_found import has_lost_and_found, remove_lost_and_found
from lamina.tools.mkfs import make_filesystem_on

_EXT_STATE = struct.Struct("<56xHH")
"""s_magic, s_state of the superblock, which is at byte 1024."""
_EXT_AT = 1024
_EXT_MAGIC = 0xEF53
_EXT_ERRORS = 0x2
_CANNOT = frozenset({errno.EINVAL, errno.EOPNOTSUPP, errno.ENOTTY, errno.EFBIG, errno.EPERM})
"""What a filesystem says that cannot grow to that size."""
_SMALL_JOURNAL_FROM = 512 << 20
_EXT4_OPTIONS = "nodiscard,lazy_itable_init=0,lazy_journal_init=0"
"""All that is zeroed is zeroed now, once, and shared. Later, each snapshot would do it for itself;
and what a pool without block zeroing has in a new block may be another filesystem's journal."""


def make_empty(device: Path, filesystem: str, *, options: str, size: int) -> None:
    """Make a filesystem whose root has nothing in it at all.

    `lost+found` would be in every container; e2fsck makes one when it needs it.

    Args:
        device: what it is to fill.
        filesystem: `ext4`, `ext2` or `xfs`.
        options: what mkfs is given with -E; "" for the usual ones.
        size: of the device, in bytes.

    Raises:
        ToolError: mkfs is missing, or refuses.
        OSError: the filesystem cannot be mounted.
    """
    usual = _EXT4_OPTIONS if filesystem == "ext4" else ""
    make_filesystem_on(
        device,
        filesystem,
        extended=options or usual,
        small_journal=filesystem == "ext4" and size >= _SMALL_JOURNAL_FROM,
    )
    with _mounted(device, filesystem) as root:
        remove_lost_and_found(root)


def grow(device: Path, filesystem: str, size: int) -> None:
    """Make the filesystem on a device, which is as large and not mounted, `size` bytes large.

    Raises:
        InvalidArgument: it cannot be that large.
        OSError: it cannot be mounted, or written to.
    """
    from lamina.linux import ext4, xfs  # most snapshots are as large as their parents

    driver = "xfs" if filesystem == "xfs" else "ext4"  # which mounts ext2 too, and can grow it
    with _mounted(device, driver) as root:
        try:
            (xfs if filesystem == "xfs" else ext4).grow(root, size)
        except OSError as error:
            if error.errno not in _CANNOT:
                raise
            what = f"grow {filesystem} to {size} bytes ({format_size(size)}): {error.strerror}"
            hint = "a filesystem grows at most as far as it was made for; see dmesg"
            raise InvalidArgument(what, hint=hint) from error


def shrink(device: Path, filesystem: str, size: int) -> None:
    """Make the ext filesystem on a device, which is not mounted, `size` bytes large.

    Raises:
        InvalidArgument: there is more in it than fits.
        ToolError: e2fsprogs is missing.
    """
    from lamina.tools.resize2fs import resize_ext_on

    with _mounted(device, filesystem) as root:  # which replays its journal, too
        had_lost_and_found = has_lost_and_found(root)
    with refusals(f"shrink to {size} bytes", hint="its content needs more than that"):
        resize_ext_on(device, size)
    if not had_lost_and_found:  # e2fsck has made one
        with _mounted(device, filesystem) as root:
            remove_lost_and_found(root)


@contextmanager
def refusals(what: str, *, hint: str = "") -> Iterator[None]:
    """Take what a program refuses for a fault of the size it was given."""
    try:
        yield
    except ToolError as error:
        if error.code < 0 or error.hint:
            raise
        raise InvalidArgument(f"{what}: {error.what}", hint=hint) from error


def is_damaged(device: Path) -> bool:
    """Tell whether the kernel has noted errors in the ext filesystem on a device."""
    with device.open("rb", buffering=0) as opened:
        opened.seek(_EXT_AT)
        head = opened.read(_EXT_STATE.size)
    magic, state = _EXT_STATE.unpack(head.ljust(_EXT_STATE.size, b"\0"))
    return magic == _EXT_MAGIC and bool(state & _EXT_ERRORS)


def mount_options(filesystem: str, *, read_only: bool) -> tuple[str, ...]:
    """Return containerd's: all snapshots of an xfs have the same UUID."""
    return (*(("nouuid",) if filesystem == "xfs" else ()), *(("ro",) if read_only else ()))


def can_remap(filesystem: str) -> bool:
    """Tell whether a filesystem can be mounted with id maps."""
    return filesystem in {"ext4", "xfs"}


@contextmanager
def _mounted(device: Path, filesystem: str) -> Iterator[int]:
    """Mount a device nowhere, and yield its root directory; it is unmounted at the end."""
    with _closing(api.fsopen(filesystem)) as fs:
        api.fsconfig_string(fs, "source", str(device))
        for option in mount_options(filesystem, read_only=False):
            api.fsconfig_flag(fs, option)
        api.fsconfig_create(fs)
        mount = api.fsmount(fs)
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
    with _closing(mount), _closing(os.open(".", flags, dir_fd=mount)) as root:
        yield root


@contextmanager
def _closing(fd: int) -> Iterator[int]:
    try:
        yield fd
    finally:
        os.close(fd)
