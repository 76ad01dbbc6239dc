"""An EROFS image that the writer does not make, laid out after the kernel's `erofs_fs.h`."""

from __future__ import annotations

import struct

BLOCK = 512
META = 4 * BLOCK
"""Where nids count from."""
CHUNKS, INDEX, TAIL = 8, 10, 12
"""Nids of the files; the root's is 1."""
DEVICES = (b"a" * BLOCK + b"b" * BLOCK + b"c" * BLOCK, b"d" * BLOCK + b"e" * 600 + bytes(424))
_INODE = "<HHHHIIIIHHI"
_NAMES = b"...chunksindextail"


def by_hand() -> bytearray:
    """Return an image with two devices, the first of which takes the place of blocks of the image.

    Its files have block numbers without indexes, an index with bits that have no meaning and one
    link by a flag, and a tail beside the inode.
    """
    image = bytearray(8 * BLOCK)
    image[6 * BLOCK :] = b"6" * BLOCK + b"7" * BLOCK
    struct.pack_into("<IIIBBH", image, 1024, 0xE0F5E1E2, 0, 0, 9, 0, 1)
    struct.pack_into("<QqIIII", image, 1040, 5, 100, 7, 8, 4, 0)
    struct.pack_into("<IHHH", image, 1104, 4 | 8, 0, 2, 10)
    struct.pack_into("<64sII", image, 1280, b"t" * 64, 3, 0x1000)
    struct.pack_into("<64sII", image, 1408, b"", 2, 0)

    put_inode(image, 1, 2 << 1, 0o40755, 2, 5 * 12 + len(_NAMES), 0)
    put_names(
        image, _NAMES, [(1, 60, 2), (1, 61, 2), (CHUNKS, 63, 1), (INDEX, 69, 1), (TAIL, 74, 1)]
    )
    put_inode(image, CHUNKS, 4 << 1, 0o100644, 1, 1200, 0, mtime=3, uid=1, gid=2)
    struct.pack_into("<3I", image, META + CHUNKS * 32 + 32, 6, 0xFFFFFFFF, 0x1001)
    put_inode(image, INDEX, 4 << 1 | 1 << 4, 0o100644, 0, 600, 0x21)
    struct.pack_into("<HHI", image, META + INDEX * 32 + 32, 0xBEEF, 0xAB02, 1)
    put_inode(image, TAIL, 2 << 1, 0o100600, 1, BLOCK + 4, 7)
    struct.pack_into("<4s", image, META + TAIL * 32 + 32, b"tail")
    return image


def put_inode(
    image: bytearray,
    nid: int,
    format: int,
    mode: int,
    nb: int,
    size: int,
    u: int,
    *,
    mtime: int = 0,
    uid: int = 0,
    gid: int = 0,
) -> None:
    """Put a compact inode into the image."""
    at = META + nid * 32
    struct.pack_into(_INODE, image, at, format, 0, mode, nb, size, mtime, u, nid, uid, gid, 0)


def put_names(image: bytearray, names: bytes, dirents: list[tuple[int, int, int]]) -> None:
    """Put what the root has: nid, offset of the name, and type of each."""
    raw = b"".join(struct.pack("<QHBB", *dirent, 0) for dirent in dirents) + names
    image[META + 64 : META + 64 + len(raw)] = raw
