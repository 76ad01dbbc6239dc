"""What a pool is to be, reckoned and checked before anything is done."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from lamina.core.units import format_size
from lamina.errors import InvalidArgument
from lamina.linux.dm import SECTOR, Target
from lamina.linux.dm.thin import pool_target
from lamina.snapshotters.devmapper.config import DevmapperConfig

DEFAULT_DATA_BYTES = 100 << 30
DEFAULT_METADATA_BYTES = 10 << 30
DEFAULT_IMAGE_SIZE = "10GB"

# From containerd's documentation of devmapper.
BLOCK_SECTORS = 128
BLOCK_BYTES = BLOCK_SECTORS * SECTOR
LOW_WATER_BLOCKS = 32768
FEATURES = ("skip_block_zeroing",)

SMALLEST_METADATA_BYTES = 2 << 20
LARGEST_METADATA_BYTES = 255 * (1 << 14) * 4096
"""The kernel's THIN_METADATA_MAX_SECTORS: it leaves the rest of a larger device unused."""
SMALLEST_DATA_BYTES = 16 << 20
_LOW_WATER_PART = 8
"""A small pool is low when so much of it is left; containerd's number could be more than all."""

LVM_DATA_PERCENT = 90
LVM_METADATA_PERCENT = 1
LVM_HEADER_BYTES = 8 << 20
"""What LVM keeps of a disk for itself, at most: a header, and what does not fill an extent."""
LVM_LARGEST_METADATA_BYTES = 15 << 30
_LVM_NAME = re.compile(r"[A-Za-z0-9+_.][A-Za-z0-9+_.-]*")


@dataclass(frozen=True, slots=True)
class LoopPlan:
    """A pool on two sparse files.

    Attributes:
        pool: the name of its device, and of its files without their endings.
        directory: where the files are.
        data_bytes: the size of the data, whole blocks; None for DEFAULT_DATA_BYTES.
        metadata_bytes: the size of the metadata; None for DEFAULT_METADATA_BYTES.
    """

    pool: str
    directory: Path
    data_bytes: int | None = None
    metadata_bytes: int | None = None

    @property
    def name(self) -> str:
        """The name of the pool's device."""
        return self.pool


@dataclass(frozen=True, slots=True)
class LvmPlan:
    """A thin pool in a volume group that has one disk.

    Attributes:
        pool: its name in the group.
        group: the volume group's name.
        device: the disk.
        data_bytes: the size of the data; None for LVM_DATA_PERCENT of the group.
        metadata_bytes: the size of the metadata; None for LVM_METADATA_PERCENT of the group.
    """

    pool: str
    group: str
    device: Path
    data_bytes: int | None = None
    metadata_bytes: int | None = None

    @property
    def name(self) -> str:
        """The name of the pool's device."""
        return lvm_device(self.group, self.pool)


def plan_loop(
    pool: str, directory: Path, data_bytes: int | None = None, metadata_bytes: int | None = None
) -> LoopPlan:
    """Return the plan of a pool on files.

    Raises:
        InvalidArgument: a name or a size that cannot be.
    """
    check_name(pool)
    check_sizes(data_bytes, metadata_bytes)
    if data_bytes is not None:
        data_bytes = data_bytes // BLOCK_BYTES * BLOCK_BYTES
    if metadata_bytes is not None:
        metadata_bytes = metadata_bytes // SECTOR * SECTOR
    return LoopPlan(pool, directory, data_bytes, metadata_bytes)


def plan_lvm(
    pool: str,
    group: str,
    device: Path,
    data_bytes: int | None = None,
    metadata_bytes: int | None = None,
) -> LvmPlan:
    """Return the plan of a pool in a volume group.

    Raises:
        InvalidArgument: a name or a size that cannot be.
    """
    for what, name in (("volume group", group), ("pool", pool)):
        if not _LVM_NAME.fullmatch(name) or name in {".", ".."}:
            hint = "LVM takes letters, digits and any of +_.-"
            raise InvalidArgument(f"name a {what}", name, hint=hint)
    check_name(lvm_device(group, pool))
    check_sizes(data_bytes, metadata_bytes)
    return LvmPlan(pool, group, device, data_bytes, metadata_bytes)


def lvm_sizes(plan: LvmPlan, free_bytes: int) -> tuple[int, int]:
    """Return the bytes of data and of metadata in a group with so much space.

    What is left is for the spare metadata that a repair needs, and for the pool to grow into.

    Raises:
        InvalidArgument: they do not fit.
    """
    metadata = plan.metadata_bytes or min(
        max(free_bytes * LVM_METADATA_PERCENT // 100, 2 * SMALLEST_METADATA_BYTES),
        LVM_LARGEST_METADATA_BYTES,
    )
    data = plan.data_bytes or free_bytes * LVM_DATA_PERCENT // 100 // BLOCK_BYTES * BLOCK_BYTES
    if data + 2 * metadata > free_bytes or data < SMALLEST_DATA_BYTES:
        sizes = f"{format_size(data)} and twice {format_size(metadata)} of metadata"
        raise InvalidArgument(
            f"make a pool of {sizes} on {plan.device}",
            hint=f"it has {format_size(free_bytes)}: choose less with --data-size and --meta-size",
        )
    return data, metadata


def lvm_device(group: str, pool: str) -> str:
    """Return the name that LVM gives to the device of a group's volume."""
    return f"{group.replace('-', '--')}-{pool.replace('-', '--')}"


def pool_table(data_bytes: int, *, metadata: str, data: str) -> Target:
    """Return the table of a pool on two devices, as containerd's documentation has it."""
    return pool_target(
        sectors=data_bytes // SECTOR,
        metadata=metadata,
        data=data,
        block_sectors=BLOCK_SECTORS,
        low_water=min(LOW_WATER_BLOCKS, data_bytes // BLOCK_BYTES // _LOW_WATER_PART),
        features=FEATURES,
    )


def config_section(device: str, image_size: str = DEFAULT_IMAGE_SIZE) -> str:
    """Return what a configuration, Lamina's or containerd's, says of a pool.

    Raises:
        InvalidArgument: `image_size` is no size.
    """
    check_name(device, image_size)
    return (
        '[plugins."io.containerd.snapshotter.v1.devmapper"]\n'
        f'  pool_name = "{device}"\n'
        f'  base_image_size = "{image_size}"\n'
        "  discard_blocks = true\n"
    )


def check_name(device: str, image_size: str = DEFAULT_IMAGE_SIZE) -> None:
    """Make sure that the snapshotter's configuration takes a pool of that name.

    Raises:
        InvalidArgument: it does not.
    """
    config = DevmapperConfig(pool_name=device, base_image_size=image_size)
    faults = config.problems() if device else ["pool_name: it is empty"]
    if faults:
        raise InvalidArgument(f"set up a pool: {'; '.join(faults)}")


def check_sizes(data: int | None, metadata: int | None) -> None:
    """Make sure that the kernel takes a pool of these sizes, where they are given.

    Raises:
        InvalidArgument: it does not.
    """
    if data is not None and data < SMALLEST_DATA_BYTES:
        least = format_size(SMALLEST_DATA_BYTES)
        raise InvalidArgument(f"set up a pool of {format_size(data)}", hint=f"at least {least}")
    smallest, largest = SMALLEST_METADATA_BYTES, LARGEST_METADATA_BYTES
    if metadata is not None and not smallest <= metadata <= largest:
        raise InvalidArgument(
            f"set up a pool with {format_size(metadata)} of metadata",
            hint=f"the kernel uses {format_size(smallest)} to {format_size(largest)}",
        )
