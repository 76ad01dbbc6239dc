"""All devices that a pool has, active or not: the kernel tells of them only in the metadata."""

from __future__ import annotations

import errno
import mmap
import os
from pathlib import Path

from lamina.errors import Aborted, FormatError
from lamina.formats import thin_metadata
from lamina.formats.thin_metadata import BLOCK, ThinDevice
from lamina.snapshotters.devmapper.pool import Pool

_TRIES = 50


def count_devices(pool: Pool) -> dict[int, ThinDevice]:
    """Return the devices of an active pool by their numbers.

    Nothing is locked: if the superblock is the same before and after, so was all that it leads to.

    Raises:
        Aborted: the pool changed each time.
        FormatError: its metadata is damaged.
        OSError: its metadata cannot be read.
    """
    pool.status(flush=True)  # commits
    with _Metadata(pool.metadata_device()) as metadata:
        for attempt in range(_TRIES):
            superblock = metadata.read_block(0)
            root = thin_metadata.parse_details_root(superblock)
            try:
                devices = thin_metadata.read_devices(root, metadata.read_block)
            except FormatError:
                if attempt == _TRIES - 1 or metadata.read_block(0) == superblock:
                    raise
                continue
            if metadata.read_block(0) == superblock:
                return {device.id: device for device in devices}
    raise Aborted(f"list the devices of pool {pool.name}: it changes all the time")


class _Metadata:
    """The device with a pool's metadata; read past the page cache, as the pool writes it."""

    def __init__(self, number: int) -> None:
        self._buffer = mmap.mmap(-1, BLOCK)
        self._fd = os.open(_path_of(number), os.O_RDONLY | os.O_DIRECT | os.O_CLOEXEC)

    def __enter__(self) -> _Metadata:
        return self

    def __exit__(self, *exc: object) -> None:
        os.close(self._fd)
        self._buffer.close()

    def read_block(self, number: int) -> bytes:
        """Return a block of the metadata."""
        length = os.preadv(self._fd, [self._buffer], number * BLOCK)
        return self._buffer[:length].ljust(BLOCK, b"\0")


def _path_of(number: int) -> Path:
    """Return the node of a block device that the kernel has made, given its dev_t."""
    uevent = Path(f"/sys/dev/block/{os.major(number)}:{os.minor(number)}/uevent")
    for line in uevent.read_text().splitlines():
        name, _, value = line.partition("=")
        if name == "DEVNAME":
            return Path("/dev", value)
    raise OSError(errno.ENOENT, "the device has no name", str(uevent))
