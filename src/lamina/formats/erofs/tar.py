"""Full images from tar streams of layers, as `mkfs.erofs --tar=f --aufs` makes them.

Bodies of files go into the image as they arrive, each from a block of its own on; all else follows
behind them. What an archive means is the same as where it is extracted for an overlay: names and
links stay inside the root, later entries replace earlier ones, deletions become overlayfs's own
(a character device 0/0, `trusted.overlay.opaque` = `y`), attributes that steer an overlay are left
out, and so is the entry of the root itself.

Memory: about a kilobyte for each inode, and at most 256 MiB of attributes and targets; no data. The
blocks of a file that a later entry replaces stay in the image without use.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Sequence
from typing import BinaryIO, NamedTuple, Protocol

from lamina.errors import FormatError, ResourceExhausted
from lamina.formats.erofs.data import DataArea
from lamina.formats.erofs.layer_tree import LayerTree
from lamina.formats.erofs.layout import MAX_NAME, MAX_TARGET, MAX_XATTR_VALUE
from lamina.formats.erofs.tree import Extent, Inode
from lamina.formats.erofs.writer import reserved_blocks, write_image
from lamina.formats.erofs.xattrs import split_name
from lamina.formats.stream import ChunkStream
from lamina.formats.tar import Entry, TarReader, Type
from lamina.formats.tar.layer import (
    OPAQUE_MARKER,
    check_device,
    check_owner,
    clean,
    deleted_name,
    times,
)

OPAQUE_XATTR = b"trusted.overlay.opaque"


class Bodies(Protocol):
    """What takes the data of files."""

    def store(self, reader: TarReader, entry: Entry) -> Sequence[Extent]:
        """Take the body of the reader's current entry; return where it lies."""
        ...


Implied = Callable[[bytes], Inode | None]
"""Returns the directory that lower layers have at a path, if any."""

_HIDDEN_PLAIN = (b"trusted.",)
_HIDDEN = (*_HIDDEN_PLAIN, b"user.fuseoverlayfs.")
_HIDDEN_IMPLIED = (*_HIDDEN, b"user.overlay.")
_DEVICES = {Type.CHAR: stat.S_IFCHR, Type.BLOCK: stat.S_IFBLK}
_MAX_WARNINGS = 8
_MAX_KEPT = 256 << 20
"""Bytes of attributes and targets of links."""


class TarImage(NamedTuple):
    """The image of an archive.

    Attributes:
        inodes: that it has.
        blocks: of 4096 bytes, in all.
        entries: members of the archive.
        warnings: what was left out, as sentences; the first few only.
    """

    inodes: int
    blocks: int
    entries: int
    warnings: tuple[str, ...]


class TarTree(NamedTuple):
    """The tree of an archive.

    Attributes:
        root: the directory where all begins.
        entries: members of the archive.
        warnings: what was left out, as sentences; the first few only.
    """

    root: Inode
    entries: int
    warnings: tuple[str, ...]


def image_from_tar(
    stream: ChunkStream,
    out: BinaryIO,
    *,
    max_entries: int,
    max_bytes: int,
    uuid: bytes = bytes(16),
    implied: Implied | None = None,
    root: Inode | None = None,
    whiteouts: bool = True,
) -> TarImage:
    """Write the image of an uncompressed archive. Equal archives make equal bytes.

    Args:
        stream: read to the end of the archive; what follows that is left in it.
        out: empty and seekable. It is neither closed nor flushed; after an error it holds a part.
        max_entries: members of the archive, and directories that it only implies.
        max_bytes: of all its files, with their holes.
        uuid: 16 bytes.
        implied: asked for the owner, mode, time and attributes of directories that the archive
            uses without describing them; otherwise they belong to root, with mode 0755.
        root: the root directory, without children; otherwise it belongs to root, with mode 0755.
        whiteouts: keep deletions, for an overlay. A base layer has nothing to delete but what the
            archive itself has brought; there they are carried out.

    Raises:
        FormatError: the archive is damaged, cut off, or asks for what cannot be.
        ResourceExhausted: a limit is exceeded.
        InvalidArgument: an inode has more attributes than an image can hold.
    """
    data = DataArea(out, reserved_blocks())
    tree = tree_from_tar(
        stream,
        data,
        max_entries=max_entries,
        max_bytes=max_bytes,
        implied=implied,
        root=root,
        whiteouts=whiteouts,
    )
    written = write_image(tree.root, out, first_block=data.block, uuid=uuid)
    return TarImage(*written, tree.entries, tree.warnings)


def tree_from_tar(
    stream: ChunkStream,
    data: Bodies,
    *,
    max_entries: int,
    max_bytes: int,
    implied: Implied | None = None,
    root: Inode | None = None,
    whiteouts: bool = True,
) -> TarTree:
    """Return the tree of an uncompressed archive; `data` gets what its files have.

    The arguments are those of `image_from_tar`, and so are the errors but the last.
    """
    limits = _Limits(max_entries, max_bytes)
    builder = _Builder(TarReader(stream), data, limits, implied, whiteouts=whiteouts)
    if root is not None:
        builder.tree.root = root
    builder.run()
    return TarTree(builder.tree.root, builder.entries, tuple(builder.warnings))


class _Limits(NamedTuple):
    entries: int
    bytes: int


class _Builder:
    """Makes the entries of one archive.

    Attributes:
        tree: what they make.
        entries: members seen so far.
        warnings: what was left out.
    """

    def __init__(
        self,
        reader: TarReader,
        data: Bodies,
        limits: _Limits,
        implied: Implied | None,
        *,
        whiteouts: bool,
    ) -> None:
        self.tree = LayerTree(self._directory_implied)
        self.entries = 0
        self.warnings: list[str] = []
        self._reader = reader
        self._data = data
        self._limits = limits
        self._whiteouts = whiteouts
        self._hidden = _HIDDEN if whiteouts else _HIDDEN_PLAIN
        self._implied = implied
        self._directories_implied = 0
        self._file_bytes = 0
        self._kept_bytes = 0
        self._mtime = 0
        self._makers = {
            Type.REGULAR: self._regular,
            Type.DIRECTORY: self._directory,
            Type.SYMLINK: self._symlink,
            Type.HARD_LINK: self._hard_link,
            Type.CHAR: self._node,
            Type.BLOCK: self._node,
            Type.FIFO: self._node,
        }

    def run(self) -> None:
        """Make everything."""
        while (entry := self._reader.next()) is not None:
            self.tree.at = self._reader.offset
            self.entries += 1
            self._file_bytes += entry.real_size
            if self._file_bytes > self._limits.bytes:
                self._exceeded(f"its files have more than {self._limits.bytes} bytes")
            self._check_entries()
            self._check_kept(entry)
            self._extract(entry)

    def _check_entries(self) -> None:
        if self.entries + self._directories_implied > self._limits.entries:
            self._exceeded(f"it has more than {self._limits.entries} entries")

    def _check_kept(self, entry: Entry) -> None:
        self._kept_bytes += len(entry.linkname)
        for name, value in entry.xattrs.items():
            self._kept_bytes += len(name) + len(value)
        if self._kept_bytes > _MAX_KEPT:
            self._exceeded(f"its attributes and links have more than {_MAX_KEPT >> 20} MiB")

    def _exceeded(self, hint: str) -> None:
        raise ResourceExhausted("unpack layer", hint=hint)

    def _extract(self, entry: Entry) -> None:
        at = self.tree.at
        parent, _, base = clean(entry.name).rpartition(b"/")
        if not base:
            return
        check_owner(entry, at)
        self._mtime = times(entry)[1]
        directory = self.tree.make(parent)
        if base == OPAQUE_MARKER:
            if self._whiteouts:
                _make_opaque(directory)
            return
        deleted = deleted_name(base, at)
        if deleted is not None:
            self._delete(entry, directory, deleted)
            return
        make = self._makers.get(entry.type)
        if make is None:
            got = repr(entry.type)
            raise FormatError("tar", at, expected="a type that layers have", got=got)
        make(entry, directory, base)

    def _delete(self, entry: Entry, directory: Inode, name: bytes) -> None:
        if not self._whiteouts:
            self.tree.remove(directory, name)
            return
        if name in directory.children:
            expected = "a whiteout of a lower layer's file"
            raise FormatError("tar", self.tree.at, expected=expected, got=repr(entry.name))
        whiteout = Inode(stat.S_IFCHR, entry.uid, entry.gid, self._mtime)
        self.tree.put(directory, name, whiteout)

    def _regular(self, entry: Entry, directory: Inode, base: bytes) -> None:
        inode = self._inode(entry, stat.S_IFREG)
        inode.size = entry.real_size
        inode.extents = self._data.store(self._reader, entry)
        self.tree.put(directory, base, inode)

    def _directory(self, entry: Entry, directory: Inode, base: bytes) -> None:
        old = directory.children.get(base)
        if old is not None and old.is_directory:
            self._update(old, entry)
            return
        inode = self._inode(entry, stat.S_IFDIR)
        if self._whiteouts and old is not None and stat.S_ISCHR(old.mode) and not old.rdev:
            # It goes on hiding the lower directory that the whiteout hid.
            _make_opaque(inode)
        self.tree.put(directory, base, inode)

    def _symlink(self, entry: Entry, directory: Inode, base: bytes) -> None:
        if not 0 < len(entry.linkname) <= MAX_TARGET:
            expected = f"a target of 1 to {MAX_TARGET} bytes"
            got = f"{len(entry.linkname)} bytes"
            raise FormatError("tar", self.tree.at, expected=expected, got=got)
        inode = self._inode(entry, stat.S_IFLNK)
        inode.mode = stat.S_IFLNK | 0o777
        inode.target = entry.linkname
        self.tree.put(directory, base, inode)

    def _hard_link(self, entry: Entry, directory: Inode, base: bytes) -> None:
        self.tree.remove(directory, base)
        parent, _, name = entry.linkname.rstrip(b"/").rpartition(b"/")
        inode = self.tree.find(parent).children.get(name)
        if inode is None or inode.is_directory:
            expected = "a link to something that exists and is no directory"
            raise FormatError("tar", self.tree.at, expected=expected, got=repr(entry.linkname))
        self._update(inode, entry)
        self.tree.put(directory, base, inode)

    def _node(self, entry: Entry, directory: Inode, base: bytes) -> None:
        inode = self._inode(entry, _DEVICES.get(entry.type, stat.S_IFIFO))
        if entry.type in _DEVICES:
            check_device(entry, self.tree.at)
            inode.rdev = os.makedev(entry.devmajor, entry.devminor)
        self.tree.put(directory, base, inode)

    def _inode(self, entry: Entry, kind: int) -> Inode:
        inode = Inode(kind | entry.mode, entry.uid, entry.gid, self._mtime)
        if entry.xattrs:
            self._add_xattrs(inode, entry)
        return inode

    def _update(self, inode: Inode, entry: Entry) -> None:
        """Let an entry say anew what it says of an inode that is there."""
        inode.uid, inode.gid, inode.mtime = entry.uid, entry.gid, self._mtime
        if not stat.S_ISLNK(inode.mode):
            inode.mode = stat.S_IFMT(inode.mode) | entry.mode
        if entry.xattrs:
            self._add_xattrs(inode, entry)

    def _add_xattrs(self, inode: Inode, entry: Entry) -> None:
        left_out = []
        added = dict(inode.xattrs)
        for name, value in entry.xattrs.items():
            if not _may_have(inode, name, self._hidden):
                left_out.append(name)
                continue
            if len(name) > MAX_NAME or len(value) > MAX_XATTR_VALUE:
                got = f"{len(value)} bytes of {name[:MAX_NAME]!r}"
                expected = "attributes of less than 64 KiB, with names of at most 255 bytes"
                raise FormatError("tar", self.tree.at, expected=expected, got=got)
            added[name] = value
        inode.xattrs = added
        if left_out and len(self.warnings) < _MAX_WARNINGS:
            listed = ", ".join(map(os.fsdecode, left_out))
            self.warnings.append(f"attributes of {os.fsdecode(entry.name)} are left out: {listed}")

    def _directory_implied(self, path: bytes) -> Inode:
        """Make a directory that the archive only implies look as the lower layers have it."""
        self._directories_implied += 1
        self._check_entries()
        inode = Inode(stat.S_IFDIR | 0o755, mtime=self._mtime)
        lower = self._implied(path) if self._implied else None
        if lower is not None and lower.is_directory:
            inode.mode, inode.mtime = lower.mode, lower.mtime
            inode.uid, inode.gid = lower.uid, lower.gid
            inode.xattrs = {
                name: value
                for name, value in lower.xattrs.items()
                if _may_have(inode, name, _HIDDEN_IMPLIED)
            }
        return inode


def _make_opaque(directory: Inode) -> None:
    directory.xattrs = {**directory.xattrs, OPAQUE_XATTR: b"y"}


def _may_have(inode: Inode, name: bytes, hidden: tuple[bytes, ...]) -> bool:
    """Tell whether Linux would let a layer set an attribute."""
    if name.startswith(hidden) or split_name(name) is None:
        return False
    return not name.startswith(b"user.") or inode.is_directory or inode.is_regular
