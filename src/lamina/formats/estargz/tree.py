"""The inodes of a layer as an overlay takes them, their data on the first extra device."""

from __future__ import annotations

import os
import stat
from bisect import bisect_left
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import NamedTuple

from lamina.formats.erofs.layout import MAX_NAME, MAX_TARGET, MAX_XATTR_VALUE
from lamina.formats.erofs.tree import BLOCK, Extent, Inode
from lamina.formats.erofs.xattrs import MAX_XATTRS, encoded_size, split_name
from lamina.formats.estargz.chunks import Chunks
from lamina.formats.estargz.directories import MAX_PATH, NO_CHILDREN, Directories
from lamina.formats.estargz.toc import TOC_NAME, Toc, TocEntry, entry_error
from lamina.formats.estargz.units import MAX_CACHE, Planner, Units
from lamina.formats.tar.layer import OPAQUE_MARKER, PREFIX, clean, deleted_name

PREFETCH = b".prefetch.landmark"
NO_PREFETCH = b".no.prefetch.landmark"
_HIDDEN = frozenset([PREFETCH, NO_PREFETCH, TOC_NAME])
_STEERING = (b"trusted.", b"user.overlay.", b"user.fuseoverlayfs.")
"""Attributes that steer an overlay, which a layer does not bring."""
_TYPES = {
    "dir": stat.S_IFDIR,
    "reg": stat.S_IFREG,
    "symlink": stat.S_IFLNK,
    "char": stat.S_IFCHR,
    "block": stat.S_IFBLK,
    "fifo": stat.S_IFIFO,
}
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MAX_TIME = (1 << 63) - 1
_MAJOR, _MINOR = 1 << 12, 1 << 20
_EXTENT = 1 << 30
"""Bytes of an extent at most; a multiple of each chunk size that EROFS has here."""


class LayerTree(NamedTuple):
    """What `to_tree` returns.

    Attributes:
        root: its data lies on device 1.
        units: what fills that device, in its order.
        cache_size: bytes of that device.
        prefetch: bytes of the blob, from its start, that are wanted first: 0 where a landmark says
            that none are, None where there is no landmark.
    """

    root: Inode
    units: Units
    cache_size: int
    prefetch: int | None


def to_tree(
    toc: Toc,
    *,
    opaque_xattr: bytes,
    require_digests: bool = True,
    implied: Callable[[bytes], Inode | None] | None = None,
) -> LayerTree:
    """Make the inodes of a layer.

    Deletions become overlayfs's own: a character device 0/0, and `opaque_xattr` = `y`. Directories
    that no entry describes are as `implied` says. Landmarks and the TOC are left out.

    Args:
        toc: as `read_toc` returns it.
        opaque_xattr: `trusted.overlay.opaque` or `user.overlay.opaque`.
        require_digests: False for a legacy stargz, whose data cannot be verified.
        implied: asked, by path, for the owner, mode, time and attributes of directories that no
            entry describes; otherwise they belong to root, with mode 0755.

    Raises:
        FormatError: the TOC breaks a rule; names the entry and the field.
    """
    builder = _Builder(toc, opaque_xattr)
    for index, entry in enumerate(toc.entries):
        builder.add(index, entry)
    builder.finish()
    if implied is not None:
        for path, directory in builder.directories.implied():
            _look_as(directory, implied(path))
    units, size = _lay_out(toc, builder, require_digests)
    return LayerTree(builder.directories.root, units, size, builder.prefetch)


def _lay_out(toc: Toc, builder: _Builder, require_digests: bool) -> tuple[Units, int]:
    """Give the data of each file its place; return what fills the cache, and its size."""
    chunks, files = builder.chunks, builder.files
    planner = Planner(chunks, toc.entries, require_digests=require_digests)
    position = 0
    files.sort(key=lambda file: chunks.place(file[1]))
    for inode, first, stop in files:
        if inode in builder.replaced:
            continue
        planner.add(first, stop, position)
        inode.extents = _extents(position, inode.size)
        position += -(-inode.size // BLOCK) * BLOCK
        if position > MAX_CACHE:
            index = chunks.numbers[first]
            expected = f"at most {MAX_CACHE} bytes up to it"
            raise entry_error(index, toc.entries[index], "size", expected, position)
    planner.finish()
    return planner.units, position


class _Builder:
    """Takes up one entry after the other.

    What depends on all of them (links, deletions) waits for `finish`.

    Attributes:
        directories: with everything in them.
        chunks: of all files.
        files: regular files that have data, with their first chunk and the one behind their last.
        replaced: those whose name a later entry has.
        prefetch: as of `LayerTree`.
    """

    def __init__(self, toc: Toc, opaque_xattr: bytes) -> None:
        self.directories = Directories()
        self.chunks = Chunks(toc.data_end)
        self.files: list[tuple[Inode, int, int]] = []
        self.replaced: set[Inode] = set()
        self.prefetch: int | None = None
        self._entries = toc.entries
        self._opaque = opaque_xattr
        self._links: dict[bytes, int] = {}
        self._deletions: dict[bytes, int] = {}
        self._file: tuple[Inode, int, TocEntry, int] | None = None  # inode, entry, bytes so far
        self._takes_chunks = False

    def add(self, index: int, entry: TocEntry) -> None:
        """Take up an entry.

        Raises:
            FormatError: it breaks a rule, or the one before it lacks chunks.
        """
        kind = entry.type
        if kind == "chunk":
            self._continue(index, entry)
            return
        self._close()
        self._takes_chunks = kind == "reg"
        if kind not in _TYPES and kind != "hardlink":
            raise entry_error(index, entry, "type", "a known type", kind)
        path = clean(entry.name.encode())
        self._links.pop(path, None)
        if path in _HIDDEN or (PREFIX in path and _base(path).startswith(PREFIX)):
            self._note(index, entry, path)
            return
        if kind == "hardlink":
            self._replace(index, entry, path, None)
            self._links[path] = index
            return
        inode = _inode(index, entry)
        if kind == "reg" and entry.size:
            inode.size = entry.size
            self._open(index, entry, inode)
        self._replace(index, entry, path, inode)

    def finish(self) -> None:
        """Put links and deletions where they belong.

        Raises:
            FormatError: a link leads nowhere, or in a circle.
        """
        self._close()
        resolved: dict[bytes, Inode] = {}
        for path, index in self._links.items():
            inode = resolved.get(path) or self._linked(path, resolved)
            self.directories.put(index, self._entries[index], path, inode)
            _take_over(inode, index, self._entries[index])
        for path, index in self._deletions.items():
            self._delete(path, index)

    def _replace(self, index: int, entry: TocEntry, path: bytes, inode: Inode | None) -> None:
        """Give a name to an inode, or to none yet, instead of what has it."""
        old = self.directories.put(index, entry, path, inode)
        if old is not None and old.size:
            self.replaced.add(old)

    def _note(self, index: int, entry: TocEntry, path: bytes) -> None:
        """Take up an entry that only says something; its data has a place all the same."""
        if _base(path).startswith(PREFIX):
            if len(_base(path)) > MAX_NAME + len(PREFIX) or len(path) > MAX_PATH or b"\0" in path:
                raise entry_error(index, entry, "name", "a path that Linux can have", len(path))
            self._deletions.pop(path, None)
            self._deletions[path] = index
        elif path == NO_PREFETCH:
            self.prefetch = 0
        elif path == PREFETCH and entry.type == "reg" and entry.size and self.prefetch is None:
            self.prefetch = entry.offset
        if entry.type == "reg" and entry.size:
            self._open(index, entry, Inode(stat.S_IFREG, size=entry.size))

    def _open(self, index: int, entry: TocEntry, inode: Inode) -> None:
        """Begin a file's data, the first of which its own entry tells."""
        first = len(self.chunks)
        end = self.chunks.add(index, entry, entry, 0)
        if end == entry.size:
            self.files.append((inode, first, first + 1))
        else:
            self._file = inode, index, entry, end

    def _continue(self, index: int, entry: TocEntry) -> None:
        if self._file is None:
            if self._takes_chunks:
                raise entry_error(index, entry, "chunkOffset", "no more data", entry.chunk_offset)
            expected = "an entry before its chunks, of type reg,"
            raise entry_error(index, entry, "type", expected, entry.type)
        inode, start, file, end = self._file
        end = self.chunks.add(index, entry, file, end)
        self._file = inode, start, file, end
        if end == file.size:
            self.files.append((inode, bisect_left(self.chunks.numbers, start), len(self.chunks)))
            self._file = None

    def _close(self) -> None:
        """Make sure that the last file is complete."""
        if self._file is not None:
            _, index, file, end = self._file
            expected = f"{end}, as much as the chunks have,"
            raise entry_error(index, file, "size", expected, file.size)

    def _linked(self, path: bytes, resolved: dict[bytes, Inode]) -> Inode:
        """Return the inode that a hard link leads to, over other links where need be."""
        index = self._links[path]
        entry = self._entries[index]
        seen: dict[bytes, None] = {}
        target = path
        while target in self._links and target not in resolved:
            if target in seen:
                raise entry_error(index, entry, "linkName", "no link to itself", target)
            seen[target] = None
            target = clean(self._entries[self._links[target]].link_name.encode())
        inode = resolved.get(target) or self.directories.find(target)
        if inode is None:
            raise entry_error(index, entry, "linkName", "a file that the layer has", target)
        if inode.is_directory:
            expected = "something that can have several names"
            raise entry_error(index, entry, "linkName", expected, target)
        resolved.update(dict.fromkeys(seen, inode))
        return inode

    def _delete(self, path: bytes, index: int) -> None:
        """Put a whiteout into its directory, or mark that as opaque."""
        entry = self._entries[index]
        directory = self.directories.parent(index, entry, path)
        base = _base(path)
        if base == OPAQUE_MARKER:
            directory.xattrs = {**directory.xattrs, self._opaque: b"y"}
            return
        name = deleted_name(base, index)
        there = directory.children.get(name or b"")
        if there is not None and there.is_directory:
            # It is new, and has nothing of what is below.
            there.xattrs = {**there.xattrs, self._opaque: b"y"}
        elif name is not None and there is None:
            mtime = _mtime(entry)
            directory.children[name] = Inode(
                stat.S_IFCHR, entry.uid, entry.gid, mtime, children=NO_CHILDREN
            )


def _inode(index: int, entry: TocEntry) -> Inode:
    mode = _TYPES[entry.type] | entry.mode & 0o7777
    if entry.type == "dir":
        inode = Inode(mode, entry.uid, entry.gid, _mtime(entry))
    else:
        inode = Inode(mode, entry.uid, entry.gid, _mtime(entry), children=NO_CHILDREN)
    if entry.type == "symlink":
        inode.mode = stat.S_IFLNK | 0o777  # whatever an archive says, Linux has no others
        inode.target = entry.link_name.encode()
        if not 0 < len(inode.target) <= MAX_TARGET or b"\0" in inode.target:
            expected = f"a target of 1 to {MAX_TARGET} bytes"
            raise entry_error(index, entry, "linkName", expected, len(inode.target))
    elif entry.type in {"char", "block"}:
        if entry.dev_major >= _MAJOR or entry.dev_minor >= _MINOR:
            number = f"{entry.dev_major}:{entry.dev_minor}"
            raise entry_error(index, entry, "devMajor", "device numbers of Linux", number)
        inode.rdev = os.makedev(entry.dev_major, entry.dev_minor)
    if entry.xattrs:
        inode.xattrs = _xattrs(index, entry, entry.xattrs)
    return inode


def _look_as(directory: Inode, lower: Inode | None) -> None:
    """Give a directory what one of a lower layer has, but for what steers an overlay there."""
    if lower is None:
        return
    directory.mode, directory.uid, directory.gid = lower.mode, lower.uid, lower.gid
    directory.mtime = lower.mtime
    kept = {name: v for name, v in lower.xattrs.items() if not name.startswith(_STEERING)}
    directory.xattrs = {**kept, **directory.xattrs}


def _take_over(inode: Inode, index: int, entry: TocEntry) -> None:
    """Give a file what the entry of one more name of it says, as unpacking does.

    Some tables say nothing there.
    """
    if entry.modtime is None and not entry.mode:
        return
    if not stat.S_ISLNK(inode.mode):
        inode.mode = stat.S_IFMT(inode.mode) | entry.mode & 0o7777
    inode.uid, inode.gid, inode.mtime = entry.uid, entry.gid, _mtime(entry)
    if entry.xattrs and stat.S_ISREG(inode.mode):
        inode.xattrs = {**inode.xattrs, **_xattrs(index, entry, entry.xattrs)}
        _require_room(index, entry, inode.xattrs)


def _xattrs(index: int, entry: TocEntry, given: dict[str, bytes]) -> dict[bytes, bytes]:
    kept: dict[bytes, bytes] = {}
    for text, value in given.items():
        name = text.encode()
        if not 0 < len(name) <= MAX_NAME or b"\0" in name or len(value) > MAX_XATTR_VALUE:
            raise entry_error(
                index, entry, "xattrs", "names and values that Linux can have", name[:80]
            )
        if not _is_left_out(entry, name):
            kept[name] = value
    _require_room(index, entry, kept)
    return kept


def _require_room(index: int, entry: TocEntry, xattrs: dict[bytes, bytes]) -> None:
    if encoded_size(xattrs) > MAX_XATTRS:
        raise entry_error(index, entry, "xattrs", f"at most {MAX_XATTRS} bytes", len(xattrs))


def _is_left_out(entry: TocEntry, name: bytes) -> bool:
    """Tell whether an attribute is none that Linux would let a layer set, as of other systems."""
    if name.startswith(_STEERING) or split_name(name) is None:
        return True
    return name.startswith(b"user.") and entry.type not in {"dir", "reg", "hardlink"}


def _extents(start: int, size: int) -> Sequence[Extent]:
    assert start % BLOCK == 0
    return tuple(
        Extent(min(_EXTENT, size - done), 1, start + done) for done in range(0, size, _EXTENT)
    )


def _mtime(entry: TocEntry) -> int:
    """Return nanoseconds; what lies before 1970, as Go's zero, or beyond 63 bits is 1970."""
    if entry.modtime is None:
        return 0
    since = entry.modtime - _EPOCH
    time = (since.days * 86400 + since.seconds) * 1_000_000_000 + since.microseconds * 1000
    return time if 0 <= time <= _MAX_TIME else 0


def _base(path: bytes) -> bytes:
    return path.rpartition(b"/")[2]
