"""Images read: by path, as a walk, or whole as a tree of inodes.

Read are compact and extended inodes, data that is plain, inline or in chunks (block numbers or
indexes), extra devices, shared and inline xattrs, and blocks of 512 bytes to 64 KiB. Not supported,
and refused by name: compressed data, block numbers of 48 bits, long prefixes of xattrs, metadata in
a metabox. What the kernel only trusts is checked here: an image may come from anyone.

An image costs time and memory in proportion to its size at most, and within these bounds: to open
it or to look something up, `metadata.MAX_SEGMENTS` segments, and 32 MiB for a table of 65,535
devices; to walk, half a KiB for each directory; to make a tree, a KiB for each inode
(`hierarchy.MAX_NAMES`) and 200 bytes for each extent (`hierarchy.MAX_EXTENTS`), with xattrs and
names of no more bytes than the image. `Image.read` takes what its caller asks for.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from lamina.core.source import RangeSource
from lamina.errors import InvalidArgument, NotFound
from lamina.formats.erofs import attributes, entries
from lamina.formats.erofs.hierarchy import Hierarchy, read_target
from lamina.formats.erofs.inodes import Node, parse_node
from lamina.formats.erofs.layout import DeviceSlot, Superblock
from lamina.formats.erofs.metadata import Metadata, damaged
from lamina.formats.erofs.runs import merged, runs
from lamina.formats.erofs.tree import HOLE, Extent, Inode
from lamina.formats.erofs.volume import Volume

_WHAT = "read an EROFS image"


class Image:
    """An image, and the devices that have data of its files.

    It closes nothing. Not for several threads at once.

    Attributes:
        superblock: as it is in the image.
        slots: the device table; device 1 has the first.
        root: the directory where all begins.
    """

    def __init__(self, source: RangeSource, devices: Sequence[RangeSource] = ()) -> None:
        """Open an image.

        Args:
            source: the image itself.
            devices: the extra devices, all or none; without them the data on them cannot be read.

        Raises:
            FormatError: this is no EROFS image, it is damaged, or it has what is not supported.
            InvalidArgument: it has another number of devices.
        """
        self._volume = Volume(Metadata(source), [device.size for device in devices])
        self._sources = [source, *devices]
        self.superblock: Superblock = self._volume.superblock
        self.slots: tuple[DeviceSlot, ...] = self._volume.slots
        if devices and len(devices) != len(self.slots):
            hint = f"it has {len(self.slots)} extra devices, and {len(devices)} are given"
            raise InvalidArgument(_WHAT, hint=hint)
        self.root = self.node(self.superblock.rootnid)
        if not self.root.is_directory:
            raise damaged(self.root.at, "a directory as root", f"mode {self.root.mode:#o}")

    def node(self, nid: int) -> Node:
        """Return the inode of a number.

        Raises:
            FormatError: there is none, it is damaged, or it has what is not supported.
        """
        return parse_node(self._volume, nid)

    def lookup(self, path: bytes) -> Node:
        """Return the inode at a path from the root on. Symbolic links are not followed.

        Raises:
            NotFound: nothing is there.
            FormatError: a directory on the way, or the inode, is damaged.
        """
        node = self.root
        for name in path.split(b"/"):
            if name in {b"", b"."}:
                continue
            entry = entries.find_entry(self._volume, node, name) if node.is_directory else None
            if entry is None:
                raise NotFound(_WHAT, path.decode(errors="backslashreplace"))
            node = self.node(entry.nid)
        return node

    def entries(self, directory: Node) -> Iterator[entries.Entry]:
        """Yield what a directory has, by ascending name; `.` and `..` are among it.

        Raises:
            FormatError: it is damaged.
        """
        return entries.entries(self._volume, directory)

    def walk(self) -> Iterator[tuple[bytes, Node]]:
        """Yield path and inode of all that the image has.

        The root is `/`. Each directory comes before what it has, and its entries come together.

        Raises:
            FormatError: an inode or a directory is damaged, or the directories are no tree.
        """
        for found in Hierarchy(self._volume).walk():
            yield found.path, found.node

    def tree(self) -> Inode:
        """Return the whole image as a tree; an inode with several names is one object.

        Extents lie where the image says, device 0 is the image itself. A writer takes them only
        where they begin at blocks: the tail of a file that is kept beside its inode does not.

        Raises:
            FormatError: the image is damaged anywhere, or its directories are no tree.
        """
        return Hierarchy(self._volume).tree()

    def target(self, symlink: Node) -> bytes:
        """Return what a symbolic link points to.

        Raises:
            FormatError: it is damaged.
        """
        if not symlink.is_symlink:
            raise InvalidArgument(_WHAT, hint=f"inode {symlink.nid} is no symbolic link")
        return read_target(self._volume, symlink)

    def xattrs(self, node: Node) -> Mapping[bytes, bytes]:
        """Return full names and values of extended attributes.

        Raises:
            FormatError: they are damaged.
        """
        volume = self._volume
        return attributes.read_attributes(
            volume, node, lambda id: attributes.read_shared(volume, id)
        )

    def extents(self, node: Node) -> Iterator[Extent]:
        """Yield where the data of a regular file lies, as `tree` says it.

        Raises:
            FormatError: it lies outside the image or its devices.
        """
        return merged(runs(self._volume, node, 0, node.size))

    def read(self, node: Node, offset: int, length: int) -> bytes:
        """Return bytes of a regular file; fewer where it ends before.

        Raises:
            FormatError: they lie outside the image or its devices.
            InvalidArgument: they lie on a device that is not given, or this is no regular file.
            Unavailable: a source says so.
        """
        if offset < 0 or length < 0 or not node.is_regular:
            hint = f"bytes {offset} to {offset + length} of a file of mode {node.mode:#o}"
            raise InvalidArgument(_WHAT, hint=hint)
        stop = min(offset + length, node.size)
        if offset >= stop:
            return b""
        return b"".join(self._data(run) for run in merged(runs(self._volume, node, offset, stop)))

    def _data(self, run: Extent) -> bytes:
        if run.device == HOLE:
            return bytes(run.length)
        if run.device >= len(self._sources):
            raise InvalidArgument(_WHAT, hint=f"data lies on device {run.device}, which is missing")
        return self._sources[run.device].read_at(run.offset, run.length)
