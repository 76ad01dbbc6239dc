"""Writer of images: all that is metadata, behind whatever data the image has itself.

    block 0                 superblock, device table; as many blocks as `reserved_blocks` says
    to block `first_block`  data of regular files, put there by the caller
    the rest                shared xattrs; inodes with their xattrs, chunk indexes, names and
                            targets; blocks of directories, and of links that fit nowhere else

A regular file is plain where it is one run of the image's own blocks, else it has chunks with
indexes of 8 bytes: the largest that its extents allow. With `flat`, one run on an extra device is
plain too: blocks of the devices have the last of the 2**32 numbers as well (`uniaddr`), unless
they are more than half of them. Such a file takes as much metadata as one in the image. An inode
is compact (32 bytes) where that loses nothing on any kernel: small ids, and the one modification
time that most inodes have.

Memory: some 300 bytes for each inode beside the tree itself, and one directory's names. Not
supported: blocks of other sizes, compression, fragments, tails of regular files beside their
inodes, long xattr prefixes, xattr filters, images or devices of more than 2**32 - 1 blocks.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import BinaryIO, NamedTuple

from lamina.errors import InvalidArgument
from lamina.formats.erofs.chunks import chunk_indexes, merge_extents
from lamina.formats.erofs.directories import directory_block, split_blocks
from lamina.formats.erofs.layout import (
    BLOCK_BITS,
    COMPACT_INODE,
    DEVICE_SLOT,
    EROFS_CHUNK_FORMAT_BLKBITS_MASK,
    EROFS_FEATURE_COMPAT_MTIME,
    EROFS_FEATURE_COMPAT_SB_CHKSUM,
    EROFS_FEATURE_INCOMPAT_CHUNKED_FILE,
    EROFS_FEATURE_INCOMPAT_DEVICE_TABLE,
    EROFS_FT_DIR,
    EROFS_INODE_CHUNK_BASED,
    EROFS_INODE_FLAT_INLINE,
    EROFS_INODE_LAYOUT_COMPACT,
    EROFS_INODE_LAYOUT_EXTENDED,
    EROFS_SUPER_MAGIC_V1,
    EROFS_SUPER_OFFSET,
    EXTENDED_INODE,
    INODE_SLOT,
    MAX_DEVICES,
    SECOND,
    SUPERBLOCK,
    DeviceSlot,
    Superblock,
    inode_format,
    superblock_checksum,
)
from lamina.formats.erofs.nodes import Node, Survey
from lamina.formats.erofs.output import Output
from lamina.formats.erofs.placement import (
    Placement,
    common_mtime,
    indexes_offset,
    is_compact,
    own_blocks,
    rounded,
)
from lamina.formats.erofs.tree import BLOCK, Inode

_TABLE_OFFSET = EROFS_SUPER_OFFSET + SUPERBLOCK.size
_MAX_BLOCKS = (1 << 32) - 1
_MAX_TAG = 64
_WHAT = "write an EROFS image"


class Device(NamedTuple):
    """A file or block device beside the image that has data.

    Attributes:
        blocks: of BLOCK bytes; the kernel reads its last whole, so there must be as many.
        tag: at most 64 bytes, such as a digest; nothing but tools read it.
    """

    blocks: int
    tag: bytes = b""


class Written(NamedTuple):
    """What an image has: inodes, and blocks of BLOCK bytes in all."""

    inodes: int
    blocks: int


def reserved_blocks(devices: int = 0) -> int:
    """Return how many blocks the superblock and a table of that many devices take."""
    return rounded(_TABLE_OFFSET + devices * DEVICE_SLOT.size, BLOCK) // BLOCK


def write_image(
    root: Inode,
    out: BinaryIO,
    *,
    devices: Sequence[Device] = (),
    first_block: int = 0,
    uuid: bytes = bytes(16),
    flat: bool = False,
) -> Written:
    """Write an image of a tree. Equal trees make equal bytes.

    Args:
        root: a directory.
        out: empty, or with data already in blocks `reserved_blocks` to `first_block`; seekable.
            It is neither closed nor flushed; after an error it holds a part.
        devices: where extents lie that are not in the image; device 1 is the first.
        first_block: where the data in the image ends; 0 where it has none.
        uuid: 16 bytes.
        flat: without chunks wherever it goes. Linux reads it from 5.16 on, as it reads chunks;
            `fsck.erofs` finds the metadata right, and the data with `--extract` does not (1.5).

    Raises:
        InvalidArgument: an image cannot hold the tree, or it is no tree; the error names the path.
    """
    reserved = reserved_blocks(len(devices))
    _check(devices, first_block, reserved, uuid)
    own = range(reserved * BLOCK, first_block * BLOCK)
    addresses = _addresses(devices) if flat else [0] * len(devices)
    survey = Survey(root, [own, *(range(device.blocks * BLOCK) for device in devices)], addresses)
    writer = _Writer(survey, out, max(first_block, reserved))
    most = min(filter(None, addresses), default=_MAX_BLOCKS)
    if writer.blocks > most:
        raise InvalidArgument(_WHAT, hint=f"it has {writer.blocks} blocks, over {most}")
    writer.write_metadata()
    out.seek(0)
    out.write(_head(writer.superblock(uuid, len(devices)), devices, addresses))
    return Written(len(survey.nodes), writer.blocks)


def _addresses(devices: Sequence[Device]) -> list[int]:
    """Return where each device begins among the blocks of the image; 0 where there is no room."""
    total = sum(device.blocks for device in devices)
    if total > _MAX_BLOCKS // 2:
        return [0] * len(devices)
    starts = accumulate((device.blocks for device in devices), initial=_MAX_BLOCKS - total)
    return list(starts)[: len(devices)]


def _check(devices: Sequence[Device], first_block: int, reserved: int, uuid: bytes) -> None:
    if len(devices) > MAX_DEVICES:
        raise InvalidArgument(_WHAT, hint=f"it has {len(devices)} devices, over {MAX_DEVICES}")
    for number, device in enumerate(devices, 1):
        if not 0 <= device.blocks <= _MAX_BLOCKS or len(device.tag) > _MAX_TAG:
            subject = f"device {number}"
            hint = f"at most {_MAX_BLOCKS} blocks and {_MAX_TAG} bytes of tag are possible"
            raise InvalidArgument(_WHAT, subject, hint=hint)
    if first_block and not reserved <= first_block <= _MAX_BLOCKS:
        raise InvalidArgument(_WHAT, hint=f"data ends at block {first_block}, begins at {reserved}")
    if len(uuid) != 16:
        raise InvalidArgument(_WHAT, hint=f"the uuid has {len(uuid)} bytes, not 16")


def _head(superblock: Superblock, devices: Sequence[Device], addresses: Sequence[int]) -> bytes:
    """Return the reserved blocks."""
    head = bytearray(reserved_blocks(len(devices)) * BLOCK)
    for number, (device, address) in enumerate(zip(devices, addresses, strict=True)):
        slot = DeviceSlot(device.tag, device.blocks, uniaddr_lo=address, blocks_hi=0, uniaddr_hi=0)
        DEVICE_SLOT.pack_into(head, _TABLE_OFFSET + number * DEVICE_SLOT.size, *slot)
    SUPERBLOCK.pack_into(head, EROFS_SUPER_OFFSET, *superblock)
    checksum = superblock_checksum(bytes(head[:BLOCK]))
    SUPERBLOCK.pack_into(head, EROFS_SUPER_OFFSET, *superblock._replace(checksum=checksum))
    return bytes(head)


class _Writer:
    """Writes the metadata of the nodes of one survey.

    Attributes:
        blocks: that the image has.
    """

    def __init__(self, survey: Survey, out: BinaryIO, first_block: int) -> None:
        self._nodes = survey.nodes
        self._first_block = first_block
        self._shared = survey.xattrs.share()
        start = first_block * BLOCK + len(self._shared)
        self._meta_block = start // BLOCK
        self._epoch = common_mtime(self._nodes.values())
        self._place = Placement(
            self._nodes.values(), epoch=self._epoch, start=start, meta_block=self._meta_block
        )
        self.blocks = self._place.blocks
        self._root = next(iter(self._nodes.values()))
        self._out = Output(out, first_block * BLOCK)

    def write_metadata(self) -> None:
        """Write all but the reserved blocks."""
        out = self._out
        out.write(self._shared)
        for number, node in enumerate(sorted(self._nodes.values(), key=_nid), 1):
            out.pad_to(self._meta_block * BLOCK + node.nid * INODE_SLOT)
            self._write_inode(node, number)
        for node in self._place.with_blocks:
            out.pad_to(node.u * BLOCK)
            for block in self._data(node, 0, own_blocks(node)):
                out.write(block)
                out.pad_to(rounded(out.position, BLOCK))
        out.pad_to(self.blocks * BLOCK)
        out.flush()

    def superblock(self, uuid: bytes, devices: int) -> Superblock:
        """Return the superblock, without its checksum."""
        chunked = any(node.layout == EROFS_INODE_CHUNK_BASED for node in self._nodes.values())
        incompat = EROFS_FEATURE_INCOMPAT_CHUNKED_FILE if chunked else 0
        if devices:
            incompat |= EROFS_FEATURE_INCOMPAT_DEVICE_TABLE
        seconds, nanoseconds = divmod(self._epoch, SECOND)
        return Superblock(
            magic=EROFS_SUPER_MAGIC_V1,
            checksum=0,
            feature_compat=EROFS_FEATURE_COMPAT_SB_CHKSUM | EROFS_FEATURE_COMPAT_MTIME,
            blkszbits=BLOCK_BITS,
            sb_extslots=0,
            rootnid=self._root.nid,
            inos=len(self._nodes),
            epoch=seconds,
            fixed_nsec=nanoseconds,
            blocks=self.blocks,
            meta_blkaddr=self._meta_block,
            xattr_blkaddr=self._first_block if self._shared else 0,
            uuid=uuid,
            volume_name=b"",
            feature_incompat=incompat,
            available_compr_algs=0,
            extra_devices=devices,
            devt_slotoff=_TABLE_OFFSET // DEVICE_SLOT.size if devices else 0,
            dirblkbits=0,
            xattr_prefix_count=0,
            xattr_prefix_start=0,
            packed_nid=0,
            xattr_filter_reserved=0,
            ishare_xattr_prefix_id=0,
            build_time=0,
            rootnid_8b=0,
        )

    def _write_inode(self, node: Node, number: int) -> None:
        out = self._out
        compact = is_compact(node, self._epoch)
        head = self._compact(node, number) if compact else self._extended(node, number)
        out.write(head + node.xattrs.body)
        if node.layout == EROFS_INODE_FLAT_INLINE:
            for tail in self._data(node, own_blocks(node), own_blocks(node) + 1):
                out.write(tail)
        elif node.layout == EROFS_INODE_CHUNK_BASED:
            used = len(head) + len(node.xattrs.body)
            out.write(bytes(indexes_offset(len(head), node) - used))
            bits = node.u & EROFS_CHUNK_FORMAT_BLKBITS_MASK
            for indexes in chunk_indexes(merge_extents(node.inode.extents), bits):
                out.write(indexes)

    def _compact(self, node: Node, number: int) -> bytes:
        inode = node.inode
        return COMPACT_INODE.pack(
            inode_format(EROFS_INODE_LAYOUT_COMPACT, node.layout),
            node.xattrs.icount,
            inode.mode,
            node.nlink,
            node.size,
            0,
            node.u,
            number,
            inode.uid,
            inode.gid,
        )

    def _extended(self, node: Node, number: int) -> bytes:
        inode = node.inode
        return EXTENDED_INODE.pack(
            inode_format(EROFS_INODE_LAYOUT_EXTENDED, node.layout),
            node.xattrs.icount,
            inode.mode,
            0,
            node.size,
            node.u,
            number,
            inode.uid,
            inode.gid,
            *divmod(inode.mtime, SECOND),
            node.nlink,
        )

    def _data(self, node: Node, start: int, stop: int) -> Iterator[bytes]:
        """Yield blocks of a directory's or a link's data, without padding."""
        if node.file_type != EROFS_FT_DIR:
            yield node.inode.target
            return
        if start == stop:
            return
        for index, names in enumerate(split_blocks(node.names)):
            if start <= index < stop:
                yield directory_block(names, [self._target(node, name) for name in names])

    def _target(self, directory: Node, name: bytes) -> tuple[int, int]:
        """Return nid and type of what a name in a directory stands for."""
        if name == b".":
            node = directory
        elif name == b"..":
            node = directory.parent or directory
        else:
            node = self._nodes[directory.inode.children[name]]
        return node.nid, node.file_type


def _nid(node: Node) -> int:
    return node.nid
