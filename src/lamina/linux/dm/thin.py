"""Thin pools and thin devices: their tables, messages and states.

Source: the kernel's Documentation/admin-guide/device-mapper/thin-provisioning.rst. A pool keeps
blocks of a data device and, in its metadata, which block of which thin device is where. A thin
device exists in the metadata by its number alone; a table `thin` makes it visible.
"""

from __future__ import annotations

import enum
import os
from dataclasses import dataclass
from typing import NamedTuple

from lamina.errors import FormatError
from lamina.linux.dm.control import DeviceMapper
from lamina.linux.dm.layout import Target

MAX_DEVICE_ID = (1 << 24) - 1
METADATA_BLOCK = 4096
"""Bytes of each block that the pool's metadata figures count."""


class PoolMode(enum.Enum):
    """What a pool can still do.

    Attributes:
        READ_WRITE: everything.
        READ_ONLY: nothing that changes its metadata: that is full, damaged or failing.
        OUT_OF_DATA_SPACE: all but writes that need a new block.
        FAILED: nothing; no figure of its status is known.
        UNKNOWN: its figures could not be read.
    """

    READ_WRITE = "rw"
    READ_ONLY = "ro"
    OUT_OF_DATA_SPACE = "out_of_data_space"
    FAILED = "Fail"
    UNKNOWN = "Error"


@dataclass(frozen=True, slots=True)
class PoolStatus:
    """A pool's state.

    Attributes:
        mode: what it can still do.
        transaction_id: a number that the pool's user keeps there.
        used_metadata: blocks of METADATA_BLOCK bytes, as is `total_metadata`.
        used_data: blocks of the size in the pool's table, as is `total_data`.
        held_root: the metadata snapshot's block, None when there is none.
        fails_when_full: a write that finds no block fails at once instead of waiting.
        needs_check: its metadata must be checked (`thin_check`, `thin_repair`) before it can be
            written again.
        metadata_low_water: free metadata blocks below which it raises an event; None on kernels
            before 4.20.
        discards: `discard_passdown`, `no_discard_passdown` (which it is, too, where what is below
            takes none) or `ignore_discard`; "" when unknown.
    """

    mode: PoolMode
    transaction_id: int = 0
    used_metadata: int = 0
    total_metadata: int = 0
    used_data: int = 0
    total_data: int = 0
    held_root: int | None = None
    fails_when_full: bool = False
    needs_check: bool = False
    metadata_low_water: int | None = None
    discards: str = ""


class PoolTable(NamedTuple):
    """What a pool's table says; see `pool_target`.

    Attributes:
        metadata: the metadata device, as a path or MAJOR:MINOR.
        data: the data device, likewise.
        block_sectors: the size of a block.
        low_water: free data blocks below which the pool raises an event.
        features: the words that differ from the kernel's defaults.
    """

    metadata: str
    data: str
    block_sectors: int
    low_water: int
    features: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ThinStatus:
    """A thin device's state.

    Attributes:
        mapped_sectors: how much of it has blocks, shared ones included.
        highest_sector: the last that has; None when none has.
        failed: its pool has failed; the figures are not known.
    """

    mapped_sectors: int = 0
    highest_sector: int | None = None
    failed: bool = False


def pool_target(
    *,
    sectors: int,
    metadata: str,
    data: str,
    block_sectors: int,
    low_water: int,
    features: tuple[str, ...] = ("skip_block_zeroing",),
) -> Target:
    """Return a pool's table.

    Args:
        sectors: the size of the data device.
        metadata: the metadata device, as a path or MAJOR:MINOR; a new one begins with zeros.
        data: the data device, likewise.
        block_sectors: a multiple of 128, up to 2097152.
        low_water: free data blocks below which the pool raises an event.
        features: `skip_block_zeroing`, `ignore_discard`, `no_discard_passdown`, `read_only`,
            `error_if_no_space`.
    """
    words = (metadata, data, block_sectors, low_water, len(features), *features)
    return Target(0, sectors, "thin-pool", " ".join(map(str, words)))


def thin_target(*, pool: int, device_id: int, sectors: int) -> Target:
    """Return a thin device's table; `pool` is the dev_t of the pool's device."""
    return Target(0, sectors, "thin", f"{os.major(pool)}:{os.minor(pool)} {device_id}")


def create_thin(dm: DeviceMapper, pool: str, device_id: int) -> None:
    """Make an empty thin device.

    Raises:
        OSError: EEXIST when the number is taken.
    """
    dm.message(pool, f"create_thin {device_id}")


def create_snap(dm: DeviceMapper, pool: str, device_id: int, origin_id: int) -> None:
    """Make a thin device that shares all blocks of another.

    An origin that is active must be suspended meanwhile, or the snapshot is damaged.

    Raises:
        OSError: EEXIST when the number is taken, ENODATA when there is no origin.
    """
    dm.message(pool, f"create_snap {device_id} {origin_id}")


def delete(dm: DeviceMapper, pool: str, device_id: int) -> None:
    """Delete a thin device for good.

    Raises:
        OSError: ENODATA when there is none, EBUSY when it is active.
    """
    dm.message(pool, f"delete {device_id}")


def set_transaction_id(dm: DeviceMapper, pool: str, *, current: int, new: int) -> None:
    """Change the number that the pool's user keeps in its metadata.

    Raises:
        OSError: EINVAL when it is not `current`.
    """
    dm.message(pool, f"set_transaction_id {current} {new}")


def pool_status(dm: DeviceMapper, pool: str, *, flush: bool = True) -> PoolStatus:
    """Return a pool's state; see `DeviceMapper.status` for `flush`.

    Raises:
        FormatError: the device is not a pool.
    """
    return parse_pool_status(_only(dm.status(pool, flush=flush), "thin-pool"))


def thin_status(dm: DeviceMapper, name: str, *, flush: bool = True) -> ThinStatus:
    """Return a thin device's state.

    Raises:
        FormatError: the device is not a thin device.
    """
    return parse_thin_status(_only(dm.status(name, flush=flush), "thin"))


def parse_pool_status(text: str) -> PoolStatus:
    """Parse the status of a `thin-pool` target.

    Raises:
        FormatError: it is none.
    """
    if text in {PoolMode.FAILED.value, PoolMode.UNKNOWN.value}:
        return PoolStatus(PoolMode(text))
    words = text.split()
    try:
        transaction_id, metadata, data, held_root, mode, discards, when_full = words[:7]
        used_metadata, total_metadata = map(int, metadata.split("/"))
        used_data, total_data = map(int, data.split("/"))
        return PoolStatus(
            mode=PoolMode(mode),
            transaction_id=int(transaction_id),
            used_metadata=used_metadata,
            total_metadata=total_metadata,
            used_data=used_data,
            total_data=total_data,
            held_root=_number_or_none(held_root),
            fails_when_full=when_full == "error_if_no_space",
            needs_check="needs_check" in words[7:8],
            metadata_low_water=int(words[8]) if len(words) > 8 else None,
            discards=discards,
        )
    except ValueError as error:
        expected = "a transaction id, used/total of metadata and data, root, mode, options"
        raise FormatError("thin-pool status", 0, expected=expected, got=repr(text)) from error


def parse_pool_table(text: str) -> PoolTable:
    """Parse the table of a `thin-pool` target.

    Raises:
        FormatError: it is none.
    """
    try:
        metadata, data, block_sectors, low_water, count, *words = text.split()
        features = tuple(words[: int(count)])
        return PoolTable(metadata, data, int(block_sectors), int(low_water), features)
    except ValueError as error:
        expected = "metadata, data, block size, low water, count of features"
        raise FormatError("thin-pool table", 0, expected=expected, got=repr(text)) from error


def parse_thin_status(text: str) -> ThinStatus:
    """Parse the status of a `thin` target.

    Raises:
        FormatError: it is none.
    """
    if text in {"Fail", "Error"}:
        return ThinStatus(failed=True)
    try:
        mapped, highest = text.split()
        return ThinStatus(int(mapped), _number_or_none(highest))
    except ValueError as error:
        expected = "mapped sectors and the highest of them"
        raise FormatError("thin status", 0, expected=expected, got=repr(text)) from error


def _number_or_none(word: str) -> int | None:
    return None if word == "-" else int(word)


def _only(targets: list[Target], type_: str) -> str:
    if len(targets) == 1 and targets[0].type == type_:
        return targets[0].params
    got = ", ".join(target.type for target in targets) or "no table"
    raise FormatError("device's table", 0, expected=f"one target {type_}", got=got)
