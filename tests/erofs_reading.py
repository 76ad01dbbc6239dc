"""Images in memory, read; and trees to make them of."""

from __future__ import annotations

import io
import stat
from collections.abc import Sequence

from lamina.formats.erofs.layout import (
    EROFS_FEATURE_COMPAT_SB_CHKSUM,
    EROFS_SUPER_OFFSET,
    SUPERBLOCK,
)
from lamina.formats.erofs.reader import Image
from lamina.formats.erofs.tree import BLOCK, HOLE, Extent, Inode
from lamina.formats.erofs.writer import Device, write_image
from tests.erofs import Bytes, Data, directory, regular, symlink


def written(root: Inode, data: Data, *, flat: bool = False) -> bytes:
    out = io.BytesIO()
    if data.first_block:
        out.write(data.devices[0])
    devices = [Device(len(content) // BLOCK, b"tag") for content in data.devices[1:]]
    write_image(root, out, devices=devices, first_block=data.first_block, flat=flat)
    return out.getvalue()


def read(image: bytes | bytearray, devices: Sequence[bytes | bytearray] = ()) -> Image:
    return Image(Bytes(image), [Bytes(device) for device in devices])


def without_checksum(image: bytes) -> bytearray:
    """Return an image that can be changed."""
    changed = bytearray(image)
    changed[EROFS_SUPER_OFFSET + 8] &= ~EROFS_FEATURE_COMPAT_SB_CHKSUM
    return changed


def small() -> tuple[Inode, Data]:
    data = Data(1)
    file = regular(data.put(b"x" * 8192), Extent(100, HOLE, 0), xattrs={b"user.a": b"1"})
    below = directory({b"f": file, b"l": symlink(b"to"), b"null": Inode(stat.S_IFCHR)})
    return directory({b"d": below, b"again": file}, mtime=5), data


def changed(image: bytes, **values: object) -> bytes:
    """Return an image with other values in its superblock, without a checksum."""
    copy = without_checksum(image)
    superblock = read(image).superblock._replace(**values)  # type: ignore[arg-type]
    compat = superblock.feature_compat & ~EROFS_FEATURE_COMPAT_SB_CHKSUM
    superblock = superblock._replace(feature_compat=compat)
    SUPERBLOCK.pack_into(copy, EROFS_SUPER_OFFSET, *superblock)
    return bytes(copy)
