"""The filesystem in a file: made, mounted where nobody sees it, put to rest, resized."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lamina.errors import DataLoss, FailedPrecondition, InvalidArgument, ToolError
from lamina.linux import loop
from lamina.linux import mountapi as api
from lamina.snapshotters.blockfile.superblock import Condition, family_of, read_superblock
from lamina.snapshotters.lost_and_found import has_lost_and_found, remove_lost_and_found

_NO_LEASES = frozenset({errno.EINVAL, errno.ENOLCK, errno.EOPNOTSUPP})
_NEEDS_WRITES = frozenset({errno.EROFS, errno.EACCES, errno.EINVAL})
"""What filesystems say to a read-only device while their journal is to be replayed."""
XFS_SMALLEST = 300 << 20
"""Bytes; mkfs.xfs refuses less."""


def make_image(file: Path, fs_type: str, size: int) -> None:
    """Make a sparse file with an empty filesystem of `size` bytes.

    Its root is really empty: `lost+found` would show up in every container, and e2fsck makes one
    when it needs it.

    Raises:
        InvalidArgument: no filesystem of that type is so small.
    """
    from lamina.tools.mkfs import make_filesystem  # to run a container, none is made

    file.open("xb").close()
    _set_length(file, size)
    try:
        make_filesystem(file, fs_type, size)
    except ToolError as error:
        if error.code < 0 or error.hint:
            raise
        raise InvalidArgument(f"make {fs_type} of {size} bytes: {error.what}") from error
    with loop.attached(file) as device, mounted(device.path, fs_type) as root:
        remove_lost_and_found(root)


def settle(file: Path, fs_type: str) -> None:
    """Leave the filesystem such that it can be mounted read-only from now on.

    One that is still mounted becomes read-only, wherever it is mounted; nothing that was written
    to it is missing then. One that was not unmounted cleanly has its journal replayed.

    Raises:
        FailedPrecondition: files in it are open for writing, or the file itself is.
        DataLoss: the filesystem is damaged.
    """
    if is_being_written(file):
        _make_read_only(file, fs_type)
    elif _needs_recovery(file, fs_type):
        with loop.attached(file) as device, mounted(device.path, fs_type):
            pass
    if read_superblock(file).condition == Condition.DAMAGED:
        raise DataLoss(
            "use filesystem in",
            file,
            hint="the kernel has noted errors in it, as when the disk below was full:"
            " see dmesg, and start from its parent again",
        )


def resize_image(file: Path, fs_type: str, size: int) -> None:
    """Change the size of a filesystem that is not mounted, and of its file.

    Raises:
        InvalidArgument: this filesystem cannot have that size.
    """
    family = family_of(fs_type)
    current = file.stat().st_size
    if size == current:
        return
    if family == "ext":
        _set_length(file, max(size, current))
        _resize_ext(file, fs_type, size)
    elif family == "xfs" and size > current:
        _set_length(file, size)
        _grow_xfs(file, size)
    else:
        raise InvalidArgument(
            f"change {fs_type} of {current} bytes to {size}",
            hint="ext4 can shrink and grow, xfs only grow, others neither",
        )


def _set_length(file: Path, size: int) -> None:
    try:
        os.truncate(file, size)
    except OSError as error:
        if error.errno != errno.EFBIG:
            raise
        raise InvalidArgument(
            f"make {file} {size} bytes long", hint="its disk takes no file of that size"
        ) from error


def _resize_ext(file: Path, fs_type: str, size: int) -> None:
    from lamina.tools.resize2fs import resize_ext  # starts processes

    with loop.attached(file) as device, mounted(device.path, fs_type) as root:
        had_lost_and_found = has_lost_and_found(root)
    try:
        resize_ext(file, size)
    except ToolError as error:
        if error.code < 0 or error.hint:
            raise
        hint = "its content needs more than that"
        raise InvalidArgument(f"resize to {size} bytes: {error.what}", hint=hint) from error
    if not had_lost_and_found:  # e2fsck has made one
        with loop.attached(file) as device, mounted(device.path, fs_type) as root:
            remove_lost_and_found(root)


def _grow_xfs(file: Path, size: int) -> None:
    from lamina.linux import xfs  # defines structures

    with loop.attached(file) as device, mounted(device.path, "xfs") as root:
        xfs.grow(root, size)


def is_being_written(file: Path) -> bool:
    """Tell whether anybody, a loop device included, has the file open for writing."""
    with file.open("rb", buffering=0) as opened:
        # Who opens it for writing meanwhile has this signal sent, which by default is SIGIO and
        # ends the process; this one is ignored.
        fcntl.fcntl(opened, fcntl.F_SETSIG, signal.SIGURG)
        try:
            fcntl.fcntl(opened, fcntl.F_SETLEASE, fcntl.F_RDLCK)
        except BlockingIOError:
            return True
        except OSError as error:
            if error.errno not in _NO_LEASES:
                raise
            return _has_device(file)  # the most likely one
        fcntl.fcntl(opened, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    return False


def _has_device(file: Path) -> bool:
    with loop.shared(file) as device:
        return device is not None


def _make_read_only(file: Path, fs_type: str) -> None:
    with loop.shared(file) as device:
        if device is not None:
            _remount_read_only(file, device.path, fs_type)
            return
    if _needs_recovery(file, fs_type):
        raise FailedPrecondition(
            "use filesystem in", file, hint="a process has the file open for writing: end it first"
        )


def _remount_read_only(file: Path, device: str, fs_type: str) -> None:
    """Mount the device once more, which gives the filesystem that is mounted, and change that."""
    try:
        fs = created(device, fs_type)
    except OSError as error:
        if error.errno != errno.EBUSY:
            raise
        return  # it is mounted read-only already
    with _closing(fs):
        mount = api.fsmount(fs)
    with _closing(mount), _closing(api.fspick(mount)) as change:
        api.fsconfig_flag(change, "ro")
        try:
            api.fsconfig_reconfigure(change)
        except OSError as error:
            if error.errno != errno.EBUSY:
                raise
            raise FailedPrecondition(
                "use filesystem in",
                file,
                hint="it is mounted, and files in it are open for writing: unmount it first",
            ) from error


def _needs_recovery(file: Path, fs_type: str) -> bool:
    condition = read_superblock(file).condition
    if condition != Condition.UNKNOWN:
        return condition == Condition.NEEDS_RECOVERY
    with loop.attached(file, read_only=True) as device:
        try:
            fs = created(device.path, fs_type, "ro")
        except OSError as error:
            if error.errno not in _NEEDS_WRITES:
                raise
            return True
        os.close(fs)
    return False


@contextmanager
def mounted(device: str, fs_type: str) -> Iterator[int]:
    """Mount a device nowhere, and yield its root directory; it is unmounted at the end."""
    with _closing(created(device, fs_type)) as fs:
        mount = api.fsmount(fs)
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
    with _closing(mount), _closing(os.open(".", flags, dir_fd=mount)) as root:
        yield root


def created(device: str, fs_type: str, *flags: str) -> int:
    """Return the configuration of a filesystem that exists now, to be mounted or closed."""
    fs = api.fsopen(fs_type)
    try:
        api.fsconfig_string(fs, "source", device)
        for flag in (*flags, *(("nouuid",) if fs_type == "xfs" else ())):
            api.fsconfig_flag(fs, flag)
        api.fsconfig_create(fs)
    except BaseException:
        os.close(fs)
        raise
    return fs


@contextmanager
def _closing(fd: int) -> Iterator[int]:
    try:
        yield fd
    finally:
        os.close(fd)
