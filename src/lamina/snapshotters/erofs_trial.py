"""Whether the kernel mounts EROFS, found out by mounting an image."""

from __future__ import annotations

import stat
from pathlib import Path

from lamina.errors import LaminaError
from lamina.formats.erofs.tree import Inode
from lamina.formats.erofs.writer import write_image
from lamina.mount import unmount
from lamina.snapshotters.erofs_mount import mount_image
from lamina.snapshotters.tree import remove_tree

_NAME = "here"


def mount_fault(directory: Path) -> str | None:
    """Mount an image in that directory and return what is wrong with that; None if nothing."""
    place = directory / "erofs"
    place.mkdir()
    try:
        return _tried(place)
    except LaminaError as error:
        return str(error)
    except OSError as error:
        return f"{error.filename or place}: {error.strerror}"
    finally:
        remove_tree(place)


def _tried(place: Path) -> str | None:
    image, point = place / "image", place / "point"
    root = Inode(stat.S_IFDIR | 0o755, children={_NAME.encode(): Inode(stat.S_IFREG | 0o444)})
    with image.open("xb") as out:
        write_image(root, out)
    point.mkdir()
    mount_image(image, point)
    try:
        seen = [path.name for path in point.iterdir()]
    finally:
        unmount(point)
    return None if seen == [_NAME] else f"the mount shows {len(seen)} files, not 1"
