"""Executes lists of mounts: bind, overlay, loop, FUSE, id-mapped; in order, and back again."""

from lamina.mount.execute import mount_all, unmount_all
from lamina.mount.temp import temp_mount
from lamina.mount.unmounting import unmount, unmount_recursive, unmount_topmost

__all__ = [
    "mount_all",
    "temp_mount",
    "unmount",
    "unmount_all",
    "unmount_recursive",
    "unmount_topmost",
]
