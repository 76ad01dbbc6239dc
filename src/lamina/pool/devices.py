"""Devices as the kernel has them: a pool's, those on it, and who uses them."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

from lamina.errors import FailedPrecondition, LaminaError
from lamina.linux.dm import SECTOR, DeviceInfo, DeviceMapper, Target, node
from lamina.linux.mountinfo import read_mountinfo

_BUSY_SECONDS = 2.0
"""How long others, such as udev's programs, may keep a device open that nobody uses."""
_POLL_SECONDS = 0.05


class ThinDevice(NamedTuple):
    """An active thin device.

    Attributes:
        name: of its device.
        id: its number in the pool.
        size: in bytes.
        open_count: by how many it is open; mounts count once.
        mount_points: where it is mounted, as this process sees it.
    """

    name: str
    id: int
    size: int
    open_count: int
    mount_points: tuple[str, ...]

    def __str__(self) -> str:
        places = f" (mounted on {', '.join(self.mount_points)})" if self.mount_points else ""
        return f"{self.name}{places}"


@contextmanager
def device_mapper() -> Iterator[DeviceMapper]:
    """Open device-mapper for the body.

    Raises:
        FailedPrecondition: this kernel has none, or this user may not use it.
    """
    try:
        dm = DeviceMapper()
    except OSError as error:
        if error.errno not in {errno.ENODEV, errno.ENXIO, errno.EACCES, errno.EPERM}:
            raise
        hint = "run as root, on a kernel with dm-thin-pool (modprobe dm-thin-pool)"
        what = f"use device-mapper: {(error.strerror or 'not there').lower()}"
        raise FailedPrecondition(what, hint=hint) from error
    with dm:
        yield dm


def active_pool(dm: DeviceMapper, name: str) -> DeviceInfo | None:
    """Return a pool's device; None while it is not active.

    Raises:
        FailedPrecondition: the device of that name is no pool.
    """
    info = dm.find(name)
    if info is None or not info.live:
        return None
    if [target.type for target in dm.table(name)] != ["thin-pool"]:
        hint = "something else has that name: choose another for the pool"
        raise FailedPrecondition("use as pool", node(name), hint=hint)
    return info


def thin_devices(dm: DeviceMapper, pool: str) -> list[ThinDevice]:
    """Return the active devices on a pool; none when that is not active."""
    info = active_pool(dm, pool)
    if info is None:
        return []
    number = f"{os.major(info.number)}:{os.minor(info.number)}"
    mounts = _mount_points()
    return [
        found
        for name, _ in dm.devices()
        if (found := _thin_device(dm, name, number, mounts)) is not None
    ]


def _thin_device(
    dm: DeviceMapper, name: str, pool: str, mounts: dict[str, list[str]]
) -> ThinDevice | None:
    try:
        info, table = dm.info(name), dm.table(name)
    except OSError as error:
        if error.errno != errno.ENXIO:  # removed meanwhile
            raise
        return None
    words = table[0].params.split() if [target.type for target in table] == ["thin"] else []
    if not words or words[0] != pool:
        return None
    device = f"{os.major(info.number)}:{os.minor(info.number)}"
    points = tuple(mounts.get(device, ()))
    return ThinDevice(name, int(words[1]), table[0].length * SECTOR, info.open_count, points)


def _mount_points() -> dict[str, list[str]]:
    points: dict[str, list[str]] = {}
    for mount in read_mountinfo():
        points.setdefault(mount.device, []).append(mount.point)
    return points


def remove_idle(dm: DeviceMapper, pool: str) -> None:
    """Deactivate all devices on a pool, whose content stays.

    Raises:
        FailedPrecondition: some are in use; then none is deactivated.
    """
    devices = thin_devices(dm, pool)
    used = [str(device) for device in devices if device.open_count]
    if used:
        hint = f"end what uses these: {', '.join(used)}"
        raise FailedPrecondition("deactivate pool", pool, hint=hint)
    for device in devices:
        remove_device(dm, device.name)


def fail_all(dm: DeviceMapper, pool: str) -> None:
    """Take a pool from under the devices on it: whoever uses one gets I/O errors from now on."""
    for device in thin_devices(dm, pool):
        if device.open_count:
            dm.load(device.name, [Target(0, device.size // SECTOR, "error", "")])
            dm.suspend(device.name, flush=False, freeze=False)
            dm.resume(device.name)
            dm.remove(device.name, deferred=True)
        else:
            remove_device(dm, device.name)


def remove_device(dm: DeviceMapper, name: str) -> None:
    """Remove a device; none there is no error.

    Raises:
        FailedPrecondition: it is in use.
    """
    deadline = time.monotonic() + _BUSY_SECONDS
    while True:
        try:
            dm.remove(name)
        except OSError as error:
            if error.errno == errno.ENXIO:
                return
            if error.errno != errno.EBUSY:
                raise
            if time.monotonic() > deadline:
                raise _in_use(name) from error
            time.sleep(_POLL_SECONDS)
        else:
            return


def _in_use(name: str) -> LaminaError:
    hint = "it is mounted, or a process has it open: end that first"
    return FailedPrecondition("remove device", node(name), hint=hint)
