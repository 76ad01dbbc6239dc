"""The inodes of a bootstrap as the EROFS writer takes them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from lamina.formats.erofs.tree import HOLE, Extent
from lamina.formats.erofs.tree import Inode as ErofsInode
from lamina.formats.rafs.flags import ChunkFlags
from lamina.formats.rafs.model import Bootstrap, Inode
from lamina.formats.rafs.units import Layout, inodes

_STEERING = (b"trusted.", b"user.overlay.", b"user.fuseoverlayfs.")
"""Attributes that steer an overlay, which an image does not bring."""


def to_tree(bootstrap: Bootstrap, layout: Layout) -> ErofsInode:
    """Make the inodes of an EROFS image whose devices are those of a layout.

    Attributes that steer an overlay are left out, as from any image.
    """
    made: dict[Inode, ErofsInode] = {}
    for inode in inodes(bootstrap.root):
        if inode not in made:
            made[inode] = _inode(inode, layout)
    for inode, copy in made.items():
        for name, child in inode.children.items():
            copy.children[name] = made[child]
    return made[bootstrap.root]


def steers_overlay(bootstrap: Bootstrap) -> bool:
    """Tell whether an inode has an attribute that steers an overlay.

    A bootstrap of version 6 is mounted as it is, with such attributes; `to_tree` leaves them out of
    it as well, for the same devices.
    """
    return any(is_steering(name) for inode in inodes(bootstrap.root) for name in inode.xattrs)


def is_steering(name: bytes) -> bool:
    """Tell whether an attribute of that name steers an overlay."""
    return name.startswith(_STEERING)


def _inode(inode: Inode, layout: Layout) -> ErofsInode:
    xattrs: Mapping[bytes, bytes] = {
        name: value for name, value in inode.xattrs.items() if not is_steering(name)
    }
    return ErofsInode(
        inode.mode,
        inode.uid,
        inode.gid,
        inode.mtime,
        inode.rdev,
        inode.size,
        tuple(_extents(inode, layout)),
        inode.target,
        xattrs=xattrs,
    )


def _extents(inode: Inode, layout: Layout) -> Iterator[Extent]:
    end = 0
    for offset, chunk in inode.chunks:
        if offset > end:
            yield Extent(offset - end, HOLE, 0)
        size = chunk.uncompressed_size
        end = offset + size
        if chunk.flags & ChunkFlags.HOLE:
            yield Extent(size, HOLE, 0)
        else:
            device, place = layout.places[chunk]
            yield Extent(size, device, place)
    if end < inode.size:
        yield Extent(inode.size - end, HOLE, 0)
