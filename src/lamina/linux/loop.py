"""Loop devices (<linux/loop.h>): a file as a block device.

A file that is bound already is not bound again: two devices on one file have each a cache of it,
and two mounts of them write over one another. One device makes both mounts one filesystem, and its
pages are in memory once.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

LOOP_SET_FD = 0x4C00
LOOP_CLR_FD = 0x4C01
LOOP_SET_STATUS64 = 0x4C04
LOOP_GET_STATUS64 = 0x4C05
LOOP_SET_CAPACITY = 0x4C07
LOOP_SET_DIRECT_IO = 0x4C08
LOOP_CONFIGURE = 0x4C0A
LOOP_CTL_GET_FREE = 0x4C82

LO_FLAGS_READ_ONLY = 1
LO_FLAGS_AUTOCLEAR = 4
LO_FLAGS_DIRECT_IO = 16

_CONTROL = "/dev/loop-control"
_RACES = 100
_NAME_BYTES = 64
_PAGE = 4096


class LoopInfo64(ctypes.Structure):
    """`struct loop_info64`: 232 bytes."""

    _fields_ = (
        ("lo_device", ctypes.c_uint64),
        ("lo_inode", ctypes.c_uint64),
        ("lo_rdevice", ctypes.c_uint64),
        ("lo_offset", ctypes.c_uint64),
        ("lo_sizelimit", ctypes.c_uint64),
        ("lo_number", ctypes.c_uint32),
        ("lo_encrypt_type", ctypes.c_uint32),
        ("lo_encrypt_key_size", ctypes.c_uint32),
        ("lo_flags", ctypes.c_uint32),
        ("lo_file_name", ctypes.c_char * _NAME_BYTES),
        ("lo_crypt_name", ctypes.c_char * _NAME_BYTES),
        ("lo_encrypt_key", ctypes.c_uint8 * 32),
        ("lo_init", ctypes.c_uint64 * 2),
    )


class LoopConfig(ctypes.Structure):
    """`struct loop_config`: 304 bytes."""

    _fields_ = (
        ("fd", ctypes.c_uint32),
        ("block_size", ctypes.c_uint32),
        ("info", LoopInfo64),
        ("reserved", ctypes.c_uint64 * 8),
    )


class LoopDevice(NamedTuple):
    """A bound loop device; with autoclear it goes when `fd` and all mounts of it are gone."""

    path: str
    fd: int


@contextmanager
def attached(
    file: str | os.PathLike[str], *, read_only: bool = False, direct_io: bool = False
) -> Iterator[LoopDevice]:
    """Bind a file to a loop device that frees itself after its last user, or share its device.

    Inside the body the device is certain to stay; mount it there. A device that somebody else
    has bound is as it is: `direct_io` and autoclear are not changed, and it may be writable where
    `read_only` is asked for.

    Args:
        file: the backing file.
        read_only: refuse writes.
        direct_io: bypass the page cache of the file's filesystem.

    Raises:
        OSError: of the file or of the device; EBUSY when other processes took every device that
            the kernel offered.
    """
    mode = os.O_CLOEXEC | (os.O_RDONLY if read_only else os.O_RDWR)
    backing = os.open(file, mode)
    try:
        flags = LO_FLAGS_AUTOCLEAR
        flags |= LO_FLAGS_READ_ONLY if read_only else 0
        flags |= LO_FLAGS_DIRECT_IO if direct_io else 0
        with _nobody_else_binds(backing):
            device = _bound(backing, mode) or _bind_free(backing, os.fsencode(file), flags, mode)
    finally:
        os.close(backing)
    try:
        yield device
    finally:
        os.close(device.fd)


@contextmanager
def shared(file: str | os.PathLike[str]) -> Iterator[LoopDevice | None]:
    """Open the writable device that a file is bound to, for the length of the body; or None."""
    backing = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
    try:
        device = _bound(backing, os.O_RDWR | os.O_CLOEXEC)
    finally:
        os.close(backing)
    try:
        yield device
    finally:
        if device is not None:
            os.close(device.fd)


def is_bound(file: str | os.PathLike[str]) -> bool:
    """Tell whether a file is bound to a device.

    Raises:
        OSError: it cannot be opened.
    """
    backing = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
    try:
        device = _bound(backing, os.O_RDONLY | os.O_CLOEXEC)
    finally:
        os.close(backing)
    if device is not None:
        os.close(device.fd)
    return device is not None


def take_over_size(device: LoopDevice) -> None:
    """Make an attached device as large as its file has become."""
    fcntl.ioctl(device.fd, LOOP_SET_CAPACITY, 0)


class Activity(NamedTuple):
    """What a device has been asked to change.

    Attributes:
        changes: writes and discards that were done since it was made.
        in_flight: writes that are not done yet.
    """

    changes: int
    in_flight: int


def activity(device: LoopDevice) -> Activity:
    """Return what a device has written; equal ones with nothing in flight: nothing was between.

    Source: Documentation/block/stat.rst of the kernel.

    Raises:
        OSError: EOPNOTSUPP where the counters are switched off (`queue/iostats`).
    """
    directory = Path("/sys/block", Path(device.path).name)
    if (directory / "queue/iostats").read_text().strip() == "0":
        raise OSError(errno.EOPNOTSUPP, "it counts no writes", str(directory / "queue/iostats"))
    # In this order, what is done in between counts as a change.
    in_flight = int((directory / "inflight").read_text().split()[1])
    counters = (directory / "stat").read_text().split()
    discards = counters[11:12] or ["0"]  # since Linux 4.18
    return Activity(int(counters[4]) + int(discards[0]), in_flight)


def backing_file(device: str) -> str | None:
    """Return the file behind `/dev/loopN` as the kernel shows it; None when it is free."""
    path = Path("/sys/block", Path(device).name, "loop/backing_file")
    try:
        return path.read_text(errors="surrogateescape").rstrip("\n")
    except FileNotFoundError:
        return None


@contextmanager
def _nobody_else_binds(backing: int) -> Iterator[None]:
    fcntl.flock(backing, fcntl.LOCK_EX)
    try:
        yield
    finally:
        # Closing does not unlock: the device has the same open file.
        fcntl.flock(backing, fcntl.LOCK_UN)


def _bound(backing: int, mode: int) -> LoopDevice | None:
    """Open the device that the file is bound to, if that is writable enough; None without one."""
    name = Path(f"/proc/self/fd/{backing}").readlink().name
    status = os.fstat(backing)
    for number in _numbers_of(name):
        device = _opened(f"/dev/loop{number}", mode)
        if device is None:
            continue
        if _is_of(device.fd, status, writable=mode & os.O_ACCMODE == os.O_RDWR):
            return device
        os.close(device.fd)
    return None


def _numbers_of(name: str) -> Iterator[int]:
    """Yield the devices bound to a file of that name, wherever it is."""
    ending = os.fsencode(f"/{name}\n")
    with os.scandir("/sys/block") as entries:
        found = [entry.name[4:] for entry in entries if entry.name.startswith("loop")]
    for number in found:
        try:
            fd = os.open(f"/sys/block/loop{number}/loop/backing_file", os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            continue  # free
        try:
            if os.read(fd, _PAGE).endswith(ending):
                yield int(number)
        except OSError as error:
            if error.errno not in {errno.ENODEV, errno.ENXIO}:  # freed meanwhile
                raise
        finally:
            os.close(fd)


def _opened(path: str, mode: int) -> LoopDevice | None:
    try:
        return LoopDevice(path, os.open(path, mode))
    except OSError as error:
        if error.errno not in {errno.ENXIO, errno.ENOENT, errno.EACCES, errno.EROFS, errno.EPERM}:
            raise
        return None  # freed meanwhile, or read-only


def _is_of(fd: int, status: os.stat_result, *, writable: bool) -> bool:
    """Tell whether an open device is bound to the whole of that file; while open, it stays so."""
    info = LoopInfo64()
    try:
        fcntl.ioctl(fd, LOOP_GET_STATUS64, info)
    except OSError as error:
        if error.errno != errno.ENXIO:
            raise
        return False
    if writable and info.lo_flags & LO_FLAGS_READ_ONLY:
        return False
    same = (info.lo_device, info.lo_inode) == (_encoded(status.st_dev), status.st_ino)
    return same and not info.lo_offset and not info.lo_sizelimit


def _encoded(device: int) -> int:
    """Return a device number as `huge_encode_dev` of <linux/kdev_t.h> has it."""
    major, minor = os.major(device), os.minor(device)
    return (minor & 0xFF) | major << 8 | (minor & ~0xFF) << 12


def _bind_free(backing: int, name: bytes, flags: int, mode: int) -> LoopDevice:
    """Bind the first free device; another process may be faster, then ask for the next."""
    for _ in range(_RACES):
        path = f"/dev/loop{_free_number()}"
        fd = os.open(path, mode)
        try:
            _configure(fd, backing, name, flags)
        except OSError as error:
            os.close(fd)
            if error.errno != errno.EBUSY:
                error.filename = path
                raise
            _pause()
        else:
            return LoopDevice(path, fd)
    raise OSError(errno.EBUSY, "every free loop device was taken by someone else", _CONTROL)


def _pause() -> None:
    """Wait for 1 to 10 ms, by chance, so that those who race get out of step."""
    time.sleep(0.001 + 0.009 * os.urandom(1)[0] / 255)


def _free_number() -> int:
    control = os.open(_CONTROL, os.O_RDWR | os.O_CLOEXEC)
    try:
        return fcntl.ioctl(control, LOOP_CTL_GET_FREE)
    finally:
        os.close(control)


def _configure(fd: int, backing: int, name: bytes, flags: int) -> None:
    info = LoopInfo64(lo_flags=flags, lo_file_name=name[: _NAME_BYTES - 1])
    try:
        fcntl.ioctl(fd, LOOP_CONFIGURE, LoopConfig(fd=backing, info=info))
    except OSError as error:
        # EINVAL is also what kernels before 5.8 say to a request they do not know.
        if error.errno != errno.EINVAL:
            raise
        _configure_in_steps(fd, backing, info)


def _configure_in_steps(fd: int, backing: int, info: LoopInfo64) -> None:
    fcntl.ioctl(fd, LOOP_SET_FD, backing)
    try:
        fcntl.ioctl(fd, LOOP_SET_STATUS64, info)
        if info.lo_flags & LO_FLAGS_DIRECT_IO:
            fcntl.ioctl(fd, LOOP_SET_DIRECT_IO, 1)
    except OSError:
        fcntl.ioctl(fd, LOOP_CLR_FD)
        raise
