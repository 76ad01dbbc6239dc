"""Waiting until udev has done what a device-mapper uevent asks of it, as libdevmapper does.

Where udev runs, it makes the links in /dev/mapper, a moment after the kernel has said that there
is a new table. libdevmapper's protocol tells when: the ioctl is given a cookie, the kernel puts it
into the uevent, and the last of udev's rules (`dmsetup udevcomplete`) decrements the System V
semaphore whose key the cookie is part of. Without the cookie the rules work all the same, but a
mount right after the ioctl may come too early, and blkid may still have the device open when it is
to be removed again.

The cookie also carries flags for the rules. Snapshots' devices are nobody else's business: blkid,
LVM and systemd are told to keep away, which spares what they would cost on every activation.
"""

from __future__ import annotations

import ctypes
import errno
import random
import time
from collections.abc import Callable
from pathlib import Path

from lamina.linux.libc import function

IPC_CREAT = 0o1000
IPC_EXCL = 0o2000
IPC_RMID = 0
SETVAL = 16

DM_UDEV_DISABLE_SUBSYSTEM_RULES_FLAG = 0x02
DM_UDEV_DISABLE_DISK_RULES_FLAG = 0x04
DM_UDEV_DISABLE_OTHER_RULES_FLAG = 0x08
DM_UDEV_PRIMARY_SOURCE_FLAG = 0x40
_FLAGS = (
    DM_UDEV_DISABLE_SUBSYSTEM_RULES_FLAG
    | DM_UDEV_DISABLE_DISK_RULES_FLAG
    | DM_UDEV_DISABLE_OTHER_RULES_FLAG
    | DM_UDEV_PRIMARY_SOURCE_FLAG
)
_FLAGS_SHIFT = 16
_MAGIC = 0x0D4D
_CONTROL = Path("/run/udev/control")
_RACES = 100


class _Operation(ctypes.Structure):
    """`struct sembuf`: 6 bytes."""

    _fields_ = (
        ("sem_num", ctypes.c_ushort),
        ("sem_op", ctypes.c_short),
        ("sem_flg", ctypes.c_short),
    )


class _Timespec(ctypes.Structure):
    _fields_ = (("tv_sec", ctypes.c_long), ("tv_nsec", ctypes.c_long))


_semget = function("semget", ctypes.c_int, ctypes.c_int, ctypes.c_int)
_semctl = function("semctl", ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long)
_semtimedop = function(
    "semtimedop",
    ctypes.c_int,
    ctypes.POINTER(_Operation),
    ctypes.c_size_t,
    ctypes.POINTER(_Timespec),
)


def running() -> bool:
    """Whether a udev listens to this machine's uevents, as libudev finds it out."""
    return _CONTROL.exists()


def settle(change: Callable[[int], bool], *, timeout_seconds: float) -> bool:
    """Make a change of a device, and wait until udev's rules have run.

    Args:
        change: takes the cookie for `dm_ioctl.event_nr`; says whether the kernel sent a uevent.
        timeout_seconds: how long udev may take. One in another IPC namespace never finds the
            semaphore.

    Returns:
        False when udev did not answer in time.

    Raises:
        OSError: what `change` raises; or semget or semctl failed.
    """
    key, semaphore = _new_semaphore()
    try:
        sent = change(_FLAGS << _FLAGS_SHIFT | key & 0xFFFF)
        return not sent or _reaches_zero(semaphore, timeout_seconds)
    finally:
        _semctl(semaphore, 0, IPC_RMID, 0)


def _new_semaphore() -> tuple[int, int]:
    """Make a semaphore of value 1 under a free key; its low half must not be 0."""
    for _ in range(_RACES):
        key = _MAGIC << 16 | random.randint(1, 0xFFFF)
        try:
            semaphore = _semget(key, 1, 0o600 | IPC_CREAT | IPC_EXCL)
        except FileExistsError:
            continue
        _semctl(semaphore, 0, SETVAL, 1)
        return key, semaphore
    raise OSError(errno.EEXIST, "no free key for a udev cookie's semaphore")


def _reaches_zero(semaphore: int, timeout_seconds: float) -> bool:
    deadline = time.monotonic() + timeout_seconds
    wait_for_zero = _Operation(0, 0, 0)
    while (left := deadline - time.monotonic()) > 0:
        timeout = _Timespec(int(left), int(left % 1 * 1e9))
        try:
            _semtimedop(semaphore, wait_for_zero, 1, timeout)
        except InterruptedError:
            continue
        except OSError as error:
            if error.errno == errno.EAGAIN:
                return False
            if error.errno in {errno.EIDRM, errno.EINVAL}:
                return True  # taken away by `dmsetup udevcomplete_all`
            raise
        return True
    return False
