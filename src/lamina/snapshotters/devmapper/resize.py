"""A snapshot of another size than its parent's, which a label asks for."""

from __future__ import annotations

import logging

from lamina.core.driver import Snapshot
from lamina.core.snapshot import Kind
from lamina.core.units import format_size
from lamina.errors import InvalidArgument
from lamina.linux.dm import SECTOR, node
from lamina.snapshotters.devmapper.devices import Device
from lamina.snapshotters.devmapper.filesystem import grow, shrink
from lamina.snapshotters.devmapper.volumes import Volumes
from lamina.snapshotters.sizes import asked_size

log = logging.getLogger(__name__)


def asked_sectors(snapshot: Snapshot) -> int:
    """Return the size that an Active snapshot's label asks for, or 0.

    Raises:
        InvalidArgument: it is no number of bytes.
    """
    return asked_size(snapshot) // SECTOR if snapshot.kind == Kind.ACTIVE else 0


def require_possible(origin: Device, sectors: int) -> None:
    """Refuse what no copy of a device can become, before there is a copy.

    Raises:
        InvalidArgument: it is smaller, and xfs.
    """
    if sectors < origin.sectors and origin.filesystem == "xfs":
        raise InvalidArgument(
            f"make xfs of {origin.sectors * SECTOR} bytes {sectors * SECTOR} bytes large",
            hint="xfs can only grow; ext4 and ext2 can shrink as well",
        )


def resize(volumes: Volumes, name: str, device: Device, origin: Device, sectors: int) -> Device:
    """Give a new copy of `origin` its filesystem's new size; return the device as it is then.

    Args:
        volumes: of the device.
        name: the one under which it is active.
        device: the copy, which is as large as the larger of both sizes.
        origin: what it is a copy of.
        sectors: the size that is asked for.

    Raises:
        InvalidArgument: the filesystem cannot have that size.
        ToolError: what shrinks it is missing.
    """
    if sectors > origin.sectors:
        grow(node(name), device.filesystem, sectors * SECTOR)
    elif sectors < origin.sectors:
        shrink(node(name), device.filesystem, sectors * SECTOR)
        device = volumes.cut(name, device, sectors)
    return device


def warn_of_promise(volumes: Volumes, sectors: int) -> None:
    """Tell of a size that its pool could not provide if there were nothing else in it."""
    size = volumes.pool.data_sectors()
    if size and sectors > size:
        log.warning(
            "a snapshot of %s is larger than all of its pool: %s",
            format_size(sectors * SECTOR), format_size(size * SECTOR),
            extra={"pool": volumes.pool.name},
        )  # fmt: skip
