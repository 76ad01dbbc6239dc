"""How a pool is doing."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

from lamina.errors import NotFound
from lamina.linux.dm import SECTOR, DeviceMapper, node
from lamina.linux.dm.thin import (
    METADATA_BLOCK,
    PoolMode,
    parse_pool_table,
    pool_status,
    thin_status,
)
from lamina.linux.loop import backing_file
from lamina.pool.devices import ThinDevice, active_pool, thin_devices


class Below(NamedTuple):
    """A device below a pool.

    Attributes:
        path: of the device, as the kernel calls it.
        node: by which it can be opened.
        file: behind it, where it is a loop device.
        direct_io: whether that bypasses the page cache.
    """

    path: str
    node: Path
    file: str | None
    direct_io: bool


class Thin(NamedTuple):
    """An active thin device, and how many bytes of it have blocks, shared ones included."""

    device: ThinDevice
    mapped: int


class PoolReport(NamedTuple):
    """What the kernel says of an active pool; sizes are in bytes, 0 where it does not know them.

    Attributes:
        name: of its device.
        mode: what it can still do.
        needs_check: its metadata must be checked before it takes changes again.
        data_used: as are `data_total`, `metadata_used` and `metadata_total`, what it says.
        low_water: of data: with less free, LVM or whoever listens is told.
        metadata_low_water: of metadata; None on kernels before 4.20.
        transaction_id: a number that its user keeps there.
        block: the size of a block.
        discards: see `PoolStatus`.
        fails_when_full: a write that finds no room fails at once.
        data: the device with the data.
        metadata: the device with the metadata.
        devices: the active devices on it.
    """

    name: str
    mode: PoolMode
    needs_check: bool
    data_used: int
    data_total: int
    metadata_used: int
    metadata_total: int
    low_water: int
    metadata_low_water: int | None
    transaction_id: int
    block: int
    discards: str
    fails_when_full: bool
    data: Below
    metadata: Below
    devices: tuple[Thin, ...]


def read_status(dm: DeviceMapper, name: str) -> PoolReport:
    """Ask the kernel.

    Raises:
        NotFound: the pool is not active.
        FailedPrecondition: it is no pool.
    """
    if active_pool(dm, name) is None:
        raise NotFound("pool device", node(name), hint="activate it: `lamina devmapper activate`")
    # Without flush: a pool that is out of metadata would keep whoever asks waiting.
    status = pool_status(dm, name, flush=False)
    table = parse_pool_table(dm.table(name)[0].params)
    block = table.block_sectors * SECTOR
    low = status.metadata_low_water
    return PoolReport(
        name=name,
        mode=status.mode,
        needs_check=status.needs_check,
        data_used=status.used_data * block,
        data_total=status.total_data * block,
        metadata_used=status.used_metadata * METADATA_BLOCK,
        metadata_total=status.total_metadata * METADATA_BLOCK,
        low_water=table.low_water * block,
        metadata_low_water=None if low is None else low * METADATA_BLOCK,
        transaction_id=status.transaction_id,
        block=block,
        discards=status.discards,
        fails_when_full=status.fails_when_full,
        data=_below(table.data),
        metadata=_below(table.metadata),
        devices=tuple(_thin(dm, device) for device in thin_devices(dm, name)),
    )


def _thin(dm: DeviceMapper, device: ThinDevice) -> Thin:
    return Thin(device, thin_status(dm, device.name, flush=False).mapped_sectors * SECTOR)


def _below(number: str) -> Below:
    """Describe a device that a table names by `MAJOR:MINOR`."""
    name = Path(os.path.realpath(f"/sys/dev/block/{number}")).name
    path = f"/dev/{name}"
    direct = Path("/sys/block", name, "loop/dio")
    mapped = Path("/sys/block", name, "dm/name")
    opened = node(mapped.read_text().strip()) if mapped.exists() else Path(path)
    return Below(
        path, opened, backing_file(path), direct.exists() and direct.read_text().strip() == "1"
    )
