"""The devmapper snapshotter's configuration, with containerd's keys, defaults and validation."""

from __future__ import annotations

import re
from dataclasses import dataclass

from lamina.core.units import parse_size
from lamina.errors import InvalidArgument
from lamina.snapshotters.plugin import SnapshotterConfig

FILESYSTEMS = ("ext4", "ext2", "xfs")
DEFAULT_FILESYSTEM = FILESYSTEMS[0]

_NAME = re.compile(r"[A-Za-z0-9#+.:=@_-]+")
"""What udev's rules take over into /dev/mapper as it is."""
_LONGEST_NAME = 100
"""Of the 127 bytes of a device's name; `-snap-` and a snapshot's id follow."""
_NODES = "/dev/mapper/"
_SECTOR = 512


@dataclass(frozen=True, slots=True, kw_only=True)
class DevmapperConfig(SnapshotterConfig):
    """`[plugins."io.containerd.snapshotter.v1.devmapper"]`.

    Attributes:
        pool_name: the thin pool's device, without /dev/mapper/; "" when there is none, and the
            snapshotter is skipped.
        base_image_size: the size of every snapshot, such as `10GB`; required with a pool.
        async_remove: free a snapshot's blocks in the background, after its removal has returned.
        discard_blocks: discard a device's blocks before it is deleted, so that a pool on a sparse
            file gives them back.
        fs_type: the filesystem made in a snapshot without parent: ext4, ext2 or xfs; "" is ext4.
        fs_options: what mkfs is given with -E; "" for options that make it fast. Not used with
            xfs.
    """

    pool_name: str = ""
    base_image_size: str = ""
    async_remove: bool = False
    discard_blocks: bool = False
    fs_type: str = ""
    fs_options: str = ""

    def problems(self) -> list[str]:
        """Return what containerd refuses, and a pool's name that no device can have.

        Without a pool, the section is as complete as containerd's own default.
        """
        return [*self._size_faults(), *self._pool_faults(), *self._filesystem_faults()]

    def removes_synchronously(self) -> bool:
        """Return whether `async_remove` is off."""
        return not self.async_remove

    def filesystem(self) -> str:
        """Return `fs_type`, or what it stands for."""
        return self.fs_type or DEFAULT_FILESYSTEM

    def base_image_sectors(self) -> int:
        """Return `base_image_size` in sectors of 512 bytes; what does not fill one is left out.

        Raises:
            InvalidArgument: it is no size.
        """
        return parse_size(self.base_image_size) // _SECTOR

    def _size_faults(self) -> list[str]:
        if not self.base_image_size:
            return ["base_image_size: is required"] if self.pool_name else []
        text = f'base_image_size: failed to parse base image size: "{self.base_image_size}"'
        try:
            sectors = self.base_image_sectors()
        except InvalidArgument as error:
            return [f"{text}; {error.hint}"]
        return [] if sectors else [f"{text}; it is less than a sector"]

    def _pool_faults(self) -> list[str]:
        name = self.pool_name
        if name.startswith(_NODES):
            return [f"pool_name: write {name.removeprefix(_NODES)!r}, without {_NODES}"]
        if not name or (_NAME.fullmatch(name) and len(name) <= _LONGEST_NAME):
            return []
        return [
            f"pool_name: {name!r} is not a device's name,"
            f" of at most {_LONGEST_NAME} letters, digits and any of #+.:=@_-"
        ]

    def _filesystem_faults(self) -> list[str]:
        if self.filesystem() in FILESYSTEMS:
            return []
        return [f"fs_type: unsupported {self.fs_type!r}; choose from {', '.join(FILESYSTEMS)}"]
